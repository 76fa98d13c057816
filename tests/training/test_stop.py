"""A signal stops a run at the next step, and only while the run listens."""

import os
import signal

import pytest

from dynllava_jax.training.stop import EXIT_SAVED, StopSignal


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_stops_at_the_next_step(number: signal.Signals, caplog: pytest.LogCaptureFixture) -> None:
    before = [signal.getsignal(other) for other in (signal.SIGTERM, signal.SIGUSR1)]
    with StopSignal() as stop:
        assert not stop.agreed()
        os.kill(os.getpid(), number)
        assert stop.agreed()
        os.kill(os.getpid(), number)  # an impatient second one changes nothing
        assert stop.agreed()
    assert caplog.text.count(f"{number.name}: saving, then stopping") == 1
    assert [signal.getsignal(other) for other in (signal.SIGTERM, signal.SIGUSR1)] == before


def test_handlers_come_back_after_an_error() -> None:
    heard = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: heard.append(number))
    try:
        with pytest.raises(KeyError), StopSignal():
            raise KeyError
        os.kill(os.getpid(), signal.SIGUSR1)
        assert heard == [signal.SIGUSR1]
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_the_exit_status_asks_for_another_try() -> None:
    assert EXIT_SAVED == os.EX_TEMPFAIL
