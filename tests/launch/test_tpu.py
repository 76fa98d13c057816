"""TPU slices with a gcloud and an xpk that are not there."""

import pytest

from tests.launch.conftest import Desk

VM = {"PROJECT": "p", "ZONE": "z", "TPU_TYPE": "v5litepod-16", "IMAGE": "image"}
GCLOUD = """
case $* in
  *describe*) cat state ;;
  *create*) echo ACTIVE > state ;;
  *delete*) : > state ;;
  *ssh*)
    line=$(head -n 1 hosts); sed -i 1d hosts
    for status in $line; do
      echo dynllava-begun
      [[ $status == gone ]] && echo SUSPENDED > state || echo "dynllava-status $status"
    done ;;
esac
"""


def watch(desk: Desk, state: str, hosts: str, **variables: str) -> tuple[int, list[str], str]:
    """Runs `tpu_vm.sh`: a line of `hosts` for each try, with a status for each host that says one."""
    desk.fake("gcloud", GCLOUD)
    (desk.folder / "state").write_text(state)
    (desk.folder / "hosts").write_text(hosts)
    status, _, error = desk.run("tpu_vm.sh", "--workdir=gs://b/RUN", **VM, **variables)
    told = [line.split()[3] for line in desk.calls("gcloud") if line.startswith("compute")]
    return status, [word for word in told if word != "describe"], error


def test_a_slice_is_made_and_runs_again_until_all_is_done(desk: Desk) -> None:
    status, verbs, error = watch(desk, "", "75 75\n0 0\n")
    assert status == 0
    assert verbs == ["create", "ssh", "ssh"]
    assert "not finished: starting again (1 of at most 20)" in error


def test_a_slice_that_was_taken_away_is_asked_for_again(desk: Desk) -> None:
    status, verbs, error = watch(desk, "ACTIVE\n", "gone gone\n0 0\n", SPOT="1")
    assert status == 0
    assert verbs == ["ssh", "delete", "create", "ssh"]
    assert "a host does not answer" in error
    assert any(line.endswith("--spot") for line in desk.calls("gcloud"))


@pytest.mark.parametrize("others", [134, 1])
def test_a_host_that_says_nothing_is_lost_whatever_the_others_say(desk: Desk, others: int) -> None:
    assert watch(desk, "ACTIVE\n", f"{others} gone\n0 0\n")[:2] == (0, ["ssh", "delete", "create", "ssh"])


def test_restarts_are_bounded(desk: Desk) -> None:
    assert watch(desk, "ACTIVE\n", "75\n75\n75\n75\n", MAX_RESTARTS="2")[:2] == (75, ["ssh"] * 3)


def test_a_failed_check_ends_it(desk: Desk) -> None:
    assert watch(desk, "ACTIVE\n", "1 1\n0 0\n")[:2] == (1, ["ssh"])


def test_what_is_missing_is_named(desk: Desk) -> None:
    status, _, error = desk.run("tpu_vm.sh", "--workdir=gs://b/RUN", PROJECT="p", ZONE="z")
    assert status == 2
    assert error == "dynllava: error: TPU_TYPE is not set; tpu_vm.sh says at its top what it is\n"


def test_xpk_is_asked_to_start_again(desk: Desk) -> None:
    desk.fake("xpk")
    status, _, _ = desk.run("gke_xpk.sh", "--workdir=gs://b/RUN", **VM, CLUSTER="c", MAX_RESTARTS="7")
    (call,) = desk.calls("xpk")
    assert status == 0
    assert call.startswith("workload create --project=p --zone=z --cluster=c --workload=dynllava")
    for word in ("--max-restarts=7", "--restart-on-exit-codes=75", "--termination-grace-period-seconds=300"):
        assert word in call.split()
    inside = "'exec' 'env' '/dynllava/launch/process.sh' '--workdir=gs://b/RUN' '--distributed'"
    assert call.endswith(f"--command={inside}")
