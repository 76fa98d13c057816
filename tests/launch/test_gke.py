"""TPU pods with an xpk that is not there: it starts the run again as the JobSet does that xpk makes."""

import pytest

from tests.launch.conftest import ROOT, Desk

CLUSTER = {"PROJECT": "p", "ZONE": "z", "CLUSTER": "c", "TPU_TYPE": "v5litepod-16", "IMAGE": "image"}
# One pod. Statuses that xpk 1.16.0 starts again on: 42, 127 to 255, and those that it is given.
JOBSET = f"""
for word; do
  case $word in
    --max-restarts=*) max=${{word#*=}} ;;
    --restart-on-exit-codes=*) codes=${{word#*=}} ;;
    --command=*) command=${{word#*=}} ;;
  esac
done
[[ $(wc -w < <(tr , ' ' <<<"$codes")) == 1 ]] || exit 3
for ((restarts = 0; restarts <= ${{max:-0}}; restarts++)); do
  status=0
  bash -c "(${{command//\\/dynllava\\/launch/"{ROOT}/launch"}}) & wait \\$!" || status=$?
  [[ $status == 0 ]] && echo Completed > jobset && exit
  ((status == 42 || status >= 127 || status == codes)) || break
done
echo "Failed $status" > jobset
"""


def workload(desk: Desk, *statuses: int, **variables: str) -> tuple[str, int]:
    """How the JobSet ended, and how often the run was started."""
    desk.statuses(*statuses)
    desk.fake("xpk", JOBSET)
    status, _, error = desk.run("gke_xpk.sh", "--config=c.py", "--workdir=gs://b/a run", **CLUSTER, **variables)
    assert (status, error) == (0, "")
    runs = desk.calls("dynllava")
    assert set(runs) == {"train --config=c.py --workdir=gs://b/a run --distributed"}
    return (desk.folder / "jobset").read_text().strip(), len(runs)


def test_status_75_and_lost_hosts_start_it_again(desk: Desk) -> None:
    assert workload(desk, 75, 137, 143, 255, 75, 0) == ("Completed", 6)


@pytest.mark.parametrize("status", [75, 137])
def test_restarts_are_bounded(desk: Desk, status: int) -> None:
    assert workload(desk, *[status] * 9, MAX_RESTARTS="3") == (f"Failed {status}", 4)


def test_without_a_word_they_are_bounded_too(desk: Desk) -> None:
    assert workload(desk, *[75] * 30) == ("Failed 75", 21)


@pytest.mark.parametrize("status", [1, 2])
def test_a_failed_check_or_bad_input_ends_it(desk: Desk, status: int) -> None:
    assert workload(desk, 75, status, 0) == (f"Failed {status}", 2)


def test_xpk_is_given_these_words(desk: Desk) -> None:
    desk.fake("xpk", "exit 7")
    status, _, _ = desk.run("gke_xpk.sh", "--workdir=gs://b/RUN", **CLUSTER, MAX_RESTARTS="7", GRACE="60")
    (call,) = desk.calls("xpk")
    assert status == 7
    assert call.startswith("workload create --project=p --zone=z --cluster=c --workload=dynllava")
    for word in ("--max-restarts=7", "--restart-on-exit-codes=75", "--termination-grace-period-seconds=60"):
        assert word in call.split()
    inside = "'exec' 'env' '/dynllava/launch/process.sh' '--workdir=gs://b/RUN' '--distributed'"
    assert call.endswith(f"--command={inside}")
