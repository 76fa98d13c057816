"""Samples of different lengths as one block of fixed shape.

Axis legend: B rows, S sequence (image slots included), M images per row, H W pixels.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from dynllava_jax.data.spans import IGNORE, Kind, Sample
from dynllava_jax.errors import InputError

# A field holds a host or device array or, since a batch is a pytree, what stands in an array's place in a tree of
# shapes or shardings; hence Any.


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Batch:
    """A flat, static batch. Padding stands at the end of each row and has no effect on any result.

    Attributes:
        tokens: ids, 0 at image slots and padding.
        kind: a `spans.Kind` each; PAD says what padding is.
        positions: position of each token in its sample, before anything is dropped; 0 at padding.
        lengths: tokens of each row; 0 in a row that only fills the batch.
        image_count: images of each row; the slots of image m are the m-th run of P image tokens.
        images: pixels as `image.preprocess` gives them, zero beyond `image_count`; None when M is 0.
        labels: ids to predict, IGNORE elsewhere; None at inference.
    """

    tokens: Int[Array, "B S"] | Any
    kind: Int[Array, "B S"] | Any
    positions: Int[Array, "B S"] | Any
    lengths: Int[Array, " B"] | Any
    image_count: Int[Array, " B"] | Any
    images: Float[Array, "B M H W 3"] | Any | None = None
    labels: Int[Array, "B S"] | Any | None = None

    def need_labels(self) -> Int[Array, "B S"] | Any:
        """The labels of a batch for training."""
        if self.labels is None:
            raise ValueError("this batch was made without labels")
        return self.labels


def make_batch(
    samples: Sequence[Sample],
    images: Sequence[Sequence[np.ndarray]],
    *,
    length: int,
    slots: int,
    rows: int,
    image_shape: tuple[int, ...] | None = None,
) -> Batch:
    """Right-pads `samples` to S = `length`, M = `slots`, B = `rows`; arrays stay on the host.

    Args:
        samples: at most `rows`.
        images: the pixels [H, W, 3] of each sample's images.
        length: S, at least the longest sample.
        slots: M, at least the most images of a sample.
        rows: B.
        image_shape: [H, W, 3]; None: that of the images, of which there must be one then, unless M is 0.

    Raises:
        InputError: a sample's images are not as many as its `<image>`, differ in size, or something exceeds
            the shape asked for.
    """
    _check(samples, images, length, slots, rows)
    labelled = any(sample.labels is not None for sample in samples)
    tokens = np.zeros((rows, length), np.int32)
    kind = np.full((rows, length), Kind.PAD, np.int32)
    positions = np.zeros((rows, length), np.int32)
    labels = np.full((rows, length), IGNORE, np.int32) if labelled else None
    for row, sample in enumerate(samples):
        own = (row, slice(sample.length))
        tokens[own], kind[own], positions[own] = sample.tokens, sample.kind, np.arange(sample.length)
        if labels is not None and sample.labels is not None:
            labels[own] = sample.labels
    filler = [0] * (rows - len(samples))
    return Batch(
        tokens=tokens,
        kind=kind,
        positions=positions,
        lengths=np.array([sample.length for sample in samples] + filler, np.int32),
        image_count=np.array([sample.image_count for sample in samples] + filler, np.int32),
        images=_stack_images(images, slots, rows, image_shape) if slots else None,
        labels=labels,
    )


def _check(
    samples: Sequence[Sample], images: Sequence[Sequence[np.ndarray]], length: int, slots: int, rows: int
) -> None:
    if len(samples) != len(images) or not 0 < len(samples) <= rows:
        raise InputError(f"A batch of {rows} rows got {len(samples)} samples and images for {len(images)}.")
    for number, (sample, own) in enumerate(zip(samples, images, strict=True)):
        if sample.image_count != len(own):
            raise InputError(
                f"Sample {number} has {sample.image_count} <image> in its text but {len(own)} images; make them equal."
            )
        if sample.image_count > slots:
            raise InputError(f"Sample {number} has {sample.image_count} images; this batch has room for {slots}.")
        if sample.length > length:
            raise InputError(f"Sample {number} has {sample.length} tokens; this batch has room for {length}.")


def _stack_images(
    images: Sequence[Sequence[np.ndarray]], slots: int, rows: int, shape: tuple[int, ...] | None
) -> np.ndarray:
    shapes = {image.shape for own in images for image in own} | ({shape} if shape else set())
    if len(shapes) != 1:
        spelled = ", ".join(map(str, sorted(shapes))) or "none at all"
        raise InputError(f"A batch with image slots needs images of one shape, not {spelled}.")
    stacked = np.zeros((rows, slots, *shapes.pop()), np.float32)
    for row, own in enumerate(images):
        for slot, image in enumerate(own):
            stacked[row, slot] = image
    return stacked
