"""Which checkpoints may go: those that are neither among the newest nor the best."""

from collections.abc import Mapping


def superfluous(scores: Mapping[int, float | None], keep: int, keep_best: bool) -> set[int]:
    """Steps, of those whose scores are given, that need not stay.

    Args:
        scores: step -> held-out loss, None where there is none.
        keep: newest steps that stay, at least 1.
        keep_best: whether the step with the lowest score stays too.
    """
    stay: set[int | None] = {*sorted(scores)[-keep:]}
    return {*scores} - (stay | {best(scores)} if keep_best else stay)


def best(scores: Mapping[int, float | None]) -> int | None:
    """The step with the lowest score, the latest of several; None without scores."""
    scored = [(score, -step) for step, score in scores.items() if score is not None]
    return -min(scored)[1] if scored else None
