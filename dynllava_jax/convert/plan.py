"""Which tensor fills which leaf: every source tensor used once or carried, every leaf filled once, or one error."""

import dataclasses
from collections.abc import Iterable, Iterator

import ml_dtypes
import numpy as np

from dynllava_jax.checkpoint.leaves import item_of
from dynllava_jax.config.check import DTYPES
from dynllava_jax.config.model import ModelConfig
from dynllava_jax.convert.read_torch import TorchWeights
from dynllava_jax.convert.table import (
    CLIP_TEXT,
    Layout,
    Rule,
    carried_in_decoder,
    carried_in_tower,
    decoder_rules,
    tower_rules,
)
from dynllava_jax.convert.tower import Tower
from dynllava_jax.errors import InputError, shown, some

_FLOATS = (np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))
_MAX_SHOWN = 40


@dataclasses.dataclass(frozen=True)
class Step:
    """One leaf and where it comes from."""

    weights: TorchWeights
    rule: Rule

    def read(self, dtype: np.dtype | None) -> np.ndarray:
        return cast(self.rule.transform.apply(self.weights.read(self.rule.source)), dtype, self.rule.source)


def named_dtype(name: str) -> np.dtype:
    """The dtype that a conversion is asked for; raises InputError for one in which no model is stored."""
    if name not in DTYPES:
        raise InputError(f"dtype must be one of {', '.join(DTYPES)}, not {shown(name)}.")
    return np.dtype(name)


def cast(leaf: np.ndarray, dtype: np.dtype | None, name: str) -> np.ndarray:
    """The leaf in another dtype, if one is given; raises InputError that names it when that makes values infinite."""
    if dtype is None:
        return leaf
    with np.errstate(over="ignore"):
        made = leaf.astype(dtype)
    if np.isinf(made).any() and not np.isinf(leaf).any():
        raise InputError(f"{name} holds values beyond {dtype.name}; use --dtype bfloat16 or float32.")
    return made


@dataclasses.dataclass(frozen=True)
class Plan:
    """What conversion will do.

    Attributes:
        steps: in the order of the checkpoint's items.
        carried: (weights, name) of the tensors kept for export.
        dropped: names of tensors that belong to no LLaVA: CLIP's text model, or a tower that was not preferred.
        fresh: leaves of parts that the source does not have.
    """

    steps: list[Step]
    carried: list[tuple[TorchWeights, str]]
    dropped: list[str]
    fresh: list[str]


def make_plan(
    weights: TorchWeights,
    layout: Layout,
    tower: Tower,
    config: ModelConfig,
    shapes: dict[str, tuple[int, ...]],
    *,
    unused_tower: Tower | None = None,
    may_init: tuple[str, ...] = (),
    cast: bool = False,
) -> Plan:
    """Matches names and shapes; reads no tensor but a tied head.

    Args:
        weights: of the language model.
        layout: how `weights` are named.
        tower: the one to use, inside `weights` or apart.
        config: the model.
        shapes: of every leaf wanted.
        unused_tower: a tower inside `weights` that gives way to `tower`.
        may_init: parts of the model that are initialised when nothing of them is in the source.
        cast: whether dtypes are changed on the way, so that float64 is fine.

    Raises:
        InputError: lists all tensors that are missing, left over, or of a wrong shape or dtype.
    """
    rules = {rule.source: Step(weights, rule) for rule in decoder_rules(layout, config)}
    inside = tower.weights is weights
    steps = {} if inside else {rule.source: Step(tower.weights, rule) for rule in tower_rules(tower.prefix, config)}
    if inside:
        rules |= {rule.source: Step(weights, rule) for rule in tower_rules(tower.prefix, config)}
    problems: list[str] = []
    filled: dict[str, Step] = {}
    carried: list[tuple[TorchWeights, str]] = []
    dropped: list[str] = []
    for name in weights.infos:
        if name in rules and rules[name].rule.leaf in shapes:
            problems += _fill(filled, rules[name], shapes, cast)
        elif carried_in_decoder(layout, config, name) or (inside and carried_in_tower(tower.prefix, config, name)):
            carried.append((weights, name))
        elif unused_tower is not None and name.startswith(unused_tower.prefix):
            dropped.append(name)
        else:
            problems.append(f"{name} {_shape(weights, name)} is left over")
    for name in tower.weights.infos if not inside else ():
        if name in steps:
            problems += _fill(filled, steps[name], shapes, cast)
        elif carried_in_tower(tower.prefix, config, name):
            carried.append((tower.weights, name))
        elif CLIP_TEXT.fullmatch(name):
            dropped.append(name)
        else:
            problems.append(f"{name} {_shape(tower.weights, name)} of the tower is left over")
    missing = [leaf for leaf in shapes if leaf not in filled]
    fresh = [leaf for leaf in missing if leaf.startswith(may_init) and not _started(leaf, filled)]
    sources = {step.rule.leaf: source for source, step in reversed((rules | steps).items())}
    problems += [
        f"{sources.get(leaf, leaf)} {list(shapes[leaf])} is missing" for leaf in sorted(set(missing) - set(fresh))
    ]
    problems += _untied_head(weights, layout, carried)
    if problems:
        raise InputError(_message(weights, problems))
    order = sorted(filled, key=lambda leaf: (item_of(leaf), leaf))
    return Plan([filled[leaf] for leaf in order], carried, dropped, fresh)


def _fill(filled: dict[str, Step], step: Step, shapes: dict[str, tuple[int, ...]], cast: bool) -> Iterator[str]:
    source, leaf = step.rule.source, step.rule.leaf
    info = step.weights.infos[source]
    shape = step.rule.transform.shape(info.shape)
    if leaf in filled:
        yield f"{source} and {filled[leaf].rule.source} are the same parameter"
    if shape != shapes[leaf]:
        yield f"{source} has shape {list(info.shape)}, which does not give {leaf} {list(shapes[leaf])}"
    if info.dtype not in _FLOATS and not (cast and info.dtype == np.float64):
        yield f"{source} has dtype {info.dtype.name}, not float32, float16 or bfloat16"
    filled[leaf] = step


def _started(leaf: str, filled: Iterable[str]) -> bool:
    """Whether the source has any tensor of the predictor that `leaf` belongs to."""
    predictor = leaf.split("/")[0] + "/"
    return any(other.startswith(predictor) for other in filled)


def _untied_head(weights: TorchWeights, layout: Layout, carried: list[tuple[TorchWeights, str]]) -> list[str]:
    """A head saved beside tied embeddings must be the same matrix."""
    embedding = f"{layout.decoder}embed_tokens.weight"
    if (weights, layout.head) not in carried or embedding not in weights.infos:
        return []
    if np.array_equal(weights.read(layout.head), weights.read(embedding)):
        return []
    return [f"{layout.head} differs from {embedding}, although config.json says that they are tied"]


def _shape(weights: TorchWeights, name: str) -> list[int]:
    return list(weights.infos[name].shape)


def _message(weights: TorchWeights, problems: list[str]) -> str:
    count = "1 tensor does" if len(problems) == 1 else f"{len(problems)} tensors do"
    return f"{weights.folder}: {count} not fit its config.json: {some(problems, '; ', _MAX_SHOWN)}."
