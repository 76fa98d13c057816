"""PyTorch weights in: one folder of an official or llava-hf checkpoint becomes one model checkpoint."""

import dataclasses
import functools
import math
import os
import shlex
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Literal, get_args

import numpy as np

from dynllava_jax.checkpoint import hashes, store
from dynllava_jax.checkpoint.leaves import SELECTORS, Target, item_of, leaf_shapes, targets
from dynllava_jax.checkpoint.load import ShardingRule, fresh_parameters, leaf_shardings
from dynllava_jax.checkpoint.paths import AnyPath, as_path, reachable
from dynllava_jax.config.hf import from_hf
from dynllava_jax.config.json_file import wrong
from dynllava_jax.config.model import ModelConfig, TextPrep
from dynllava_jax.convert import space
from dynllava_jax.convert import tower as towers
from dynllava_jax.convert.hub import locate
from dynllava_jax.convert.plan import Plan, Step, make_plan, named_dtype
from dynllava_jax.convert.read_torch import TorchWeights, read_json
from dynllava_jax.convert.table import OFFICIAL
from dynllava_jax.convert.torch_source import TorchSource, is_base, open_torch
from dynllava_jax.convert.tower import Tower
from dynllava_jax.data.prompt import round_ids
from dynllava_jax.data.templates import get_template
from dynllava_jax.data.tokenizer import FILES as TOKENIZER_FILES
from dynllava_jax.data.tokenizer import Tokenizer
from dynllava_jax.errors import InputError, shown, some

Preference = Literal["given", "inside"]

_PROJECTOR = "projector/"
_PIECE = 1 << 18


@dataclasses.dataclass(frozen=True)
class Report:
    """What a conversion did.

    Attributes:
        layout: the family of names that SRC follows.
        tensors, carried, dropped: how many source tensors were used, kept for export, and left out.
        fresh: predictors initialised because SRC has none.
        nbytes: of the leaves written; seconds: wall time.
        dtypes: how many leaves have which dtype.
        notes: decisions that a user should know.
    """

    dst: str
    layout: str
    tensors: int
    carried: int
    dropped: int
    fresh: tuple[str, ...]
    nbytes: int
    seconds: float
    dtypes: dict[str, int]
    notes: tuple[str, ...]


