"""The key/value cache: one stack sees every token, the other only those that were kept.

B batch, L layers of one stack, G key/value heads, T new tokens, C capacity of one block, E head dimension.

A stack's cache is a short list of blocks that are filled one after another. Growing appends a block, so nothing is
ever copied and the peak is what is allocated. A short answer needs one block, a long one several.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dynllava_jax.nn.constrain import constrain

AXES = ("layers", "batch", "kv_heads", None, None)
"""Logical names of a block's dimensions."""


class Block(NamedTuple):
    """Keys (rotated) and values of all layers of a stack."""

    key: Float[Array, "L B G C E"]
    value: Float[Array, "L B G C E"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StackCache:
    """One stack's blocks and, per sample, how many tokens they hold in all."""

    blocks: tuple[Block, ...]
    length: Int[Array, " B"] | Any

    @property
    def capacity(self) -> int:
        return sum(block.key.shape[3] for block in self.blocks)

    @property
    def nbytes(self) -> int:
        return sum(x.nbytes for block in self.blocks for x in block)

    def append(
        self,
        key: Float[Array, "L B G T E"],
        value: Float[Array, "L B G T E"],
        keep: Bool[Array, "B T"],
    ) -> "StackCache":
        """Stores the kept ones of T new tokens, each sample at its own length; the others cost nothing."""
        slots = self.length[:, None] + jnp.cumsum(keep, axis=-1, dtype=jnp.int32) - 1
        blocks, start = [], 0
        for block in self.blocks:
            capacity = block.key.shape[3]
            # What belongs to another block, or to none, lands beyond the end and is dropped by the scatter.
            inside = keep & (slots >= start) & (slots < start + capacity)
            index = jnp.where(inside, slots - start, capacity)
            blocks.append(Block(_write(block.key, key, index), _write(block.value, value, index)))
            start += capacity
        return StackCache(tuple(blocks), self.length + jnp.sum(keep, axis=-1, dtype=jnp.int32))

    def grow(self, capacity: int) -> "StackCache":
        """Appends an empty block that brings the whole to `capacity`."""
        key = self.blocks[-1].key
        shape = (*key.shape[:3], capacity - self.capacity, key.shape[4])
        # Each by itself: zeros made like a sharded array would be whole on every device.
        empty = Block(*(constrain(jnp.zeros(shape, key.dtype), *AXES) for _ in Block._fields))
        return StackCache((*self.blocks, empty), self.length)

    def repack(self, capacity: int) -> "StackCache":
        """One block of that capacity, between two turns of a conversation; what is held must fit."""
        joined = [jnp.concatenate(parts, axis=3) for parts in zip(*self.blocks, strict=True)]
        room = ((0, 0), (0, 0), (0, 0), (0, max(0, capacity - self.capacity)), (0, 0))
        key, value = (constrain(jnp.pad(x, room)[:, :, :, :capacity], *AXES) for x in joined)
        return StackCache((Block(key, value),), self.length)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """Both stacks' caches. The shallow length is also the number of tokens seen: the next position."""

    shallow: StackCache
    deep: StackCache

    @property
    def nbytes(self) -> int:
        return self.shallow.nbytes + self.deep.nbytes


def _write(
    block: Float[Array, "L B G C E"], new: Float[Array, "L B G T E"], index: Int[Array, "B T"]
) -> Float[Array, "L B G C E"]:
    # One scatter with everything before the slot as batching dimensions: it stays local where batch or heads are
    # sharded, and writes whole rows of the cache as it lies, which no compiler has to transpose first.
    at = jnp.broadcast_to(index[None, :, None], new.shape[:4])[..., None]
    numbers = jax.lax.ScatterDimensionNumbers(
        update_window_dims=(4,),
        inserted_window_dims=(3,),
        scatter_dims_to_operand_dims=(3,),
        operand_batching_dims=(0, 1, 2),
        scatter_indices_batching_dims=(0, 1, 2),
    )
    return jax.lax.scatter(block, at, new.astype(block.dtype), numbers, mode="drop")
