"""TPU slices with a gcloud that is not there."""

import signal
import time

import pytest

from tests.launch.conftest import Desk

VM = {"PROJECT": "p", "ZONE": "z", "TPU_TYPE": "v5litepod-16", "IMAGE": "image"}
GCLOUD = """
case $* in
  *describe*) cat state ;;
  *create*) cat outcome > state ;;
  *delete*) : > state ;;
  *ssh*)
    line=$(head -n 1 hosts); sed -i 1d hosts
    for status in $line; do
      echo dynllava-begun
      [[ $status == gone ]] && echo SUSPENDED > state || echo "dynllava-status $status"
    done ;;
esac
"""


GIVEN_UP = (
    "dynllava: no slice to run on, but it was started again 2 times already (MAX_RESTARTS); "
    "the same command goes on from the last checkpoint"
)


def watch(
    desk: Desk, state: str, hosts: str, outcome: str = "ACTIVE", fake: str = GCLOUD, **variables: str
) -> tuple[int, list[str], str]:
    """Runs `tpu_vm.sh`: a line of `hosts` for each try, with a status for each host that says one.

    Args:
        state: of the slice before.
        outcome: state of every slice that it asks for.
    """
    desk.fake("gcloud", fake)
    desk.fake("sleep")
    (desk.folder / "state").write_text(state)
    (desk.folder / "outcome").write_text(outcome + "\n")
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


def test_spot_0_is_no_spot(desk: Desk) -> None:
    assert watch(desk, "", "0 0\n", SPOT="0")[1] == ["create", "ssh"]
    assert not any("--spot" in line for line in desk.calls("gcloud"))


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


@pytest.mark.parametrize("outcome", ["FAILED", "SUSPENDED"])
def test_slices_that_never_come_are_given_up(desk: Desk, outcome: str) -> None:
    status, verbs, error = watch(desk, "", "", outcome, MAX_RESTARTS="2", PAUSE="7")
    assert status == 69
    assert verbs == ["create", "delete", "create", "delete", "create"]
    assert error.splitlines()[-1] == GIVEN_UP
    assert f"the slice is {outcome}" in error
    # After each of three requests, and before each of two new tries.
    assert sum(map(int, desk.calls("sleep"))) == 7 * 5


@pytest.mark.parametrize("refused", ["create", "delete"])
def test_requests_that_gcloud_refuses_are_bounded(desk: Desk, refused: str) -> None:
    status, verbs, error = watch(
        desk, "FAILED\n", "", fake=f"[[ $* == *{refused}* ]] && exit 1\n{GCLOUD}", MAX_RESTARTS="2"
    )
    assert status == 69
    assert verbs == (["delete", "create", "create", "create"] if refused == "create" else ["delete"] * 3)
    assert error.splitlines()[-1] == GIVEN_UP


def test_a_slice_that_gcloud_never_tells_of_is_given_up(desk: Desk) -> None:
    status, verbs, error = watch(desk, "", "", "", MAX_RESTARTS="2")
    assert (status, verbs) == (69, ["create"] * 3)
    assert error.splitlines()[-1] == GIVEN_UP


def test_slices_that_are_taken_away_again_and_again_count(desk: Desk) -> None:
    status, verbs, error = watch(desk, "ACTIVE\n", "gone gone\n" * 9, MAX_RESTARTS="2")
    assert status == 255
    assert verbs == ["ssh", "delete", "create", "ssh", "delete", "create", "ssh"]
    assert "a host does not answer, but it was started again 2 times already" in error


def test_it_waits_in_the_queue_and_tells_each_state_once(desk: Desk) -> None:
    queue = GCLOUD.replace("cat state ;;", "head -n 1 state; [[ $(wc -l < state) == 1 ]] || sed -i 1d state ;;")
    states = ["ACCEPTED", *["WAITING_FOR_RESOURCES"] * 30, "PROVISIONING", "ACTIVE"]
    status, verbs, error = watch(desk, "", "0 0\n", "\n".join(states), queue, MAX_RESTARTS="0")
    assert (status, verbs) == (0, ["create", "ssh"])
    told = [line.removeprefix("dynllava: the slice is ") for line in error.splitlines()]
    assert told == ["not there", "ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]


def test_a_container_that_did_not_start_is_tried_again(desk: Desk) -> None:
    assert watch(desk, "ACTIVE\n", "125 2\n0 0\n")[:2] == (0, ["ssh", "ssh"])


@pytest.mark.parametrize(
    ("image", "registry"),
    [("europe-west4-docker.pkg.dev/p/r/i:1", "europe-west4-docker.pkg.dev"), ("gcr.io/p/i", "gcr.io"), ("me/i", "")],
)
def test_new_hosts_are_let_into_the_registry_of_the_image(desk: Desk, image: str, registry: str) -> None:
    _, out, _ = desk.run("tpu_vm.sh", "--dry-run", "--workdir=RUN", **VM | {"IMAGE": image})
    login = f"docker login -u oauth2accesstoken --password-stdin {registry} >"
    assert (login in out) == bool(registry)


def test_a_host_stops_what_is_left_then_runs_the_container_and_says_its_status(desk: Desk) -> None:
    desk.fake(
        "gcloud",
        GCLOUD.replace("*ssh*)", '*ssh*) for word; do [[ $word == --command=* ]] && bash -c "${word#*=}"; done'),
    )
    # A container is left from before, and is there for two more looks.
    desk.fake("sudo", "case $2 in run) exit 75 ;; container) (($(grep -c inspect sudo.calls) < 3)) ;; esac")
    (desk.folder / "state").write_text("ACTIVE\n")
    status, out, error = desk.run("tpu_vm.sh", "--workdir=gs://b/a run", **VM | {"MAX_RESTARTS": "0"})
    assert status == 75, error
    assert out == "dynllava-begun\ndynllava-status 75\n"
    assert desk.calls("sudo") == [
        "docker stop -t 300 dynllava",
        *["docker container inspect dynllava"] * 3,
        "docker run --rm --name=dynllava --privileged --net=host --ipc=host image --workdir=gs://b/a run --distributed",
    ]


def test_ending_it_ends_the_watching(desk: Desk) -> None:
    desk.fake("gcloud", GCLOUD.replace("*ssh*)", "*ssh*) echo $$ > begun; exec sleep 60"))
    (desk.folder / "state").write_text("ACTIVE\n")
    with desk.start("tpu_vm.sh", "--workdir=gs://b/RUN", **VM) as process:
        while not (begun := desk.folder / "begun").exists() or not begun.read_text():
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)  # until gcloud, which has its stdout, is gone too
    assert process.returncode == 143
    assert len([line for line in desk.calls("gcloud") if " ssh " in line]) == 1
