"""A checksum of an array that does not depend on how the array is cut into shards.

Every element is mixed with its own index into 32 bits; the checksum is the sum of the mixed values and a second sum in
which the index weighs them, both modulo 2^32. Sums commute: whatever mesh holds the array, its devices add up what they
have, and one all-reduce of two integers gives the value that any other mesh, process count or a single host finds. A
hash of bytes would hold only for the shards of the mesh that saved; on another mesh, no process may ever see such a
shard whole.

The mixing is a bijection and the weights are odd, so a change within one element, such as a flipped bit, always changes
both sums; other damage goes unseen with a chance below 2^-32. This protects against damage, not against forgery.

The sums are computed where the array is. A save only enqueues them, so the training loop does not wait, and they cover
the whole way from device memory to the disk and back, whatever the format in between.
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Shaped, UInt32

ALGORITHM = "two sums of 32-bit mixes"

_ODD = 0x9E3779B1
"""Its powers weigh the index along each dimension."""

_BITS = {1: np.uint8, 2: np.uint16, 4: np.uint32}

_CHUNK = 1 << 15
"""Elements that a thread mixes at a time: they stay in its cache."""

Sums = tuple[UInt32[Array, ""], UInt32[Array, ""]]


@jax.jit
def on_device(x: Shaped[Array, "..."]) -> Sums:
    """The two sums of an array on its devices, enqueued and not waited for."""
    bits = x.astype(jnp.uint8) if x.dtype == bool else jax.lax.bitcast_convert_type(x, _bits(x.dtype))
    index = jnp.zeros(x.shape, jnp.uint32)
    for d in range(x.ndim):
        index += jax.lax.broadcasted_iota(jnp.uint32, x.shape, d) * _weight(d)
    mixed = _mix(bits.astype(jnp.uint32) ^ index)
    # Both in one pass: two reductions would each have the mixed values in memory where compilers do not fuse them.
    return jax.lax.reduce(
        (mixed, mixed * (index | np.uint32(1))),
        (np.uint32(0), np.uint32(0)),
        lambda a, b: (a[0] + b[0], a[1] + b[1]),
        tuple(range(x.ndim)),
    )


def on_host(x: Shaped[np.ndarray, "..."]) -> str:
    """The checksum of a host array, computed on several threads."""
    *outer, columns = x.shape or (1,)
    bits = np.ascontiguousarray(x).view(_bits(x.dtype)).reshape(-1, columns)
    rows = np.zeros(outer, np.uint32)
    for d, i in enumerate(np.indices(outer, np.uint32, sparse=True)):
        rows = rows + i * _weight(d)
    rows = rows.reshape(-1, 1)
    height, width = max(1, _CHUNK // columns), _CHUNK

    def part(corner: tuple[int, int]) -> tuple[int, int]:
        i, j = corner
        chunk = bits[i : i + height, j : j + width]
        columns = np.arange(j, j + chunk.shape[1], dtype=np.uint32) * _weight(len(outer))
        index = rows[i : i + height] + columns
        mixed = _mix(chunk ^ index)
        index |= np.uint32(1)
        return int(np.sum(mixed, dtype=np.uint32)), int(np.sum(np.multiply(mixed, index, out=index), dtype=np.uint32))

    corners = [(i, j) for i in range(0, len(bits), height) for j in range(0, columns, width)]
    with ThreadPoolExecutor() as pool:
        parts = list(pool.map(part, corners))
    return _text(sum(first for first, _ in parts) % 2**32, sum(second for _, second in parts) % 2**32)


def describe(leaves: Mapping[str, jax.Array]) -> dict[str, dict[str, Any]]:
    """Shape, dtype and sums of each leaf; collective, like any computation.

    The sums are computed on the leaves' devices. They are enqueued and not waited for; `finish` does that.
    """
    return {
        name: {"checksum": on_device(leaf), "shape": list(leaf.shape), "dtype": leaf.dtype.name}
        for name, leaf in leaves.items()
    }


def finish(described: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """What `describe` gave with the checksums as text."""
    return {name: {**entry, "checksum": _text(*map(int, entry["checksum"]))} for name, entry in described.items()}


def _mix(h: Any) -> Any:
    """A bijection of 32-bit words in which every bit depends on every other (the finaliser of MurmurHash3)."""
    h ^= h >> np.uint32(16)
    h *= np.uint32(0x85EBCA6B)
    h ^= h >> np.uint32(13)
    h *= np.uint32(0xC2B2AE35)
    h ^= h >> np.uint32(16)
    return h


def _weight(dimension: int) -> np.uint32:
    return np.uint32(pow(_ODD, dimension + 1, 2**32))


def _bits(dtype: Any) -> Any:
    dtype = np.dtype(dtype)
    if dtype.itemsize not in _BITS:
        raise ValueError(f"no checksum for {dtype} arrays")
    return _BITS[dtype.itemsize]


def _text(first: int, second: int) -> str:
    return f"{first:08x}{second:08x}"