def convert(
    src: str | os.PathLike,
    dst: str | os.PathLike,
    *,
    vision_tower: str | os.PathLike | None = None,
    prefer_tower: Preference | None = None,
    dtype: str | None = None,
    template: str = "vicuna_v1",
    predictors: bool = True,
    base: str | os.PathLike | None = None,
    sharding: ShardingRule | None = None,
    on_start: Callable[[int], None] = lambda nbytes: None,
    on_item: Callable[[int], None] = lambda nbytes: None,
) -> Report:
    """Converts SRC into a model checkpoint at DST. Tensors stream one decoder layer at a time.

    Args:
        src: folder with config.json and weights (safetensors or .bin, one file or shards with an index), here or
            `gs://…`; a name on the Hugging Face hub; or a folder of LoRA adapters or a projector alone, with `base`.
        dst: must not exist, or be empty.
        vision_tower: a CLIPVisionModel or CLIPModel folder.
        prefer_tower: which tower to use where a given one and the one inside SRC differ.
        dtype: one of `config.check.DTYPES`; None keeps each tensor as stored.
        template: the conversation template, which PyTorch checkpoints do not record.
        predictors: give a base LLaVA freshly initialised predictors; otherwise it stays a dense model.
        base: the model that adapters or a projector in `src` were trained on.
        sharding: where the parameters will be, such as `lambda model: param_shardings(model, mesh, model.config)`:
            they are written from there, in the pieces of that mesh; None: from the host, whole.
        on_start: is told the bytes to come.
        on_item: is told the bytes of each part written.

    Raises:
        InputError: anything wrong with SRC, the tower or DST, in one sentence; nothing is left at DST.
    """
    started = time.monotonic()
    dst = reachable(as_path(dst))
    store.check_free(dst)
    target = None if dtype is None else named_dtype(dtype)
    if prefer_tower not in (None, *get_args(Preference)):
        raise InputError(f"prefer_tower must be one of {', '.join(get_args(Preference))}, not {prefer_tower!r}.")
    notes: list[str] = []
    source = open_torch(locate(src), None if base is None else locate(base), notes)
    own, given = _find_towers(source, vision_tower, notes)
    read = functools.partial(_config, source, template=template, round_ids=_round_ids(source, template, notes))
    tower, config = _choose_tower(source, own, given, prefer_tower, read, notes)
    if _preprocessor(source, tower) is None:
        notes.append("no preprocessor_config.json: CLIP's mean, deviation and the tower's image size are taken")
    untrained = is_base(source)
    if untrained and predictors:
        learned = dataclasses.replace(config.sparsity, image_selector="learned", output_selector="learned")
        config = dataclasses.replace(config, sparsity=learned)
    if not untrained and not predictors:
        notes.append("its predictors are its own and were kept: --no-predictors is about those that a base LLaVA lacks")
    shardings = {} if sharding is None else leaf_shardings(config, sharding)
    plan = make_plan(
        source.weights,
        source.layout,
        tower,
        config,
        leaf_shapes(config),
        unused_tower=own if tower is not own else None,
        may_init=(*SELECTORS, *([_PROJECTOR] if source.bare else [])) if untrained else (),
        cast=dtype is not None,
    )
    fresh = tuple(sorted({leaf.split("/")[0] for leaf in plan.fresh}))
    if fresh:
        notes.append(
            f"{' and '.join(fresh)} not in {source.folder}: freshly initialised"
            + ("; predictors stay unused until they are trained" if predictors else "")
        )
    if plan.dropped:
        notes.append(f"{len(plan.dropped)} tensors left out (CLIP's text model, or the tower not preferred)")
    carried = sum(weights.infos[name].nbytes for weights, name in plan.carried)
    sizes = _sizes(plan, config, target)
    nbytes = sum(size for size, _ in sizes)
    space.check(dst.with_name(dst.name + ".tmp"), nbytes + carried)
    on_start(nbytes + carried)
    not_finite: list[str] = []
    store.write(
        dst,
        config,
        _leaves(plan, config, target, not_finite),
        carried=(
            (_carried_name(tower, weights, name), functools.partial(weights.read, name))
            for weights, name in plan.carried
        ),
        extras=_extras(source, tower, fresh, plan, notes),
        progress=on_item,
        identity=_identity(plan, config, dtype, shardings),
        shardings=shardings,
    )
    if not_finite:
        notes.append(f"NaN or infinite values in {len(not_finite)} tensors: {some(sorted(not_finite))}")
    return Report(
        str(dst),
        source.layout.name,
        len(plan.steps),
        len(plan.carried),
        len(plan.dropped),
        fresh,
        nbytes,
        time.monotonic() - started,
        dict(Counter(dtype.name for _, dtype in sizes)),
        tuple(notes),
    )


def _find_towers(
    source: TorchSource, where: str | os.PathLike | None, notes: list[str]
) -> tuple[Tower | None, Tower | None]:
    """The tower inside, which knows the folder of its config, and the one given, or else beside."""
    own = towers.inside(source.weights, source.layout.towers)
    name = source.config.get("mm_vision_tower")
    found, given = towers.beside(source.folder, source.config), None if where is None else locate(where)
    if own is not None and source.layout is OFFICIAL:
        own = dataclasses.replace(own, described=found or (given if where == name else None))
    if given is None and found is not None:
        notes.append(f"vision tower {name} found at {found}")
        given = found
    if given is None and own is None:
        raise InputError(
            f"{source.folder} holds no vision tower; it was made with {name or 'a CLIP vision tower'}. Download that "
            f"and run: dynllava convert from-torch {shlex.quote(str(source.folder))} DST --vision-tower "
            "FOLDER_OF_THE_TOWER"
        )
    return own, None if given is None else towers.open_tower(given)


