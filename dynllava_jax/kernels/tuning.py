"""Block sizes of the attention kernels: the one table, and where each number came from.

Measured on an H200 with jax 0.11.2: the Triton kernels in bfloat16 with heads of 128, and how a cache is read
(docs/benchmarks.md, "Tile sizes"). The others were not measured on hardware: they compiled without register spills and
fit the fast memory, by ahead-of-time compilation for A100, H100, v4, v5e, v5p and v6e; among those the larger block was
taken, where nothing else is said. `tests/kernels/test_policy_aot.py` and `test_decode.py` hold it: each head dimension
that is served, both dtypes, with and without a policy.
"""

import dataclasses

from dynllava_jax.kernels.target import Target

CHUNK = 256
"""Queries of one chunk of `chunked`: eight chunks of the longest sample of the paper; not measured."""


@dataclasses.dataclass(frozen=True)
class Walk:
    """How a program of a Triton kernel walks over a sequence.

    Attributes:
        rows: queries (in the pass for keys: keys) that it works on.
        step: keys (queries) that it takes at a time; divides `rows`.
        warps, stages: of the program, and of its pipelined loop.
    """

    rows: int
    step: int
    warps: int
    stages: int


@dataclasses.dataclass(frozen=True)
class GpuBlocks:
    """The three Triton kernels: forward, and backward for keys, values and policy, and for queries."""

    forward: Walk
    keys: Walk
    queries: Walk


# (GPU, bytes of a number, head dimension up to): shared memory of one block is 163 KiB on an A100, 227 KiB on an H100.
# Exact products of float32 numbers take no tensor cores but many registers: smaller tiles of them may spill as well as
# larger ones, and these spill for no head dimension, with jax 0.10.2, 0.11.2 and 0.12.0.1. In bfloat16 a backward tile
# of 64 x 64 with heads of 128 compiles for an A100 with jax 0.10.2, and spills with 0.12.0.1.
_FLOAT32 = GpuBlocks(Walk(64, 16, 8, 2), Walk(32, 32, 8, 2), Walk(32, 32, 8, 2))
_GPU = {
    ("A100", 2, 64): GpuBlocks(Walk(128, 64, 8, 3), Walk(64, 64, 8, 2), Walk(64, 64, 8, 2)),
    ("A100", 2, 128): GpuBlocks(Walk(128, 32, 8, 3), Walk(32, 32, 8, 2), Walk(32, 32, 8, 2)),
    ("A100", 4, 128): _FLOAT32,
    ("H100", 2, 64): GpuBlocks(Walk(128, 64, 8, 2), Walk(64, 64, 8, 2), Walk(64, 64, 8, 2)),
    # Measured: the fastest that spill nothing. With 4 warps two programs share a core, and one multiplies while the
    # other one takes exponentials.
    ("H100", 2, 128): GpuBlocks(Walk(64, 64, 4, 3), Walk(64, 32, 4, 3), Walk(64, 64, 4, 2)),
    ("H100", 4, 128): _FLOAT32,
}
GPU_EXACT_COLUMNS = 32
"""Columns of float32 rows that are multiplied at a time: with whole rows of 64 or 128 the products spill."""

_SAME = {"H200": "H100", "GH200": "H100"}
"""GPUs whose cores are those of another one."""

_TPU_SIDE = {2: 512, 4: 256}
"""Bytes of a number -> queries and keys of one tile.

In bfloat16, 1024 overflow the memory of a v5e and a v5p in the backward pass. In float32, 512 compile on all four
generations too, but take 11 to 14 seconds of a CPU, and 256 take 3 to 4: float32 is for comparisons, and compiling is
most of their time.
"""
_TPUS = ("TPU v4", "TPU v5 lite", "TPU v5", "TPU v5p", "TPU v6 lite")


@dataclasses.dataclass(frozen=True)
class GpuDecode:
    """How the Triton kernel reads a cache.

    Attributes:
        tile_bytes: of the keys of one tile, as many of values: `stages` of both fit the shared memory of an A100.
        keys: of one tile, at most: with more, the scores of a small head spill out of the registers.
        programs: as many are started where the batch has too few heads to fill a device; a guess.
        parts: of one head at most: one program brings them together.
        warps, stages: of its programs.
    """

    tile_bytes: int
    keys: int
    programs: int
    parts: int
    warps: int
    stages: int


GPU_DECODE = {2: GpuDecode(16384, 128, 512, 64, 4, 3), 4: GpuDecode(16384, 128, 512, 64, 8, 3)}
"""Bytes of a number -> how. Compiled for A100 and H100; with 4 warps float32 spills on an H100.

Bfloat16 was measured on an H200: 32 KiB and three stages are 1 % faster, and too much for an A100.
"""


@dataclasses.dataclass(frozen=True)
class ProductWalk:
    """How a program of `products_triton` reads a layer's weights.

    Attributes:
        columns: of each of its products.
        step: rows of the weights that it takes at a time.
        warps, stages: of the program, and of its pipelined loop.
    """

    columns: int
    step: int
    warps: int
    stages: int


@dataclasses.dataclass(frozen=True)
class GpuProducts:
    """The three Triton kernels of a layer's products, by the names of their methods."""

    rotated: ProductWalk
    gated: ProductWalk
    added: ProductWalk


GPU_PRODUCTS = GpuProducts(ProductWalk(32, 128, 4, 4), ProductWalk(32, 128, 4, 4), ProductWalk(32, 128, 4, 6))
"""Compiled for A100 and H100, not measured: an earlier form of `added` read its larger weights at 3.5 TB/s on an H200.

A core has 40 and 48 KiB of a program's weights on their way, and must have some 26 to take its part of an H200's
bandwidth; of 4096 columns, 32 for each are as many programs as there are cores.
"""


@dataclasses.dataclass(frozen=True)
class TpuDecode:
    """How the Mosaic kernel reads a cache.

    Attributes:
        keys: of one step, at most.
        step_bytes: of the keys of one step over several heads; with as many of values, each twice, a quarter of the
            smallest fast memory.
    """

    keys: int
    step_bytes: int


TPU_DECODE = TpuDecode(512, 2**20)
"""Compiled for v4, v5e, v5p and v6e."""


def gpu_blocks(target: Target, head_dim: int, itemsize: int) -> GpuBlocks:
    """Raises NotImplementedError for a GPU that is not in the table."""
    for word in target.kind.replace("-", " ").split():
        name = _SAME.get(word, word)
        for (known, size, largest), blocks in _GPU.items():
            if (known, size) == (name, itemsize) and head_dim <= largest:
                return blocks
    known = ", ".join(dict.fromkeys([*(name for name, _, _ in _GPU), *_SAME]))
    raise NotImplementedError(f"there are block sizes for {known}, none for {target.kind}")


def tpu_side(target: Target | None, itemsize: int) -> int:
    """Queries, and keys, of one tile of the Mosaic kernels; None for the interpreter.

    Raises:
        NotImplementedError: the kernels were never compiled for such a TPU.
    """
    if target is not None and target.kind not in _TPUS:
        raise NotImplementedError(f"it was compiled for {', '.join(_TPUS)}, never for {target.kind}")
    return _TPU_SIDE[itemsize]
