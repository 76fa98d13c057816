"""A checkpoint of either kind, as the leaves that a model checkpoint holds; adapters are merged into their kernels."""

import dataclasses
import functools
import logging
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import numpy as np
from etils import epath

from dynllava_jax.checkpoint import adapters, checksums, hashes, orbax_items, store, trained
from dynllava_jax.checkpoint.leaves import Target, nbytes, targets
from dynllava_jax.checkpoint.paths import AnyPath, as_path, reachable
from dynllava_jax.config.model import ModelConfig
from dynllava_jax.errors import InputError

_log = logging.getLogger(__name__)

_ITEMS = (trained.PARAMS, trained.FROZEN)

_GROUP = 1 << 28
"""Bytes of small parameters that are read together."""


@dataclasses.dataclass(frozen=True)
class Source:
    """Where weights are read from.

    Attributes:
        config: the model that the leaves fill.
        dtype: of the weights, the widest if there are several.
        facts: what conversion noted, such as `fresh` (predictors without trained weights).
        files: folder with the tokenizer and the source's own JSON files.
        content_hash: changes when a leaf changes.
        shapes, dtypes: of all leaves.
        read: yields these leaves, checked, a part of the model at a time; others may be among them.
        carried: reads what the model does not use and export writes back, see `store`.
    """

    config: ModelConfig
    dtype: str
    facts: Mapping[str, Any]
    files: AnyPath
    content_hash: str
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, str]
    read: Callable[[Collection[str]], Iterator[dict[str, np.ndarray]]]
    carried: Callable[[], dict[str, np.ndarray]]


def open_source(path: str | os.PathLike) -> Source:
    """Opens a model checkpoint or a training checkpoint, which is a step folder, or a work folder and means its newest.

    Raises:
        InputError: neither is there, or a file of it is damaged or missing.
    """
    folder = reachable(as_path(path, "The name of a checkpoint"))
    if found := trained.find(epath.Path(folder)):
        return _training(found)
    if (folder / trained.CHECKPOINTS).is_dir():
        raise InputError(
            f"{folder} is a work folder in which no checkpoint is whole yet; let the training go on first."
        )
    return _model(folder)


def _model(path: AnyPath) -> Source:
    info = store.read_info(path)
    stored = {
        leaf: entry for item, leaves in info.items.items() if item != store.CARRIED for leaf, entry in leaves.items()
    }

    def read(wanted: Collection[str]) -> Iterator[dict[str, np.ndarray]]:
        yield from store.read_items(path, info, wanted)

    return Source(
        config=info.config,
        dtype=info.dtype,
        facts=info.facts,
        files=path / store.FILES,
        content_hash=info.content_hash,
        shapes={leaf: tuple(entry["shape"]) for leaf, entry in stored.items()},
        dtypes={leaf: entry["dtype"] for leaf, entry in stored.items()},
        read=read,
        carried=lambda: store.read_carried(path, info),
    )