def _described(source: TorchSource, tower: Tower) -> dict[str, Any] | None:
    """The tower's `config.json`, or what llava-hf calls `vision_config`; None where nobody knows it."""
    if tower.folder is None and source.layout is not OFFICIAL:
        return source.config
    name = source.config.get("mm_vision_tower")
    known = towers.KNOWN_CONFIGS.get(name) if isinstance(name, str) else None
    return tower.json("config.json") or (known if tower.folder is None else None)


def _config(source: TorchSource, tower: Tower, *, template: str, round_ids: tuple[int, ...]) -> ModelConfig:
    vision, config = _described(source, tower), source.config
    if vision is None:
        raise InputError(
            f"{source.folder} holds the tensors of its vision tower {shown(config.get('mm_vision_tower'))} but not "
            "their config (heads, activation); give its folder with --vision-tower."
        )
    if tower.folder is not None and source.layout is not OFFICIAL:
        config = {**config, "vision_config": vision.get("vision_config") or vision}
    return from_hf(
        config,
        vision,
        _preprocessor(source, tower),
        _optional_json((source.tokenizer or source.folder) / "tokenizer_config.json"),
        template=template,
        round_ids=round_ids,
        has_head=source.layout.head in source.weights.infos,
        file=str(source.folder / "config.json"),
    )


def _preprocessor(source: TorchSource, tower: Tower) -> dict[str, Any] | None:
    """The source's own file, or a part of `processor_config.json` (transformers 5); else the tower's."""
    alone = _optional_json(source.file("preprocessor_config.json"))
    whole = _optional_json(source.file("processor_config.json")) or {}
    part = whole.get("image_processor")
    if part is not None and not isinstance(part, dict):
        raise wrong(source.file("processor_config.json"), "image_processor", "an object", part)
    return alone or part or tower.json("preprocessor_config.json")


def _optional_json(path: AnyPath) -> dict[str, Any] | None:
    return read_json(path) if path.is_file() else None


def _round_ids(source: TorchSource, template: str, notes: list[str]) -> tuple[int, ...]:
    """The marker of a user's turn in the source's own tokenizer."""
    chosen = get_template(template)
    if source.tokenizer is not None:
        if source.tokenizer != source.folder:
            notes.append(f"no tokenizer in {source.folder}: that of {source.tokenizer} is taken")
        return round_ids(Tokenizer.load(source.tokenizer), chosen)
    rows = source.weights.infos[f"{source.layout.decoder}embed_tokens.weight"].shape[0]
    default = TextPrep().round_ids if template == TextPrep().template else ()
    known = default if all(token < rows for token in default) else ()
    notes.append(f"no tokenizer in {source.folder}: the ids that open a user's turn are taken as {list(known)}")
    return known


def _choose_tower(
    source: TorchSource,
    own: Tower | None,
    given: Tower | None,
    prefer: Preference | None,
    read: Callable[[Tower], ModelConfig],
    notes: list[str],
) -> tuple[Tower, ModelConfig]:
    """The tower to keep, and the config with which *its* tensors were made."""
    if own is None or given is None:
        tower = own or given
        assert tower is not None  # _find_towers has seen to it
        return tower, read(tower)
    known = _described(source, own) is not None
    config = read(given)
    different = towers.differing(own, given, config)
    others = towers.unlike(read(own).vision, config.vision) if known else []
    if not different and not others:
        notes.append(f"the vision tower inside the checkpoint equals {given.folder} and is kept")
        own = dataclasses.replace(own, described=own.described or given.folder)
        return own, read(own)
    what = [f"in {len(different)} parameters (such as {different[0]})"] if different else []
    what += [f"by their configs in {', '.join(others)}"] if others else []
    differ = f"The vision tower inside {own.weights.folder} and {given.folder} differ {' and '.join(what)}"
    if not known and prefer != "given":
        raise InputError(
            f"{differ}, and no config (heads, activation) of the one inside is known; take --prefer-tower given, or "
            f"name the folder with its config as mm_vision_tower in {source.folder / 'config.json'}."
        )
    if prefer is None:
        raise InputError(f"{differ}; say which to take: --prefer-tower given or --prefer-tower inside.")
    notes.append(f"two different vision towers: the {prefer} one is taken")
    return (given, config) if prefer == "given" else (own, read(own))


