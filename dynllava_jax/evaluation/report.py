"""The comparison as a page of Markdown, the paper's figures beside ours."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from dynllava_jax.evaluation import paper
from dynllava_jax.evaluation.evidence import Evidence, Result, every_row
from dynllava_jax.evaluation.metrics import Interval
from dynllava_jax.evaluation.settings import CONTROL

_NONE = "–"


def page(evidence: Evidence, command: str, figures: Sequence[tuple[str, str]]) -> str:
    """The whole page.

    Args:
        evidence: the tables' rows.
        command: what made it.
        figures: file beside the page, and caption.
    """
    sizes = evidence.sizes
    parts = [
        "# Does dropping tokens keep what matters?",
        f"Made by `{command}`; seeds and questions are fixed, intervals are 95 % bootstrap intervals. "
        f"{sizes.questions} questions about held-out scenes ({sizes.asked(CONTROL)} to I|T and the control, whose "
        f"ratio is the claim), {sizes.descriptions} descriptions of others "
        "([the demo's data](demo.md)). The paper's figures are of LLaVA-1.5-7B and other data sets: compare how rows "
        "stand to each other, not their values.",
        "## Image tokens",
        "Exact match of greedy answers. Blind: the same questions with another picture of the same kind. Where a row "
        "has no training of its own it runs on the dense control's weights. Where `I` was trained at 20 % only, its "
        "other rates are the same weights with another K.",
        _vision(evidence.vision),
        "Of each kind of question:",
        _kinds(evidence.vision),
        "The paper (tables 1 and 5), 7B:",
        _paper_vision(evidence.vision),
        "## Text",
        "Perplexity of the true descriptions (teacher-forced: each token finds what the method has kept by then) and "
        "of freely generated ones chrF and the F1 of the objects named, in place of METEOR, whose tables of stems and "
        "synonyms cannot be had here. Kept is measured: the share of the answer's tokens that the deep layers hold. "
        "H2O and the window throw out what was stored before, which this package's cache never does: they are judged "
        "on the given text only. r^OT of 20 and 80 % are trainings of their own, which may be shorter "
        "([how long](demo.md)).",
        _language(evidence.language),
        "## Costs",
        "Decoder FLOPs of a prompt by three conventions (exact; the paper's equation 13; FastV's, which counts "
        "multiply-adds), image tokens only and the whole prompt. Cache: bytes at the end of an answer, kept of what "
        "there would be if nothing were dropped. Times are ratios to the dense control in the same run, and mean "
        f"nothing beyond that{_devices(evidence)}.",
        _costs(evidence),
        "## Ablations",
        "One training each, all equally long, from the same base. Precision: share of the kept patches' pixels that "
        "show an object (random tokens: the objects' share of the picture, in brackets); recall: share of the objects' "
        "pixels in kept patches (random tokens: the keep rate).",
        _ablations(evidence.ablations),
        "## Which setting for which use",
        _uses(evidence),
        *(f"![{caption}]({file})\n\n{caption}" for file, caption in figures),
        "## Not run",
        _not_run(evidence),
    ]
    return "\n\n".join(parts) + "\n"


def _vision(rows: Sequence[Result]) -> str:
    lines = []
    for row in rows:
        values = row.values
        lines.append(
            (
                row.setting.name,
                _interval(values.get("accuracy", {}).get("all")),
                _interval(values.get("blind", {}).get("all")),
                _interval(values.get("over_control")),
                _percent(_saved(values, "exact", "image_tokens")),
                _status(row),
            )
        )
    return _table(("", "exact match", "blind", "over the control", "image FLOPs saved (exact)", ""), lines)


def _kinds(rows: Sequence[Result]) -> str:
    ran = [row for row in rows if row.values]
    if not ran:
        return "Not run."
    kinds = [kind for kind in ran[0].values["accuracy"] if kind != "all"]
    lines = []
    for row in ran:
        lines.append((row.setting.name, *(f"{row.values['accuracy'][kind][0]:.3f}" for kind in kinds)))
        if "blind" in row.values:
            lines.append((f"{row.setting.name}, blind", *(f"{row.values['blind'][kind][0]:.3f}" for kind in kinds)))
    return _table(("", *kinds), lines)


def _paper_vision(rows: Sequence[Result]) -> str:
    lines = []
    for name in dict.fromkeys(row.setting.paper for row in rows if row.setting.paper):
        found = paper.VISION[name]
        lines.append((name, *(_plain(value) for value in found)))
    return _table(("", "VQAv2", "GQA", "POPE", "image tokens", "TFLOPs (eq. 13)"), lines)


def _language(rows: Sequence[Result]) -> str:
    lines = []
    for row in rows:
        values, printed = row.values, paper.LANGUAGE.get(row.setting.paper or "")
        lines.append(
            (
                row.setting.name,
                _interval(values.get("perplexity"), 2),
                _percent(values.get("kept")),
                _interval(values.get("chrf")),
                _interval(values.get("object_f1")),
                _percent(values.get("kept_generating")),
                *(
                    (f"{printed.perplexity:.2f}", f"{printed.meteor:.3f}", _percent(printed.kept))
                    if printed
                    else (_NONE,) * 3
                ),
                _status(row),
            )
        )
    head = ("", "perplexity", "kept", "chrF", "object F1", "kept, generating")
    return _table((*head, "paper: PPL", "METEOR", "kept", ""), lines)


def _costs(evidence: Evidence) -> str:
    lines, seen = [], set()
    for table, row in every_row(evidence):
        if not row.values.get("flops") or table == "ablations" or row.setting.name in seen:
            continue
        seen.add(row.setting.name)
        values = row.values
        flops = [
            f"{ours / 1e9:.3g} ({ours / dense - 1:+.0%})"
            for part in ("image_tokens", "prompt")
            for ours, dense in (values["flops"][name][part] for name in ("exact", "eq13", "fastv"))
        ]
        cache = (
            [
                f"{kept / 2**20:.2f} / {whole / 2**20:.2f}"
                for kept, whole in (values["cache_bytes"][stack] for stack in ("shallow", "deep"))
            ]
            if "cache_bytes" in values
            else [_NONE] * 2
        )
        times = (
            [f"{values['seconds'][name]:.2f}" for name in ("prefill", "token")] if "seconds" in values else [_NONE] * 2
        )
        lines.append((row.setting.name, *flops, *cache, *times))
    if not lines:
        return "Not run."
    of = [f"{part}, {name}" for part in ("image", "prompt") for name in ("exact GFLOP", "eq. 13 GFLOP", "FastV GMAC")]
    return _table(
        ("", *of, "shallow cache, MiB", "deep cache, MiB", "prefill time, ratio", "time of a token, ratio"), lines
    )


def _ablations(rows: Sequence[Result]) -> str:
    lines = []
    for row in rows:
        kept = row.values.get("kept") or []
        average = (
            {name: sum(one[name] for one in kept) / len(kept) for name in ("precision", "recall", "area")}
            if kept
            else {}
        )
        printed = paper.ABLATIONS.get(row.setting.name)
        lines.append(
            (
                row.setting.name,
                _interval(row.values.get("accuracy", {}).get("all")),
                _interval(row.values.get("perplexity"), 2),
                f"{average['precision']:.2f} ({average['area']:.2f})" if kept else _NONE,
                f"{average['recall']:.2f}" if kept else _NONE,
                " / ".join(map(str, printed)) if printed else _NONE,
                _status(row),
            )
        )
    head = ("", "exact match", "perplexity", "precision", "recall", "paper: VQAv2 / GQA / POPE", "")
    return _table(head, lines)


def _uses(evidence: Evidence) -> str:
    """What the figures above say to somebody who has to choose."""
    of = {(table, row.setting.name): row.values for table, row in every_row(evidence)}

    def ratio(name: str) -> str:
        found = of.get(("vision", name), {}).get("over_control")
        return "not run" if found is None else f"{_interval(found)} of the control's right answers"

    def text(name: str) -> str:
        found = of.get(("language", name), {}).get("perplexity")
        return "not run" if found is None else f"perplexity {_interval(found, 2)}"

    lines = (
        ("short answers, a fixed budget", "I, r = 20 %", ratio("I, r = 20 %")),
        ("nothing may be lost", "I, r = 50 %", ratio("I, r = 50 %")),
        ("long answers, large batches", "I|T, r^OT = 50 %", text("I|T, r^OT = 50 %")),
        ("no training possible", "FastV after layer 2, 20 %", ratio("FastV after layer 2, 20 %")),
        ("no training and no attention scores", "uniform stride, 20 %", ratio("uniform stride, 20 %")),
    )
    return _table(("use", "setting", "here"), lines)


def _not_run(evidence: Evidence) -> str:
    lines = [f"- {table}: {row.setting.name} ({row.missing})" for table, row in every_row(evidence) if row.missing]
    return "\n".join(lines) if lines else "Nothing is missing."


def _devices(evidence: Evidence) -> str:
    found = {row.values["seconds"]["device"] for _, row in every_row(evidence) if "seconds" in row.values}
    return f" (on {', '.join(sorted(found))})" if found else ""


def _saved(values: dict[str, Any], convention: str, part: str) -> float | None:
    if not values.get("flops"):
        return None
    ours, dense = values["flops"][convention][part]
    return 1 - ours / dense


def _status(row: Result) -> str:
    return "not run" if row.missing else ""


def _interval(found: Interval | None, digits: int = 3) -> str:
    if found is None or math.isnan(found.value):  # a ratio to a control that is never right
        return _NONE
    value, low, high = (f"{number:.{digits}f}" for number in found)
    return f"{value} [{low}, {high}]"


def _percent(value: float | None) -> str:
    return _NONE if value is None else f"{value:.1%}"


def _plain(value: float | int | None) -> str:
    return _NONE if value is None else str(value)


def _table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in rows)
