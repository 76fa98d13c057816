"""`dynllava convert make-random`: a PyTorch folder with the true shapes of a preset and random weights.

For measuring conversion, memory and loading at full size without a download. The same seed gives the same bytes.
"""

import contextlib
import dataclasses
import functools
import os
import time
from collections.abc import Callable, Iterator

import numpy as np

from dynllava_jax.checkpoint.leaves import leaf_shapes
from dynllava_jax.checkpoint.paths import as_path
from dynllava_jax.config.model import ModelConfig
from dynllava_jax.convert import export_files, export_plan, space
from dynllava_jax.convert.export_plan import Family, Tensor
from dynllava_jax.convert.plan import named_dtype
from dynllava_jax.convert.safetensors_writer import SHARD_BYTES, SafetensorsWriter, Spec
from dynllava_jax.convert.table import TOWER_ALONE, unused_tower_rules
from dynllava_jax.convert.tower import FOLDER
from dynllava_jax.convert.unfinished import check_free, unfinished
from dynllava_jax.errors import InputError

_POOL = 1 << 22
"""Random values drawn once; every tensor repeats them from a place of its own, so that the disk is the limit."""


@dataclasses.dataclass(frozen=True)
class Report:
    """What was made: where, how many tensors and bytes, in which time."""

    dst: str
    tensors: int
    nbytes: int
    seconds: float


def make_random(
    config: ModelConfig,
    dst: str | os.PathLike,
    *,
    layout: Family = "official",
    dtype: str = "float16",
    seed: int = 0,
    shard_bytes: int = SHARD_BYTES,
    on_start: Callable[[int], None] = lambda nbytes: None,
    on_tensor: Callable[[int], None] = lambda nbytes: None,
) -> Report:
    """Writes all tensors that a released checkpoint of this model has, unused tower layers included.

    Args:
        config: such as a preset.
        dst: must not exist, or be empty.
        layout: official: with the tower in `DST/vision_tower`, as LLaVA-1.5 was released; or hf.
        dtype: of all weights.
        seed: of the values.
        shard_bytes: of one file at most.
        on_start: is told the bytes to come.
        on_tensor: is told the bytes of each tensor.

    Raises:
        InputError: a seed below 0, no such dtype or layout, the layout cannot express the model, no room on the disk,
            DST is taken.
    """
    started = time.monotonic()
    if seed < 0:
        raise InputError(f"seed must be 0 or more, not {seed}.")
    kind = named_dtype(dtype)
    dst = as_path(dst)
    check_free(dst)
    names = export_plan.chosen(layout, None)
    vocab_size = None
    if layout == "hf":
        small, vocab_size = export_files.llava_hf(config, {}, same_family=False)
    else:
        small = export_files.official(config, {}, same_family=False, apart=True)
    leaves = {name: Spec(name, kind, shape) for name, shape in leaf_shapes(config).items()}
    alone = export_plan.Names(names.layout, TOWER_ALONE[0])
    carried = [Spec(f"{FOLDER}/{name}", kind, shape) for name, shape in _unused_in_tower(alone.tower, config)]
    plan = export_plan.make_plan(config, names, alone, leaves, carried, vocab_size=vocab_size)
    nbytes = sum(tensor.spec.nbytes for tensor in plan.tensors)
    on_start(nbytes)
    pool = np.random.default_rng(seed).standard_normal(_POOL, np.float32).astype(kind)
    # Arithmetic of half floats is slow; few tensors differ in scale.
    scaled = functools.cache(lambda scale: pool * kind.type(scale))
    with unfinished(dst, f"random {seed} {dtype} {layout} {shard_bytes} {config}") as partial:
        space.check(partial, nbytes)
        for folder in sorted({tensor.folder for tensor in plan.tensors}):
            (partial / folder).mkdir(exist_ok=True)
            mine = [tensor for tensor in plan.tensors if tensor.folder == folder]
            writer = SafetensorsWriter(partial / folder, [tensor.spec for tensor in mine], shard_bytes)
            with contextlib.closing(writer):
                for number, tensor in enumerate(mine):
                    if tensor.name not in writer.done:
                        writer.put(tensor.name, _values(scaled, tensor, number))
                    on_tensor(tensor.spec.nbytes)
                writer.finish()
        for name, data in small.items():
            (partial / name).parent.mkdir(exist_ok=True)
            (partial / name).write_bytes(data)
    return Report(str(dst), len(plan.tensors), nbytes, time.monotonic() - started)


def _unused_in_tower(prefix: str, config: ModelConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of what every released tower has and no LLaVA uses."""
    whole = dataclasses.replace(config.vision, select_layer=config.vision.num_layers)
    shapes = leaf_shapes(dataclasses.replace(config, vision=whole))  # even of a tower none of whose layers is read
    for rule in unused_tower_rules(prefix, config):
        yield rule.source, rule.transform.source_shape(shapes[rule.leaf])
    for part in ("weight", "bias"):
        yield f"{prefix}post_layernorm.{part}", (config.vision.hidden_size,)


def _values(scaled: Callable[[float], np.ndarray], tensor: Tensor, number: int) -> np.ndarray:
    """Weights of the size that keeps activations finite; norms near one."""
    shape = tensor.spec.shape
    scale = float(np.prod(shape[1:], dtype=np.int64)) ** -0.5 if len(shape) > 1 else 0.1
    first = number * 7919 % (_POOL // 2)
    values = np.resize(scaled(scale)[first:], shape)
    if len(shape) == 1 and "norm" in tensor.name and tensor.name.endswith("weight"):
        values += values.dtype.type(1)
    return values
