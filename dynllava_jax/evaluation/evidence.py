"""Runs every setting of the comparison that has a checkpoint, and remembers what was computed.

N questions.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from jaxtyping import Bool

from dynllava_jax.evaluation import settings
from dynllava_jax.evaluation.efficiency import efficiency
from dynllava_jax.evaluation.forced import forced
from dynllava_jax.evaluation.kept import as_grid, kept_on_things
from dynllava_jax.evaluation.metrics import Interval, exact, mean, perplexity, ratio, share
from dynllava_jax.evaluation.rows import collect
from dynllava_jax.evaluation.settings import Setting
from dynllava_jax.evaluation.subject import Place, Subject
from dynllava_jax.evaluation.tasks import descriptions, questions
from dynllava_jax.evaluation.text import chrf, object_f1
from dynllava_jax.inference.request import Answer

_DESCRIPTION_TOKENS = 192
_TIMED = 4

Progress = Callable[[str, str], None]
"""Is told the table and the row that comes next."""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much is asked.

    Attributes:
        questions: short ones; four times as many where a setting's `claim` says so.
        descriptions: long answers.
        scenes: whose kept tokens are looked at.
    """

    questions: int = 1000
    descriptions: int = 100
    scenes: int = 100

    def asked(self, setting: Setting) -> int:
        """Short questions to this setting."""
        return 4 * self.questions if setting.claim else self.questions


@dataclasses.dataclass(frozen=True)
class Result:
    """One row of a table; `values` is what was measured, `missing` why nothing was."""

    setting: Setting
    values: dict[str, Any] = dataclasses.field(default_factory=dict)
    missing: str | None = None


@dataclasses.dataclass(frozen=True)
class Evidence:
    """The tables, in the order of `settings`."""

    sizes: Sizes
    vision: list[Result]
    language: list[Result]
    ablations: list[Result]


def gather(place: Place, sizes: Sizes, progress: Progress = lambda table, row: None) -> Evidence:
    """All tables. Stopped at any moment, the next call goes on.

    Args:
        place: where models and results lie.
        sizes: how much is asked.
        progress: is told what comes next.
    """
    tables = {}
    for table, rows, measure in (
        ("vision", settings.VISION, _vision),
        ("language", settings.LANGUAGE, _language),
        ("ablations", settings.ABLATIONS, _ablation),
    ):
        tables[table] = []
        for setting in rows:
            progress(table, setting.name)
            subject = place.find(setting)
            if isinstance(subject, str):
                tables[table].append(Result(setting, missing=subject))
            else:
                tables[table].append(Result(setting, measure(subject, sizes)))
    return Evidence(sizes, **tables)


def accuracy(right: Bool[np.ndarray, " N"]) -> dict[str, Interval]:
    """Exact match of each kind of the first N `questions`, blind or not, and of all."""
    kinds = np.array([question.kind for question in questions(len(right))])
    return {str(kind): share(right[kinds == kind]) for kind in sorted(set(kinds))} | {"all": share(right)}


def _vision(subject: Subject, sizes: Sizes) -> dict[str, Any]:
    right = _right(subject, sizes.asked(subject.setting))
    values: dict[str, Any] = {"accuracy": accuracy(right)}
    if subject.setting.blind:
        values["blind"] = accuracy(_right(subject, sizes.questions, blind=True))
    control = subject.place.find(settings.CONTROL)
    if isinstance(control, Subject):
        values["over_control"] = ratio(right, _right(control, sizes.asked(control.setting))[: len(right)])
    return values | _costs(subject)


def _language(subject: Subject, sizes: Sizes) -> dict[str, Any]:
    asked = descriptions(sizes.descriptions)
    eviction = subject.setting.eviction
    given = subject.once(f"forced-{len(asked)}", lambda: forced(subject.assistant, asked, eviction))
    losses, tokens, kept = (np.array([row[name] for row in given], float) for name in ("loss", "tokens", "kept"))
    values: dict[str, Any] = {
        "perplexity": perplexity(losses, tokens),
        "kept": float(np.sum(kept * tokens) / np.sum(tokens)),
    }
    if eviction is not None:
        return values | {"flops": _costs(subject)["flops"]}
    file = subject.file(f"described-{len(asked)}", "jsonl")
    rows = collect(lambda: subject.assistant, asked, file, most=_DESCRIPTION_TOKENS, note=_judged)
    texts = [row["text"] for row in rows]
    pairs = list(zip(texts, asked, strict=True))
    judged = sum(row["judged"] for row in rows)
    return (
        values
        | {
            "chrf": mean(np.array([chrf(text, question.answer) for text, question in pairs])),
            "object_f1": mean(np.array([object_f1(text, question.shown.scene) for text, question in pairs])),
            "kept_generating": sum(row["kept"] for row in rows) / max(1, judged),
            "tokens": float(np.mean([row["judged"] + 1 for row in rows])),
        }
        | _costs(subject)
    )


def _ablation(subject: Subject, sizes: Sizes) -> dict[str, Any]:
    values: dict[str, Any] = {"accuracy": accuracy(_right(subject, sizes.asked(subject.setting)))}
    asked = descriptions(sizes.descriptions)
    given = subject.once(f"forced-{len(asked)}", lambda: forced(subject.assistant, asked))
    losses, tokens = (np.array([row[name] for row in given], float) for name in ("loss", "tokens"))
    return values | {"perplexity": perplexity(losses, tokens), "kept": on_things(subject, sizes.scenes)}


def on_things(subject: Subject, count: int) -> list[dict[str, Any]]:
    """`kept.OnThings` of the model's image tokens on the first scenes of the questions."""

    def compute() -> list[dict[str, Any]]:
        asked, assistant = questions(count), subject.assistant
        rows = collect(lambda: assistant, asked, None, most=1, note=lambda answer: {"kept": answer.kept_image_tokens})
        side = assistant.config.vision.grid
        found = [
            kept_on_things(as_grid(row["kept"][0], side), question.shown.scene)
            for row, question in zip(rows, asked, strict=True)
        ]
        return [one._asdict() for one in found]

    return subject.once(f"kept-{count}", compute)


def _costs(subject: Subject) -> dict[str, Any]:
    """Of the setting, beside the dense control's (or whatever dense model there is)."""
    dense = _dense(subject.place)
    if dense is None:
        return {}
    asked = descriptions(_TIMED)
    return subject.once(f"costs-{dense.key}", lambda: efficiency(subject.assistant, dense.assistant, asked))


@functools.lru_cache(maxsize=1)
def _dense(place: Place) -> Subject | None:
    """One for all rows: it stays loaded, with its programs."""
    found = (place.find(setting) for setting in (settings.CONTROL, settings.BASE))
    return next((subject for subject in found if isinstance(subject, Subject)), None)


def _right(subject: Subject, count: int, *, blind: bool = False) -> Bool[np.ndarray, " N"]:
    asked = questions(count, blind=blind)
    file = subject.file(f"{'blind' if blind else 'seen'}-{count}", "jsonl")
    rows = collect(lambda: subject.assistant, asked, file)
    return np.array([exact(row["text"], question.answer) for row, question in zip(rows, asked, strict=True)])


def _judged(answer: Answer) -> dict[str, int]:
    judged = [keep for keep in answer.kept_output_tokens if keep is not None]
    return {"kept": sum(judged), "judged": len(judged)}


def every_row(evidence: Evidence) -> Iterator[tuple[str, Result]]:
    """Table and row."""
    for table in ("vision", "language", "ablations"):
        for result in getattr(evidence, table):
            yield table, result
