"""The diagrams and pictures that go with the tables."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dynllava_jax.evaluation.evidence import Evidence, Result, on_things
from dynllava_jax.evaluation.settings import Setting
from dynllava_jax.evaluation.subject import Place, Subject
from dynllava_jax.evaluation.tasks import descriptions, questions
from dynllava_jax.viz.charts import Point, draw_points, draw_shares
from dynllava_jax.viz.figure import save
from dynllava_jax.viz.overlay import draw_kept

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PICTURES = 3
_OBJECTS = "Of each object, the share of its pixels that lies in kept patches."


def write_figures(evidence: Evidence, place: Place, folder: Path) -> list[tuple[str, str]]:
    """Writes what can be drawn into `folder`; returns each file's path from the folder above, and its caption."""
    folder.mkdir(parents=True, exist_ok=True)
    written: list[tuple[str, str]] = []

    def put(figure: "Figure", name: str, caption: str) -> None:
        save(figure, folder / name)
        written.append((f"{folder.name}/{name}", caption))

    if points := _accuracy(evidence.vision):
        figure = draw_points(points, "decoder FLOPs of the prompt (exact), share of the dense model's", "exact match")
        put(figure, "accuracy.svg", "Exact match against the cost of the prompt.")
    if points := _perplexity(evidence.language):
        figure = draw_points(points, "share of the answer that the deep layers hold", "perplexity", logarithmic=True)
        put(figure, "perplexity.svg", "Perplexity of the true descriptions against what is kept of them.")
    subject = place.find(Setting("learned", ("dynamic", "vision_only")))
    if isinstance(subject, Subject):
        chance = subject.assistant.config.kept_image_tokens / subject.assistant.config.image_tokens
        put(draw_shares(_by_thing(subject, evidence.sizes.scenes), chance), "objects.svg", _OBJECTS)
        written += _pictures(subject, folder)
    return written


def _accuracy(rows: Sequence[Result]) -> list[Point]:
    points = []
    for row in rows:
        if row.values.get("flops"):
            ours, dense = row.values["flops"]["exact"]["prompt"]
            points.append(Point(row.setting.name, ours / dense, *row.values["accuracy"]["all"]))
    return points


def _perplexity(rows: Sequence[Result]) -> list[Point]:
    return [Point(row.setting.name, row.values["kept"], *row.values["perplexity"]) for row in rows if row.values]


def _by_thing(subject: Subject, scenes: int) -> dict[str, float]:
    """Mean recall of each object, pixels of larger ones counting more."""
    kept, area = defaultdict(float), defaultdict(float)
    for one in on_things(subject, scenes):
        for name, recall, share in one["by_thing"]:
            kept[name] += recall * share
            area[name] += share
    return {name: kept[name] / area[name] for name in area}


def _pictures(subject: Subject, folder: Path) -> list[tuple[str, str]]:
    written = []
    asked = [*questions(_PICTURES - 1), *descriptions(1)]
    for number, question in enumerate(asked):
        name, most = f"kept_{number}.png", 16 if number < _PICTURES - 1 else 192
        explanation = subject.assistant.explain(question.picture, question.text, max_new_tokens=most)
        draw_kept(explanation, question.text).save(folder / name)
        written.append((f"{folder.name}/{name}", f"What {subject.path.name} kept; the true answer: {question.answer}"))
    return written
