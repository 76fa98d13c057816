"""Processes that work for another one: Ctrl-C is not theirs, and they end with it."""

import os
import signal
import subprocess
import sys
import time

import pytest

from dynllava_jax.data.workers import in_order

SCRIPT = """
import sys
from tests.data.test_workers import tell
from dynllava_jax.data.workers import in_order
if __name__ == "__main__":
    try:
        for number in in_order(tell, range(1000), 2):
            pass
    except KeyboardInterrupt:
        print("interrupted", flush=True)
"""


def tell(number: int) -> int:
    """Says which process works."""
    if number == 0:
        print(os.getpid(), flush=True)
    time.sleep(0.01)
    return number


def test_results_are_in_order() -> None:
    assert list(in_order(abs, range(-40, 0), 2)) == list(range(40, 0, -1))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_they_end_with_the_one_they_work_for(number: signal.Signals) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"PYTHONWARNINGS": "ignore"},  # of semaphores that a killed process leaves
    )
    assert parent.stdout is not None
    assert parent.stdout.readline().strip().isdecimal()
    if number == signal.SIGINT:
        os.killpg(parent.pid, number)  # as a terminal does
    else:
        parent.kill()
    # They hold both pipes: this returns when all have ended.
    out, complaints = parent.communicate(timeout=60)
    assert (out, complaints) == ("interrupted\n" if number == signal.SIGINT else "", "")