def _training(path: epath.Path) -> Source:
    try:
        info = trained.read_info(path, _ITEMS)
    except trained.DamageError as error:
        raise _or_else(error, path) from None
    everything = {name: (item, entry) for item in _ITEMS for name, entry in info.items.get(item, {}).items()}
    low_rank = {name: place for name, place in everything.items() if adapters.is_adapter(name)}
    stored = {name: place for name, place in everything.items() if name not in low_rank}
    by_path = {target.path: target for target in targets(info.config)}
    shapes = {name: tuple(entry["shape"]) for name, (_, entry) in low_rank.items()}
    pairs = adapters.pairs(shapes, by_path, info.lora, str(path))
    # Parameters that the model lacks keep their name, and are refused where they do not fit.
    filled = {name: by_path.get(name) or _as_it_is(name, entry) for name, (_, entry) in stored.items()}
    own = {leaf: target.leaf_shape for target in filled.values() for leaf in target.leaves}
    absent = {leaf for target in by_path.values() if target.path not in stored for leaf in target.leaves}
    init = _init(path, info, absent) if absent else None

    def unmerged(wanted: Collection[str]) -> Iterator[dict[str, np.ndarray]]:
        for names in _groups(stored, [name for name in stored if not {*filled[name].leaves}.isdisjoint(wanted)]):
            leaves: dict[str, np.ndarray] = {}
            for name, array in _load(path, stored, names).items():
                leaves |= _by_leaf(filled[name], array)
            yield leaves
        if init is not None:
            for leaves in init.read(absent.intersection(wanted)):
                yield {leaf: array for leaf, array in leaves.items() if leaf in absent}

    def factors(wanted: Collection[str]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """All at once: they are a few hundredths of the model."""
        touched = {kernel: pair for kernel, pair in pairs.items() if not {*by_path[kernel].leaves}.isdisjoint(wanted)}
        arrays: dict[str, np.ndarray] = {}
        for names in _groups(low_rank, [name for pair in touched.values() for name in pair]):
            arrays |= _load(path, low_rank, names)
        found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for kernel, pair in touched.items():
            a, b = (_by_leaf(by_path[kernel], arrays[name]) for name in pair)
            found |= {leaf: (a[leaf], b[leaf]) for leaf in a}
        return found

    def read(wanted: Collection[str]) -> Iterator[dict[str, np.ndarray]]:
        low = factors(wanted)
        scale = 0.0 if info.lora is None else info.lora.scale
        for leaves in unmerged(wanted):
            yield {
                leaf: adapters.merged(array, *low[leaf], scale) if leaf in low else array
                for leaf, array in leaves.items()
            }

    inherited = [] if init is None else [leaf for leaf in absent if leaf in init.shapes]
    dtypes = {leaf: entry["dtype"] for name, (_, entry) in stored.items() for leaf in filled[name].leaves}
    dtypes |= {leaf: "float32" for kernel in pairs for leaf in by_path[kernel].leaves}  # merged
    if init is not None:
        own |= {leaf: init.shapes[leaf] for leaf in inherited}
        dtypes |= {leaf: init.dtypes[leaf] for leaf in inherited}
    # Predictors that conversion had to make up are no longer untrained once they were trained.
    learned = {name.partition("/")[0] for name, (item, _) in stored.items() if item == trained.PARAMS}
    fresh = [name for name in info.facts.get("fresh", ()) if name not in learned]
    content = {name: entry["checksum"] for name, (_, entry) in sorted(everything.items())}
    return Source(
        config=info.config,
        dtype=max(dtypes.values(), key=lambda dtype: (np.dtype(dtype).itemsize, dtype)),
        facts={**info.facts, "fresh": fresh},
        files=as_path(trained.work_folder(path) / trained.FILES),
        content_hash=hashes.hash_bytes(repr((content, info.init, info.lora)).encode()),
        shapes=own,
        dtypes=dtypes,
        read=read,
        carried=functools.partial(_left_behind, path, info) if init is None else init.carried,
    )


def _by_leaf(target: Target, array: np.ndarray) -> dict[str, np.ndarray]:
    """A parameter, or what belongs to it, as its leaves."""
    return dict(zip(target.leaves, array if target.stacked else (array,), strict=True))


def _as_it_is(name: str, entry: Mapping[str, Any]) -> Target:
    return Target(name, tuple(entry["shape"]), (name,), False)


def _init(path: epath.Path, info: trained.Info, absent: Collection[str]) -> Source:
    """The checkpoint that frozen parameters came from, unchanged."""
    parts = ", ".join(sorted({leaf.partition("/")[0] for leaf in absent}))
    if not info.init:
        raise InputError(f"{path} lacks the parameters of {parts} and names no checkpoint that has them.")
    link = trained.work_folder(path) / trained.INIT
    places = [place for place in (epath.Path(info.init["path"]), link) if place.exists()]
    if not places:
        raise InputError(
            f"{path} holds the trained parameters only; the frozen ones ({parts}) come from {info.init['path']}, which "
            f"is not there: put it back, or link it as {link}."
        )
    source = open_source(str(places[0]))
    if source.content_hash != info.init["content_hash"]:
        raise InputError(
            f"{places[0]} is not the checkpoint that {path} was trained from: its content differs; put the original "
            f"there, or link it as {link} and move this one away."
        )
    return source


def _left_behind(path: epath.Path, info: trained.Info) -> dict[str, np.ndarray]:
    """What the checkpoint that a run began with carries; nothing where it is gone: the model is whole without."""
    try:
        return _init(path, info, ()).carried() if info.init else {}
    except InputError as error:
        _log.warning("what PyTorch's checkpoint had beside the model is left out: %s", error)
        return {}


def _groups(stored: Mapping[str, tuple[str, Any]], names: list[str]) -> Iterator[list[str]]:
    """Names of one item each, together as large as one read should be."""
    group: list[str] = []
    size = 0
    for name in names:
        item, entry = stored[name]
        more = nbytes(entry["shape"], entry["dtype"])
        if group and (size + more > _GROUP or item != stored[group[0]][0]):
            yield group
            group, size = [], 0
        group.append(name)
        size += more
    if group:
        yield group


def _load(path: epath.Path, stored: Mapping[str, tuple[str, Any]], names: list[str]) -> dict[str, np.ndarray]:
    item = stored[names[0]][0]
    arrays = orbax_items.load_some(path, item, {name: stored[name][1] for name in names})
    wrong = [name for name, array in arrays.items() if checksums.on_host(array) != stored[name][1]["checksum"]]
    try:
        trained.check_arrays(path / item, wrong)
    except trained.DamageError as error:
        raise _or_else(error, path) from None
    return arrays


def _or_else(error: trained.DamageError, path: epath.Path) -> InputError:
    """The same error, with the way out."""
    others = [str(path.parent / str(step)) for step in trained.steps(path.parent) if str(step) != path.name]
    way_out = f"load {others[-1]} instead." if others else "there is no other checkpoint beside it."
    return InputError(f"{error}; {way_out}")
