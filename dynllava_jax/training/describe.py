"""What a run is going to do: a few lines before it begins, and all of it for `dynllava train --dry-run`."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
from jax.sharding import Mesh

from dynllava_jax.config.json_codec import to_json
from dynllava_jax.config.training import TrainConfig
from dynllava_jax.data.plan import FILLER
from dynllava_jax.data.records import SampleError
from dynllava_jax.data.spans import IGNORE, Kind, Sample
from dynllava_jax.data.tokenizer import Tokenizer
from dynllava_jax.training.samples import Samples
from dynllava_jax.training.setup import Subject
from dynllava_jax.training.step import Division

_SHOWN = 3
"""Samples of the first batch whose text is shown."""


def summary(mesh: Mesh, division: Division, samples: Samples, held_out: Samples | None) -> Iterator[str]:
    """Devices, data and steps, a line each."""
    plan, padding = samples.plan, samples.plan.padding
    sizes = ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    yield f"mesh: {sizes}; {division.rows} samples a device at a time, {division.accumulation} times a step"
    count = 0 if held_out is None else len(held_out.dataset)
    yield f"data: {samples.dataset.report}; {count} held out"
    shapes = ", ".join(f"{shape.length} tokens with {shape.images} images" for shape in plan.shapes)
    yield f"plan: {len(plan)} steps in {len(plan.shapes)} shapes: {shapes}"
    yield f"padding: {padding.planned:.1%} of all token slots; in random batches {padding.unsorted:.1%}"


def describe(
    config: TrainConfig, subject: Subject, mesh: Mesh, division: Division, samples: Samples, held_out: Samples | None
) -> dict[str, Any]:
    """Everything that is settled before the first step, and its batch; plain JSON."""
    plan = samples.plan
    return {
        "config": to_json(config),
        "model": to_json(subject.model),
        "mesh": dict(mesh.shape),
        "device_batch_size": division.rows,
        "accumulation": division.accumulation,
        "samples": len(samples.dataset),
        "held_out": 0 if held_out is None else len(held_out.dataset),
        "steps": len(plan),
        "shapes": [shape._asdict() for shape in plan.shapes],
        "padding": plan.padding._asdict(),
        "first_batch": _first_batch(subject, samples),
        "summary": list(summary(mesh, division, samples, held_out)),
    }


def lines(described: dict[str, Any]) -> Iterator[str]:
    """What `describe` gives, for people."""
    yield json.dumps(described["config"], indent=1, ensure_ascii=False)
    yield from described["summary"]
    first = described["first_batch"]
    yield f"first batch: {first['rows']} rows of {first['length']} tokens and {first['images']} images"
    for sample in first["samples"]:
        if "error" in sample:
            yield f"  {sample['id']}: {sample['error']}"
            continue
        yield f"  {sample['id']}: {sample['tokens']} tokens, {sample['images']} images"
        for kind, words in sample.get("text", ()):
            yield f"    {kind:<18}{words!r}"


def _first_batch(subject: Subject, samples: Samples) -> dict[str, Any]:
    planned = samples.plan[0]
    found: list[dict[str, Any]] = []
    for number in planned.samples[planned.samples != FILLER]:
        try:
            loaded = samples.dataset.load(int(number))
        except SampleError as error:
            found.append({"id": error.id, "error": str(error)})
            continue
        row = {"id": loaded.id, "tokens": loaded.sample.length, "images": len(loaded.pixels)}
        text = {"text": spelled(loaded.sample, subject.tokenizer)} if len(found) < _SHOWN else {}
        found.append({**row, **text})
    return {"rows": len(planned.samples), "length": planned.length, "images": planned.images, "samples": found}


def spelled(sample: Sample, tokenizer: Tokenizer) -> list[list[str]]:
    """The text of a sample, span by span: kind, with a `*` where its tokens are supervised, and text."""
    supervised = np.zeros(sample.length, bool) if sample.labels is None else sample.labels != IGNORE
    edges = np.flatnonzero(np.diff(sample.kind * 2 + supervised)) + 1
    spans = []
    for start, end in zip([0, *edges], [*edges, sample.length], strict=True):
        kind = Kind(int(sample.kind[start]))
        text = tokenizer.decode(sample.tokens[start:end].tolist(), skip_special=False)
        name = kind.name.lower() + ("*" if supervised[start] else "")
        spans.append([name, f"{end - start} slots" if kind == Kind.IMAGE else text])
    return spans
