"""What a logical axis becomes on a mesh: one table."""

import dataclasses

from dynllava_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Rule:
    """The mesh axes that one logical axis is split over, in a parameter and in an activation."""

    parameter: tuple[str, ...] = ()
    activation: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Rules:
    """Logical axis -> mesh axes.

    Parameters and activations name the dimensions of their arrays, the model's code never names a mesh axis. Weights
    are split along `embed` over `fsdp` and along heads, features or vocabulary over `tensor`; Adam's moments follow
    them. Activations are split by sample over `data` and `fsdp` together and by head or feature over `tensor`; their
    `embed` stays whole, because `fsdp` already holds different samples. Dimensions without a name, and the small
    `predictor` widths, are never split.
    """

    batch: Rule = Rule(activation=("data", "fsdp"))
    seq: Rule = Rule()
    embed: Rule = Rule(parameter=("fsdp",))
    heads: Rule = Rule(parameter=("tensor",), activation=("tensor",))
    kv_heads: Rule = Rule(parameter=("tensor",), activation=("tensor",))
    mlp: Rule = Rule(parameter=("tensor",), activation=("tensor",))
    vocab: Rule = Rule(parameter=("tensor",), activation=("tensor",))
    norm: Rule = Rule()
    predictor: Rule = Rule()
    layers: Rule = Rule()

    def parameter(self, axes: tuple[str | None, ...]) -> tuple[tuple[str, ...], ...]:
        """The mesh axes of each dimension of a parameter."""
        return self._resolve(axes, "parameter")

    def activation(self, axes: tuple[str | None, ...]) -> tuple[tuple[str, ...], ...]:
        """The mesh axes of each dimension of an activation."""
        return self._resolve(axes, "activation")

    def _resolve(self, axes: tuple[str | None, ...], kind: str) -> tuple[tuple[str, ...], ...]:
        """Raises InputError for an unknown axis, or when two dimensions of one array claim the same mesh axis."""
        known = {field.name for field in dataclasses.fields(self)}
        if unknown := [axis for axis in axes if axis is not None and axis not in known]:
            raise InputError(f"Axis '{unknown[0]}' has no sharding rule; known are {', '.join(sorted(known))}.")
        resolved = tuple(() if axis is None else getattr(getattr(self, axis), kind) for axis in axes)
        claimed = [axis for dimension in resolved for axis in dimension]
        if twice := {axis for axis in claimed if claimed.count(axis) > 1}:
            raise InputError(f"The {kind} axes {axes} put the mesh axis {', '.join(sorted(twice))} on two dimensions.")
        return resolved


RULES = Rules()
