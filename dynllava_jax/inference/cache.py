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

from dynllava_jax.kernels.layout import as_stored
from dynllava_jax.nn.constrain import constrain, per_shard

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
            inside = keep & (slots >= start) & (slots < start + capacity)
            index = jnp.where(inside, slots - start, -1)
            axes = (AXES, AXES, AXES, ("batch", None))
            blocks.append(per_shard(_write, block, key, value, index, axes=axes, out=AXES))
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
    block: Block, key: Float[Array, "L B G T E"], value: Float[Array, "L B G T E"], slots: Int[Array, "B T"]
) -> Block:
    """Puts each token into its slot; a slot of -1 lies elsewhere. One sample's slots rise by one.

    Sample by sample, a window that is read, changed and written back, which every compiler does where it lies.
    """
    capacity, width = block.key.shape[3], min(block.key.shape[3], key.shape[3])

    def one(row: Int[Array, ""], block: Block) -> Block:
        wanted = slots[row]
        first = jnp.min(jnp.where(wanted < 0, capacity, wanted))
        start = jnp.minimum(first, capacity - width)
        hit = start + jnp.arange(width)[:, None] == wanted
        source, stored = jnp.argmax(hit, axis=-1), jnp.any(hit, axis=-1)[:, None]

        def write(into: Float[Array, "L B G C E"], new: Float[Array, "L B G T E"]) -> Float[Array, "L B G C E"]:
            at = (0, row, 0, start, 0)
            old = jax.lax.dynamic_slice(into, at, (into.shape[0], 1, into.shape[2], width, into.shape[4]))
            fresh = jnp.take(jax.lax.dynamic_index_in_dim(new, row, axis=1), source, axis=3)
            return as_stored(jax.lax.dynamic_update_slice(into, jnp.where(stored, fresh, old), at))

        return Block(write(block.key, key), write(block.value, value))

    return jax.lax.fori_loop(0, block.key.shape[1], one, block)
