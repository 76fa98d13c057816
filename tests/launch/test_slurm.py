"""A job under a scheduler that is not there: `srun` runs the step, `scontrol requeue` makes it start again."""

import re

from tests.launch.conftest import ROOT, Desk

STEP = "--kill-on-bad-exit=0 --wait=120 launch/process.sh --config=c.py --workdir=RUN --distributed"


SRUN = 'while [[ $1 == --* ]]; do shift; done; shift; exec dynllava train "$@"'


def header() -> dict[str, str]:
    """The options that sbatch reads: those before the first line that is neither empty nor a comment."""
    text = (ROOT / "launch" / "slurm.sbatch").read_text()
    comments = re.match(r"(?:#.*\n|\n)*", text)
    assert comments is not None
    assert comments[0].count("#SBATCH") == text.count("#SBATCH")
    return dict(re.findall(r"^#SBATCH --([a-z-]+)=?(\S*)$", comments[0], re.MULTILINE))


def job(desk: Desk, srun: str = SRUN, **variables: str) -> tuple[int, int, str]:
    """Runs a job as Slurm does, as long as it asks for that: last status, how often, and what it said."""
    desk.fake("srun", srun)
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


def test_the_header_is_what_restarts_need() -> None:
    found = header()
    # To the processes, five minutes before the limit; `B:` would send it to the script alone, which waits for them.
    assert found["signal"] == "USR1@300"
    assert found["requeue"] == ""  # is there, and takes no value
    # One log for all starts of the job, which has the same number each time.
    assert (found["open-mode"], found["output"]) == ("append", "%x-%j.log")
    assert re.fullmatch(r"\d+:\d\d:\d\d", found["time"])
    assert found["gres"] == f"gpu:{found['ntasks-per-node']}"


# A time limit that comes as soon as the process has begun: the header's signal, to the process as Slurm sends it.
LIMIT = f"""
while [[ $1 == --* ]]; do shift; done
(cd "{ROOT}" && exec "$@") &
task=$!
while kill -0 $task 2>/dev/null && [[ ! -e begun ]]; do sleep 0.02; done
[[ -e begun ]] && rm begun && kill -SIGNAL $task
wait $task
"""
TRAINING = """
[[ $(wc -l < dynllava.calls) -gt LONG ]] && exit 0
trap 'exit 75' USR1
touch begun
for _ in {1..300}; do sleep 0.1; done
"""


def limited(desk: Desk, long: int, **variables: str) -> tuple[int, int, str]:
    """A job that needs more time than its limit, `long` times."""
    desk.fake("dynllava", TRAINING.replace("LONG", str(long)))
    return job(desk, LIMIT.replace("SIGNAL", header()["signal"].partition("@")[0]), **variables)


def test_the_signal_of_the_time_limit_reaches_the_process_and_it_goes_on(desk: Desk) -> None:
    status, runs, said = limited(desk, 2)
    assert (status, runs) == (0, 3)
    assert desk.calls("srun") == [STEP] * 3
    assert desk.calls("dynllava") == ["train --config=c.py --workdir=RUN --distributed"] * 3
    assert desk.calls("scontrol") == ["requeue 17"] * 2
    assert "not finished: starting again (2 of at most 20)" in said


def test_time_limits_are_bounded(desk: Desk) -> None:
    status, runs, said = limited(desk, 9, MAX_RESTARTS="2")
    assert (status, runs) == (75, 3)
    assert len(desk.calls("scontrol")) == 2
    assert "started again 2 times already" in said
