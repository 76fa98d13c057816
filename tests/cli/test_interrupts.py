"""Ctrl-C in a callback, where Python ignores exceptions, is heard after it."""

import signal
import sys
import time
import weakref

import pytest

from dynllava_jax.cli import samples
from dynllava_jax.cli.main import main


class Kept:
    """Something that a callback can wait for the end of."""


def test_a_lost_interrupt_comes_again(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def run(args: object) -> int:
        kept = Kept()
        watched = weakref.ref(kept, lambda _: signal.raise_signal(signal.SIGINT))
        del kept
        assert watched() is None
        for _ in range(600):
            time.sleep(0.1)
        return 0

    before = sys.unraisablehook
    monkeypatch.setattr(samples, "run", run)
    assert main(["samples"]) == 130
    assert capsys.readouterr().err == "dynllava: interrupted\n"
    assert sys.unraisablehook is before


def test_what_else_python_ignores_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(args: object) -> int:
        kept = Kept()
        watched = weakref.ref(kept, lambda _: 1 / 0)
        del kept
        return int(watched() is not None)

    said = []
    monkeypatch.setattr(sys, "unraisablehook", lambda lost: said.append(lost.exc_type))
    monkeypatch.setattr(samples, "run", run)
    assert main(["samples"]) == 0
    assert said == [ZeroDivisionError]
