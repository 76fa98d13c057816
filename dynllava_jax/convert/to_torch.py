"""Weights out: a model checkpoint or a training run becomes a PyTorch folder, official or llava-hf."""

import collections
import contextlib
import dataclasses
import functools
import json
import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from dynllava_jax.checkpoint import hashes
from dynllava_jax.checkpoint.paths import AnyPath, as_path, files_below, reachable, size_of
from dynllava_jax.checkpoint.prefetch import ahead
from dynllava_jax.checkpoint.source import Source, open_source
from dynllava_jax.config.model import ModelConfig
from dynllava_jax.convert import export_files, export_plan, space
from dynllava_jax.convert.export_plan import Family, Plan
from dynllava_jax.convert.plan import cast, named_dtype
from dynllava_jax.convert.safetensors_writer import SHARD_BYTES, SafetensorsWriter, Spec
from dynllava_jax.convert.torch_source import has_tokenizer
from dynllava_jax.convert.tower import FOLDER
from dynllava_jax.convert.unfinished import check_free, unfinished
from dynllava_jax.data.tokenizer import Tokenizer

PREDICTORS = ("image_predictor", "output_predictor", "instruct_predictor")


@dataclasses.dataclass(frozen=True)
class Report:
    """What an export wrote.

    Attributes:
        layout: the family of names written.
        tensors: how many; left_out: leaves and carried tensors that the target has no use for.
        nbytes: of the tensors; seconds: wall time; resumed: tensors that an interrupted run had written.
        notes: decisions that a user should know.
    """

    dst: str
    layout: str
    tensors: int
    left_out: int
    nbytes: int
    seconds: float
    resumed: int
    notes: tuple[str, ...]


def export(
    src: str | os.PathLike,
    dst: str | os.PathLike,
    *,
    layout: Family,
    dtype: str | None = None,
    without_predictors: bool = False,
    shard_bytes: int = SHARD_BYTES,
    on_start: Callable[[int], None] = lambda nbytes: None,
    on_tensor: Callable[[int], None] = lambda nbytes: None,
) -> Report:
    """Writes SRC as a PyTorch folder at DST, a part of the model in memory at a time.

    A model that was converted from the same family gets its own tensor names, dtypes and files back. A run that was
    killed goes on where it was when it is started again.

    Args:
        src: a model checkpoint, or a training run or one of its checkpoints.
        dst: must not exist, or be empty.
        layout: "official" or "hf".
        dtype: one of `config.check.DTYPES`; None keeps what is stored.
        without_predictors: write the dense model and leave the predictors out.
        shard_bytes: of one file at most.
        on_start: is told the bytes to come.
        on_tensor: is told the bytes of each tensor.

    Raises:
        InputError: no such checkpoint, a damaged one, what the layout cannot express (by name), no room on the disk,
            DST is taken. Nothing is left at DST.
    """
    started = time.monotonic()
    dst = reachable(as_path(dst))
    check_free(dst)
    wanted = None if dtype is None else named_dtype(dtype)
    source = open_source(src)
    notes: list[str] = []
    config, without = _exported(source, without_predictors, notes)
    names = export_plan.recorded(source.facts)
    target = export_plan.chosen(layout, names)
    same = names is not None and names.family == target.family
    files = {name: path.read_bytes() for name, path in files_below(source.files)}
    vocab_size = None
    if layout == "hf":
        small, vocab_size = export_files.llava_hf(config, files, same_family=same, free=_first_free(source))
        if vocab_size > config.decoder.vocab_size:
            notes.append(f"rows for <image> added to the embedding and the head, {vocab_size} in all")
    else:
        small = export_files.official(config, files, same_family=same, apart=target.apart)
        tower = json.loads(small["config.json"])["mm_vision_tower"]
        notes.append(
            f"the official code reads the vision tower from mm_vision_tower, {tower!r}"
            + (f"; this checkpoint's own lies in {dst / FOLDER}" if target.apart else "")
        )
    carried = source.carried()
    plan = export_plan.make_plan(
        config,
        target,
        names,
        {name: Spec(name, np.dtype(source.dtypes[name]), shape) for name, shape in source.shapes.items()},
        [Spec(name, array.dtype, array.shape) for name, array in carried.items()],
        dtype=wanted,
        vocab_size=vocab_size,
        without=without,
        single=json.loads(small["config.json"]).get("mm_projector_type", "linear"),
    )
    if names is None or not carried:
        notes.append("the tower's unused layers are not in this checkpoint and are left out")
    nbytes = sum(tensor.spec.nbytes for tensor in plan.tensors)
    identity = _identity(source, plan, shard_bytes)
    with unfinished(dst, identity) as partial:
        bucket = None if isinstance(dst, Path) else dst
        if bucket is None:
            space.check(partial, nbytes)
        else:
            largest = max([shard_bytes, *(tensor.spec.nbytes for tensor in plan.tensors)])
            space.check(partial, min(nbytes, largest), "set TMPDIR to a folder on a disk that has more")
        resumed = _write(partial, source, carried, plan, shard_bytes, on_start, on_tensor, bucket)
        for name, data in small.items():
            (partial / name).parent.mkdir(exist_ok=True)
            (partial / name).write_bytes(data)
    return Report(
        str(dst),
        target.layout.name,
        len(plan.tensors),
        len(plan.left_out),
        nbytes,
        time.monotonic() - started,
        resumed,
        tuple(notes),
    )


