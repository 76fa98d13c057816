"""Block sizes of the attention kernels: the one table, and where each number came from.

None was measured on hardware yet. What stands here compiled without register spills and fits the fast memory, by
ahead-of-time compilation with jax 0.10.2 for A100, H100, v5e, v5p and v6e; among those the larger block was taken.
`tests/kernels/test_policy_aot.py` holds it for the shapes it names. Not compiled: v4.
"""

import dataclasses

from dynllava_jax.kernels.target import Target

CHUNK = 256
"""Queries of one chunk of `chunked`: eight chunks of the longest sample of the paper; not measured."""


@dataclasses.dataclass(frozen=True)
class GpuBlocks:
    """Blocks of the Triton kernels.

    Attributes:
        rows, keys: queries and keys of one tile of the forward pass; `keys` divides `rows`.
        warps, stages: of its programs.
        side: queries and keys of one tile of the backward pass.
        side_warps, side_stages: of its programs.
    """

    rows: int
    keys: int
    warps: int
    stages: int
    side: int
    side_warps: int
    side_stages: int


# (GPU, bytes of a number, head dimension up to): shared memory of one block is 163 KiB on an A100, 227 KiB on an H100.
_GPU = {
    ("A100", 2, 64): GpuBlocks(128, 64, 8, 3, 64, 8, 2),
    ("A100", 2, 128): GpuBlocks(128, 32, 8, 3, 64, 8, 2),
    ("A100", 4, 64): GpuBlocks(64, 16, 8, 2, 32, 8, 2),
    ("A100", 4, 128): GpuBlocks(64, 16, 8, 2, 16, 4, 2),
    ("H100", 2, 64): GpuBlocks(128, 64, 8, 2, 64, 8, 2),
    ("H100", 2, 128): GpuBlocks(128, 64, 8, 2, 64, 8, 2),
    ("H100", 4, 64): GpuBlocks(64, 16, 8, 2, 32, 8, 2),
    ("H100", 4, 128): GpuBlocks(64, 16, 8, 2, 16, 4, 2),
}
_SAME = {"H200": "H100", "GH200": "H100"}
"""GPUs whose cores are those of another one."""

_TPU_SIDE = {2: 512, 4: 256}
"""Bytes of a number -> queries and keys of one tile; 1024 overflows the memory of a v5p in the backward pass."""
_TPUS = ("TPU v4", "TPU v5 lite", "TPU v5", "TPU v5p", "TPU v6 lite")


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
