"""Which tensor is written from which leaf or carried tensor: the table, read backwards."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import ml_dtypes  # noqa: F401 (makes "bfloat16" a dtype that numpy knows)
import numpy as np

from dynllava_jax.checkpoint.leaves import item_of
from dynllava_jax.config.model import ModelConfig
from dynllava_jax.convert import tower
from dynllava_jax.convert.safetensors_writer import Spec
from dynllava_jax.convert.table import (
    LAYOUTS,
    LLAVA_HF,
    OFFICIAL,
    TOWER_ALONE,
    Layout,
    Rule,
    decoder_rules,
    tower_rules,
)
from dynllava_jax.errors import InputError, some

Family = Literal["official", "hf"]
FAMILIES: tuple[Family, ...] = ("official", "hf")

_APART = f"{tower.FOLDER}/"


@dataclasses.dataclass(frozen=True)
class Names:
    """How a checkpoint's tensors are called: the layout, where its tower lies, and whether in a folder of its own."""

    layout: Layout
    tower: str

    @property
    def apart(self) -> bool:
        return self.tower in TOWER_ALONE

    @property
    def family(self) -> Family:
        return "official" if self.layout is OFFICIAL else "hf"


def recorded(facts: Mapping[str, Any]) -> Names | None:
    """The names of the PyTorch source that a checkpoint was converted from, if it was."""
    layout = next((layout for layout in LAYOUTS if layout.name == facts.get("layout")), None)
    return None if layout is None else Names(layout, facts.get("tower_prefix", layout.towers[0]))


def chosen(family: Family, source: Names | None) -> Names:
    """The source's own names where it is of that family; otherwise the usual ones.

    The official code reads its tower from a folder of its own, so that is where a tower goes that has no place yet.

    Raises:
        InputError: there is no such family.
    """
    if family not in FAMILIES:
        raise InputError(f"layout must be one of {', '.join(FAMILIES)}, not {family!r}.")
    if source is not None and source.family == family and (family == "official" or not source.apart):
        return source
    return Names(OFFICIAL, TOWER_ALONE[0]) if family == "official" else Names(LLAVA_HF, LLAVA_HF.towers[0])


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor to write.

    Attributes:
        name: as the target calls it.
        folder: "" or the folder of a tower apart.
        rule: where it comes from, None for a carried one.
        carried: the carried tensor's name in the checkpoint.
        spec: what is written.
    """

    name: str
    folder: str
    rule: Rule | None
    carried: str | None
    spec: Spec

    def make(self, value: np.ndarray) -> np.ndarray:
        """Torch's form of a leaf; rows that the spec has beyond it are its mean row."""
        tensor = value if self.rule is None else self.rule.transform.invert(value)
        more = self.spec.shape[0] - tensor.shape[0] if tensor.ndim == 2 else 0
        if more:
            row = np.mean(tensor, axis=0, dtype=np.float32).astype(tensor.dtype)
            tensor = np.concatenate([tensor, np.broadcast_to(row, (more, *row.shape))])
        return tensor if tensor.dtype == self.spec.dtype else tensor.astype(self.spec.dtype)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What an export writes, in the order of the files, and the leaves and carried tensors that it leaves out."""

    tensors: list[Tensor]
    left_out: list[str]


def make_plan(
    config: ModelConfig,
    names: Names,
    source: Names | None,
    leaves: Mapping[str, Spec],
    carried: Iterable[Spec],
    *,
    dtype: np.dtype | None = None,
    vocab_size: int | None = None,
    without: tuple[str, ...] = (),
    single: str = "linear",
) -> Plan:
    """Every leaf and every carried tensor becomes one tensor, or is left out for a reason.

    Args:
        config: the model that the leaves fill.
        names: the target's.
        source: the names that the carried tensors have.
        leaves: shape and dtype of each leaf.
        carried: of each carried tensor.
        dtype: of what is written; None: as stored.
        vocab_size: rows that the embedding and the head shall have; None: as they are.
        without: parts, such as "image_predictor", whose leaves are left out.
        single: what the target's config calls a projector of one layer, "linear" or "mlp1x_gelu".

    Raises:
        InputError: lists leaves that the target has no name for.
    """
    rules = {rule.leaf: ("", rule) for rule in decoder_rules(names.layout, config, single)}
    folder = tower.FOLDER if names.apart else ""
    rules |= {rule.leaf: (folder, rule) for rule in tower_rules(names.tower, config)}
    tensors: list[Tensor] = []
    left_out: list[str] = []
    nameless: list[str] = []
    for leaf in sorted(leaves, key=lambda leaf: (item_of(leaf), leaf)):
        if leaf.partition("/")[0] in without:
            left_out.append(leaf)
        elif leaf not in rules:
            nameless.append(leaf)
        else:
            where, rule = rules[leaf]
            shape = rule.transform.source_shape(leaves[leaf].shape)
            if vocab_size is not None and leaf in ("decoder/embedding", "decoder/head/kernel"):
                shape = (vocab_size, shape[1])
            tensors.append(_tensor(rule.source, where, rule, None, shape, dtype or leaves[leaf].dtype))
    if nameless:
        raise InputError(f"The {names.layout.name} layout cannot express {some(nameless)}.")
    for spec in carried:
        if source == names and config.decoder.tie_embeddings and spec.name == names.layout.head:
            # The embedding once more, which may have been trained since it was carried.
            (embedding,) = (tensor for tensor in tensors if tensor.rule == rules["decoder/embedding"][1])
            tensors.append(_tensor(spec.name, "", embedding.rule, None, embedding.spec.shape, embedding.spec.dtype))
            continue
        found = _translated(spec.name, names, source)
        if found is None:
            left_out.append(spec.name)
            continue
        where, name = found
        kept = dtype if dtype is not None and spec.dtype.kind not in "iub" else spec.dtype
        tensors.append(_tensor(name, where, None, spec.name, spec.shape, kept))
    return Plan(tensors, left_out)


def _tensor(
    name: str, folder: str, rule: Rule | None, carried: str | None, shape: tuple[int, ...], dtype: np.dtype
) -> Tensor:
    return Tensor(name, folder, rule, carried, Spec(name, np.dtype(dtype), shape))


def _translated(name: str, names: Names, source: Names | None) -> tuple[str, str] | None:
    """Folder and name of a carried tensor in the target.

    Buffers of old versions, and a head that only repeats tied embeddings, stay with the layout that they are from.
    """
    if source is None:
        return None
    folder = tower.FOLDER if names.apart else ""
    if source == names:
        return (folder, name.removeprefix(_APART)) if name.startswith(_APART) else ("", name)
    prefix = (_APART if source.apart else "") + source.tower
    if name.startswith(prefix):
        rest = name.removeprefix(prefix)
        return None if rest == "embeddings.position_ids" else (folder, names.tower + rest)
    return None