def _exported(source: Source, without_predictors: bool, notes: list[str]) -> tuple[ModelConfig, tuple[str, ...]]:
    """The config to express, and the parts that are left out."""
    made_up = tuple(source.facts.get("fresh", ()))
    if "projector" in made_up:  # that of a language model alone; without one the target's code loads no LLaVA
        notes.append("the projector is the one that conversion made up; it was never trained")
    fresh = tuple(part for part in made_up if part in PREDICTORS)
    if fresh and not without_predictors:
        notes.append(f"{' and '.join(fresh)} left out: conversion made them up, and they were never trained")
    without = PREDICTORS if without_predictors else fresh
    selectors = {part.replace("predictor", "selector"): None for part in without}
    return dataclasses.replace(
        source.config, sparsity=dataclasses.replace(source.config.sparsity, **selectors)
    ), without


def _first_free(source: Source) -> int | None:
    """The id behind the tokenizer's own, if there is one."""
    return Tokenizer.load(source.files).vocab_size if has_tokenizer(source.files) else None


def _by_file(
    tensors: list[export_plan.Tensor], writers: dict[str, SafetensorsWriter]
) -> list[list[export_plan.Tensor]]:
    files = collections.defaultdict(list)
    for tensor in tensors:
        files[tensor.folder, writers[tensor.folder].file_of(tensor.name)].append(tensor)
    return list(files.values())


def _is_there(folder: AnyPath, name: str, size: int) -> bool:
    """Whether a bucket has all of a file."""
    return (folder / name).exists() and size_of(folder / name) == size


def _send(folder: Path, dst: AnyPath, file: Path) -> None:
    """A finished shard goes to its bucket and leaves the local disk."""
    target = dst / str(file.relative_to(folder))
    target.parent.mkdir(parents=True, exist_ok=True)
    with file.open("rb") as data, target.open("wb") as out:
        shutil.copyfileobj(data, out, 1 << 24)
    file.unlink()


def _write(
    folder: Path,
    source: Source,
    carried: dict[str, np.ndarray],
    plan: Plan,
    shard_bytes: int,
    on_start: Callable[[int], None],
    on_tensor: Callable[[int], None],
    bucket: AnyPath | None,
) -> int:
    """Fills the files; returns how many tensors were there already.

    For a bucket, one file after the other, each of which goes there when it is full: no more than one is here at a
    time, whatever order a source is read in. What two files share of it is read twice.
    """
    writers: dict[str, SafetensorsWriter] = {}
    with contextlib.ExitStack() as open_files:
        for where in sorted({tensor.folder for tensor in plan.tensors}):
            (folder / where).mkdir(exist_ok=True)
            specs = [tensor.spec for tensor in plan.tensors if tensor.folder == where]
            sent = (lambda name, size: False) if bucket is None else functools.partial(_is_there, bucket / where)
            send = None if bucket is None else functools.partial(_send, folder, bucket)
            writers[where] = SafetensorsWriter(folder / where, specs, shard_bytes, send, sent)
            open_files.callback(writers[where].close)
        left = [tensor for tensor in plan.tensors if tensor.name not in writers[tensor.folder].done]
        on_start(sum(tensor.spec.nbytes for tensor in left))

        def put(tensor: export_plan.Tensor, value: np.ndarray) -> None:
            made = cast(value, tensor.spec.dtype if value.dtype != tensor.spec.dtype else None, tensor.name)
            writers[tensor.folder].put(tensor.name, tensor.make(made))
            on_tensor(tensor.spec.nbytes)

        for part in [left] if bucket is None else _by_file(left, writers):
            by_leaf = collections.defaultdict(list)  # two of a tied embedding, where the head's copy came along
            for tensor in part:
                if tensor.rule is not None:
                    by_leaf[tensor.rule.leaf].append(tensor)
            with ThreadPoolExecutor(2) as pool:  # transposing and writing
                for leaves in ahead(source.read(by_leaf.keys())) if by_leaf else ():
                    wanted = [(tensor, leaf) for leaf in leaves.keys() & by_leaf.keys() for tensor in by_leaf[leaf]]
                    for _ in pool.map(lambda pair, leaves=leaves: put(pair[0], leaves[pair[1]]), wanted):
                        pass
                    del leaves
            for tensor in part:
                if tensor.carried is not None:
                    put(tensor, carried[tensor.carried])
        for writer in writers.values():
            writer.finish()
    return len(plan.tensors) - len(left)


def _identity(source: Source, plan: Plan, shard_bytes: int) -> str:
    """Changes when any byte to write does."""
    specs = [(tensor.folder, tensor.name, str(tensor.spec)) for tensor in plan.tensors]
    return hashes.hash_bytes(repr((source.content_hash, specs, shard_bytes)).encode())
