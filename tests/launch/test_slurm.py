"""A job under a scheduler that is not there: `srun` runs the step, `scontrol requeue` makes it start again."""

from tests.launch.conftest import Desk

STEP = "--kill-on-bad-exit=0 --wait=120 launch/process.sh --config=c.py --workdir=RUN --distributed"


def job(desk: Desk, **variables: str) -> tuple[int, int, str]:
    """Runs a job as Slurm does, as long as it asks for that: last status, how often, and what it said."""
    desk.fake("srun", f'cd "{desk.folder}"; while [[ $1 == --* ]]; do shift; done; shift; exec dynllava train "$@"')
    desk.fake("scontrol")
    said = ""
    for count in range(20):
        counted = {"SLURM_RESTART_COUNT": str(count)} if count else {}
        status, _, error = desk.run(
            "slurm.sbatch", "--config=c.py", "--workdir=RUN", SLURM_JOB_ID="17", **counted, **variables
        )
        said += error
        if len(desk.calls("scontrol")) == count:
            return status, count + 1, said
    raise AssertionError("it never ends")


def test_it_goes_back_into_the_queue_until_it_is_done(desk: Desk) -> None:
    desk.statuses(75, 137, 75, 0)
    status, runs, said = job(desk)
    assert (status, runs) == (0, 4)
    assert desk.calls("srun") == [STEP] * 4
    assert desk.calls("scontrol") == ["requeue 17"] * 3
    assert "not finished: starting again (3 of at most 20)" in said


def test_a_failed_check_ends_it(desk: Desk) -> None:
    desk.statuses(75, 1, 0)
    assert job(desk)[:2] == (1, 2)


def test_restarts_are_bounded(desk: Desk) -> None:
    desk.statuses(*[75] * 10)
    status, runs, said = job(desk, MAX_RESTARTS="2")
    assert (status, runs) == (75, 3)
    assert "started again 2 times already" in said


def test_restarts_that_slurm_made_itself_count(desk: Desk) -> None:
    desk.fake("srun")
    status, _, error = desk.run("slurm.sbatch", "--workdir=RUN", MAX_RESTARTS="2", SLURM_RESTART_COUNT="3")
    assert status == 1
    assert "Slurm started this job again 3 times already" in error
    assert desk.calls("srun") == []


def test_a_queue_that_takes_nothing_back_is_told_of(desk: Desk) -> None:
    desk.statuses(75)
    desk.fake("srun", "exit 75")
    desk.fake("scontrol", "exit 1")
    status, _, error = desk.run("slurm.sbatch", "--workdir=RUN", SLURM_JOB_ID="17")
    assert status == 75
    assert "submit the same command again" in error
