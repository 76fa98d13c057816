"""AdamW with the official parameter groups, gradient clipping and learning rates (`DynamicLLaVATrainer`).

Parameters are a flat dict of arrays by path; moments have the same keys, shapes and shardings.
*N: steps, if there are several.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from dynllava_jax.checkpoint.leaves import is_selector
from dynllava_jax.config.training import OptimizerConfig
from dynllava_jax.training.schedule import cosine, warmup_steps

Arrays = Mapping[str, Array]


@dataclasses.dataclass(frozen=True)
class Group:
    """Parameters that share a learning rate and a weight decay."""

    predictor: bool
    decayed: bool

    @property
    def name(self) -> str:
        return ("predictor" if self.predictor else "model") + ("" if self.decayed else "_not_decayed")

    def learning_rate(self, config: OptimizerConfig) -> float:
        return config.predictor_learning_rate if self.predictor else config.learning_rate

    def weight_decay(self, config: OptimizerConfig) -> float:
        if not self.decayed:
            return 0.0
        return config.predictor_weight_decay if self.predictor else config.weight_decay


GROUPS = (Group(True, True), Group(True, False), Group(False, True), Group(False, False))
"""In the official order."""


def group_of(path: str, axes: tuple[str | None, ...]) -> Group:
    """Selectors apart from the rest; norms and biases are not decayed."""
    # By name too: a norm made by Flax, in an own selector, has no axis names.
    return Group(is_selector(path), axes != ("norm",) and path.rpartition("/")[2] not in ("bias", "scale"))


class Adam(NamedTuple):
    """Running means of the gradient and of its square, float32."""

    mean: dict[str, Any]
    square: dict[str, Any]


class Update(NamedTuple):
    """One step's result; `norm` is the gradient's before clipping."""

    params: dict[str, Array]
    adam: Adam
    norm: Float[Array, ""]


def start(params: Arrays) -> Adam:
    """Moments before the first step."""

    def zeros() -> dict[str, Array]:
        return {path: jnp.zeros_like(value) for path, value in params.items()}

    return Adam(zeros(), zeros())


class Optimizer:
    """AdamW for parameters with these axis names, over `total` steps."""

    def __init__(self, config: OptimizerConfig, axes: Mapping[str, tuple[str | None, ...]], total: int):
        self.config = config
        self.total = total
        self.warmup = warmup_steps(total, config.warmup_ratio)
        self.groups = {path: group_of(path, names) for path, names in axes.items()}
        self._adam = optax.scale_by_adam(config.beta1, config.beta2, config.eps)

    def learning_rates(self, step: Int[Array, "*N"] | int) -> Float[Array, "*N 4"]:
        """Of the four `GROUPS` in a step."""
        factor = cosine(step, self.total, self.warmup)
        return jnp.stack([factor * group.learning_rate(self.config) for group in GROUPS], axis=-1)

    def update(self, params: Arrays, gradients: Arrays, adam: Adam, step: Int[Array, ""]) -> Update:
        """Clips the gradient to `clip_norm` over all parameters together and takes one step."""
        norm = optax.tree.norm(gradients)
        # torch's clip_grad_norm_ adds 1e-6 to the norm.
        scale = jnp.minimum(self.config.clip_norm / (norm + 1e-6), 1.0)
        clipped = jax.tree.map(lambda gradient: gradient * scale, dict(gradients))
        state = optax.ScaleByAdamState(step, adam.mean, adam.square)  # pyright: ignore[reportArgumentType]
        directions, state = self._adam.update(clipped, state)  # pyright: ignore[reportArgumentType]
        factor = cosine(step, self.total, self.warmup)

        def one(path: str, value: Array) -> Array:
            group = self.groups[path]
            decay = group.weight_decay(self.config) * value
            return value - factor * group.learning_rate(self.config) * (directions[path] + decay)  # pyright: ignore

        new = {path: one(path, value) for path, value in params.items()}
        return Update(new, Adam(state.mu, state.nu), norm)  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