def _all_finite(leaf: np.ndarray) -> bool:
    """Whether no exponent is all ones, looked at as integers: ml_dtypes' own test is ten times as slow."""
    infinity = np.asarray(np.inf, leaf.dtype).reshape(1).view(f"u{leaf.itemsize}")[0]
    words = leaf.reshape(-1).view(f"u{leaf.itemsize}")
    return not any(np.any((words[i : i + _PIECE] & infinity) == infinity) for i in range(0, words.size, _PIECE))


def _leaves(
    plan: Plan, config: ModelConfig, dtype: np.dtype | None, not_finite: list[str]
) -> Iterator[tuple[str, store.Leaf]]:
    """The leaves in the order of the checkpoint's items."""
    wanted: list[Target] = [target for target in targets(config) if target.leaves[0] in plan.fresh]
    kept = _kept_dtype(plan, dtype)
    lock = threading.Lock()
    values: dict[str, Any] = {}

    def made(target: Target, i: int) -> np.ndarray:
        with lock:
            values.update(values or fresh_parameters(config, wanted))
        value = np.asarray(values[target.path]).astype(kept)
        return value[i] if target.stacked else value

    def read(step: Step) -> np.ndarray:
        leaf = step.read(dtype)
        if not _all_finite(leaf):
            not_finite.append(step.rule.source)
        return leaf

    found: dict[str, store.Leaf] = {step.rule.leaf: functools.partial(read, step) for step in plan.steps}
    found |= {leaf: functools.partial(made, target, i) for target in wanted for i, leaf in enumerate(target.leaves)}
    return ((leaf, found[leaf]) for leaf in sorted(found, key=lambda leaf: (item_of(leaf), leaf)))


def _kept_dtype(plan: Plan, dtype: np.dtype | None) -> np.dtype:
    """What fresh leaves are stored in."""
    last = plan.steps[-1]
    return last.weights.infos[last.rule.source].dtype if dtype is None else dtype


def _sizes(plan: Plan, config: ModelConfig, dtype: np.dtype | None) -> list[tuple[int, np.dtype]]:
    """Bytes and dtype of each leaf to write."""
    infos = [step.weights.infos[step.rule.source] for step in plan.steps]
    shapes, kept = leaf_shapes(config), _kept_dtype(plan, dtype)
    found = [(math.prod(info.shape), info.dtype if dtype is None else dtype) for info in infos]
    found += [(math.prod(shapes[leaf]), kept) for leaf in plan.fresh]
    return [(count * dtype.itemsize, dtype) for count, dtype in found]


def _identity(plan: Plan, config: ModelConfig, dtype: str | None, shardings: store.Shardings) -> str:
    """Changes when anything that is written may change; files count by name, size and time of change."""
    stamps = {step.weights.folder: step.weights.stamp() for step in plan.steps}
    carried = [name for _, name in plan.carried]
    rules = [step.rule for step in plan.steps]
    return hashes.hash_bytes(repr((stamps, rules, carried, config, dtype, dict(shardings))).encode())


def _carried_name(tower: Tower, weights: TorchWeights, name: str) -> str:
    """The source's own name; tensors of a tower apart are kept apart."""
    return f"{towers.FOLDER}/{name}" if weights is tower.weights and tower.folder is not None else name


def _extras(source: TorchSource, tower: Tower, fresh: tuple[str, ...], plan: Plan, notes: list[str]) -> store.Extras:
    files = {name: source.file(name) for name in store.SOURCE_FILES}
    files |= {name: (source.tokenizer or source.folder) / name for name in TOKENIZER_FILES}
    if tower.folder is not None:
        files |= {f"{towers.FOLDER}/{name}": tower.folder / name for name in store.TOWER_FILES}
    return store.Extras(
        {name: path.read_bytes() for name, path in files.items() if path.is_file()},
        {
            "source": str(source.folder),
            "layout": source.layout.name,
            "tower_prefix": tower.prefix,
            "fresh": list(fresh),
            "dropped": len(plan.dropped),
            "notes": notes,
        },
    )
