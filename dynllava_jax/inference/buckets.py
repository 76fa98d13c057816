"""Short lists of shapes, so that any stream of requests compiles a known number of programs."""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence

from dynllava_jax.config.check import check_fields, check_positive
from dynllava_jax.config.model import ModelConfig
from dynllava_jax.errors import InputError

_TILE = 128
_FIRST = 0.275
"""A quarter of the answer, and a tenth more than expected."""
_GROWTH = 1.3
_MOST_CAPACITIES = 8
_COARSE_STEPS = 2


@dataclasses.dataclass(frozen=True)
class Shape:
    """The static shape of one batch of requests."""

    rows: int
    images: int
    length: int
    deep_length: int
    answer: int

    @property
    def shallow_capacity(self) -> int:
        return self.length + self.answer

    def deep_capacities(self, keep_rate: float) -> tuple[int, ...]:
        """Capacities that the deep cache goes through as an answer gets longer, at most 8; each is a program.

        The first has room for a quarter of the answer, of which `keep_rate` is expected to stay. The steps are so
        small that an answer of a thousand tokens or more takes at most 1.3 times what it keeps, wherever it ends, and
        large at the end, where only an answer of which far more stays than expected arrives.
        """
        most = self.deep_length + self.answer
        capacities = [min(most, _round_up(self.deep_length + int(_FIRST * keep_rate * self.answer)))]
        while capacities[-1] < most:
            last, left = capacities[-1], _MOST_CAPACITIES - len(capacities)
            larger = max(last + _TILE, int(_GROWTH * last) // _TILE * _TILE)
            if left <= _COARSE_STEPS:
                larger = max(larger, _round_up(math.ceil(last * (most / last) ** (1 / left))))
            capacities.append(min(larger, most))
        return tuple(capacities)


@dataclasses.dataclass(frozen=True)
class Buckets:
    """What requests are padded to.

    Attributes:
        rows: samples of a batch; larger batches are cut. An engine rounds them up to what its mesh splits evenly.
        images: images of a sample; 0 compiles without the tower.
        length: tokens of a prompt, one per image token included.
        answer: tokens of an answer.
        instruction: tokens of a further instruction in a conversation.
        segment: tokens between two looks of the host at the device.
    """

    rows: tuple[int, ...] = (1, 4, 16)
    images: tuple[int, ...] = (0, 1, 4)
    length: tuple[int, ...] = (128, 256, 512, 768, 1024, 1536, 2048, 3072, 4096)
    answer: tuple[int, ...] = (64, 512, 2048)
    instruction: tuple[int, ...] = (32, 128, 512)
    segment: int = 64

    def __post_init__(self) -> None:
        check_fields(self)
        check_positive(self, "segment")
        for name in ("rows", "images", "length", "answer", "instruction"):
            sizes = getattr(self, name)
            if not sizes or list(sizes) != sorted(set(sizes)) or min(sizes) < (0 if name == "images" else 1):
                raise InputError(f"Buckets.{name} must be a rising list of sizes, not {sizes}.")

    def within(self, context: int) -> "Buckets":
        """The same lists cut to a context, which becomes the longest prompt and answer there is.

        Zero images join the list: there is no padding for a batch without any.
        """

        def cut(sizes: Sequence[int]) -> tuple[int, ...]:
            return (*(size for size in sizes if size < context), context)

        images = tuple(sorted({0, *self.images}))
        return dataclasses.replace(self, images=images, length=cut(self.length), answer=cut(self.answer))

    def shape(self, config: ModelConfig, lengths: Sequence[int], images: Sequence[int], answer: int) -> Shape:
        """The smallest shape that holds prompts of these lengths with these image counts."""
        dropped = config.image_tokens - config.kept_image_tokens
        deep = max(tokens - count * dropped for tokens, count in zip(lengths, images, strict=True))
        length = fit("prompt tokens", max(lengths), self.length)
        return Shape(
            rows=fit("requests", len(lengths), self.rows),
            images=fit("images", max(images), self.images),
            length=length,
            deep_length=min(length, fit("prompt tokens", deep, self.length)),
            answer=fit("answer tokens", answer, self.answer),
        )

    def turn(self, rows: int, length: int, deep_length: int, answer: int) -> Shape:
        """The shape of a further turn: `length` tokens seen and `deep_length` stored before its answer."""
        return Shape(
            rows=rows,
            images=0,
            length=fit("tokens of the conversation", length, self.length),
            deep_length=fit("tokens of the conversation", deep_length, self.length),
            answer=fit("answer tokens", answer, self.answer),
        )

    def instruction_for(self, length: int) -> int:
        """The size that a further instruction is padded to."""
        return fit("tokens of an instruction", length, self.instruction)

    def shapes(self, config: ModelConfig) -> Iterator[Shape]:
        """Every shape that `shape` can give."""
        dropped = config.image_tokens - config.kept_image_tokens
        for rows, images, length, answer in itertools.product(self.rows, self.images, self.length, self.answer):
            shorter = max((size for size in self.length if size < length), default=0)
            if images and length < config.image_tokens:
                continue
            fewest = max(1, shorter + 1 - images * dropped)
            for deep_length in self.length:
                if fewest <= deep_length <= length or deep_length == fit("", fewest, self.length):
                    yield Shape(rows, images, length, min(deep_length, length), answer)

    def bound(self, config: ModelConfig) -> int:
        """Programs that single-turn requests with this sparsification can compile at most, with and without cache."""
        prefill, segments, uncached = set(), set(), set()
        for shape in self.shapes(config):
            prefill.add(shape)
            uncached.add((shape.rows, shape.images, shape.length, shape.deep_length))
            capacities = shape.deep_capacities(output_rate(config))
            for count in range(len(capacities)):
                segments.add((shape.rows, shape.shallow_capacity, capacities[: count + 1]))
        grown = {key for key in segments if len(key[2]) > 1}
        # Without a cache the answer is part of the length, and prompt and segment are two programs.
        return len(prefill) + len(segments) + len(grown) + 2 * len(uncached)


def output_rate(config: ModelConfig) -> float:
    """Share of the answer that the deep cache is expected to hold."""
    return 1.0 if config.sparsity.output_selector is None else config.sparsity.output_keep_rate


def fit(what: str, value: int, sizes: Sequence[int]) -> int:
    """The smallest size that holds `value`.

    Raises:
        InputError: nothing in the list is large enough.
    """
    for size in sizes:
        if size >= value:
            return size
    raise InputError(f"{value} {what} are more than the {sizes[-1]} that this model is set up for (see Buckets).")


def _round_up(value: int) -> int:
    return -(-value // _TILE) * _TILE
