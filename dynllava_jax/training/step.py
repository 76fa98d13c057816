"""The compiled programs of training: one optimizer step, and one look at held-out samples.

B rows of the global batch, A micro-batches.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key

from dynllava_jax.config.model import ModelConfig
from dynllava_jax.config.training import TrainConfig
from dynllava_jax.data.batch import Batch
from dynllava_jax.errors import InputError
from dynllava_jax.kernels import api
from dynllava_jax.model.dynllava import DynamicLlava
from dynllava_jax.model.probe import Probe
from dynllava_jax.nn.constrain import constraints
from dynllava_jax.nn.flat import unflatten
from dynllava_jax.nn.jax_settings import check_jax_settings, random_key
from dynllava_jax.sharding.specs import activation_constraint, batch_parts, replicated
from dynllava_jax.sharding.xla_options import xla_options
from dynllava_jax.training.cross_entropy import supervised
from dynllava_jax.training.decisions import GumbelRule, InferenceRule, Noise, draw_noise
from dynllava_jax.training.forward import ForwardPlan, forward
from dynllava_jax.training.health import gradient_norms, health
from dynllava_jax.training.loss import LossOutput, Shares, compute_loss, shares
from dynllava_jax.training.optimizer import Optimizer
from dynllava_jax.training.schedule import temperature
from dynllava_jax.training.state import Parameters, TrainState, state_shardings

Metrics = dict[str, Float[Array, ""]]
_Parts = tuple[Batch, Key[Array, " B"], Noise, Shares]


@dataclasses.dataclass(frozen=True)
class Division:
    """How a global batch is spread: `devices` parts of `accumulation` micro-batches of `rows` samples."""

    devices: int
    accumulation: int
    rows: int

    @staticmethod
    def of(config: TrainConfig, mesh: Mesh) -> "Division":
        """Raises InputError when the global batch does not divide."""
        devices = batch_parts(mesh)
        share, left = divmod(config.global_batch_size, devices)
        if left:
            raise InputError(
                f"global_batch_size {config.global_batch_size} does not divide over the {devices} devices of the mesh "
                "axes data and fsdp; use a multiple."
            )
        rows = share if config.device_batch_size is None else min(config.device_batch_size, share)
        if share % rows:
            raise InputError(
                f"device_batch_size {rows} does not divide a device's {share} samples of global_batch_size "
                f"{config.global_batch_size}; use a divisor."
            )
        return Division(devices, share // rows, rows)


class Trainer:
    """Runs steps; each batch shape is compiled once.

    Args:
        model: the model's config.
        config: the run's.
        mesh: devices.
        total: optimizer steps of the whole run, which the schedules follow.

    Raises:
        InputError: the batch does not divide, no such attention here, JAX is set to what is not supported.
    """

    def __init__(self, model: ModelConfig, config: TrainConfig, mesh: Mesh, total: int):
        check_jax_settings()
        self.config = config
        self.model_config = model
        self.mesh = mesh
        self.division = Division.of(config, mesh)
        api.check_implementation(config.attention, mesh.devices.flat[0].platform)
        self.parameters = Parameters.of(model, config.optimizer, mesh)
        trained = {path: self.parameters.axes[path] for path in self.parameters.trained}
        self.optimizer = Optimizer(config.optimizer, trained, total)
        self.plan = ForwardPlan(config.loss, config.remat, config.attention, config.dtype)
        self._constraint = activation_constraint(mesh)
        where = state_shardings(self.parameters, mesh)
        changing = (where.params, where.adam, where.step)
        device, whole = mesh.devices.flat[0], replicated(mesh)
        self._step = jax.jit(
            self.step_body,
            donate_argnums=(0,),
            out_shardings=(changing, whole),
            compiler_options=xla_options(device, config.dtype, keeps_products=self.keeps_products),
        )
        options = xla_options(device, config.dtype)
        self._evaluate = jax.jit(self._run_evaluate, out_shardings=whole, compiler_options=options)
        self._health = jax.jit(self._run_health)

    def step(self, state: TrainState, batch: Batch, noise: Noise | None = None) -> tuple[TrainState, Metrics]:
        """One optimizer step; the state given is used up.

        Args:
            state: lies as `state_shardings` says.
            batch: the global batch with labels, rows split over the mesh; rows of length 0 count nothing.
            noise: Gumbel noise in place of what the run's seed gives.

        Returns:
            The next state; "loss", its terms, keep rates (NaN where nothing was judged), learning rates, "tau",
            "grad_norm" (whole and by part), "samples" that count, their "read_tokens", "tokens" that are supervised.
        """
        with constraints(self._constraint):
            changed, metrics = self._step((state.params, state.adam, state.step), state.frozen, batch, noise)
        return TrainState(*changed, frozen=state.frozen), metrics

    def evaluate(self, state: TrainState, batch: Batch) -> Metrics:
        """Sums over held-out samples as sparsified inference treats them: "ce", "tokens", "image_kept", …"""
        with constraints(self._constraint):
            return self._evaluate(state.params, state.frozen, batch)

    def health(self, state: TrainState, batch: Batch) -> Metrics:
        """How the predictors do on a batch in this step (see `health.health`), NaN where there is nothing to tell."""
        with constraints(self._constraint):
            return self._health(state.params, state.frozen, state.step, batch)

    @property
    def step_programs(self) -> int:
        """How many batch shapes `step` was compiled for."""
        return self._step._cache_size()  # pyright: ignore[reportAttributeAccessIssue]

    @property
    def keeps_products(self) -> bool:
        """Whether a step's backward pass finds the layers' matrix products in memory."""
        return self.config.remat != "full"

    # The traced bodies.

    def step_body(
        self,
        changing: tuple[Any, Any, Int[Array, ""]],
        frozen: dict[str, Array],
        batch: Batch,
        noise: Noise | None = None,
    ) -> tuple[tuple[Any, Any, Int[Array, ""]], Metrics]:
        """What `step` compiles (for ahead-of-time compilation too)."""
        params, adam, step = changing
        tau = temperature(step, self.optimizer.total, self.config.gumbel)
        keys = self._keys(step, batch.tokens.shape[0])
        if noise is None:
            noise = draw_noise(batch, keys, self.model_config.image_tokens)
        parts = (batch, keys, noise, self._shares(batch))
        gradients, metrics = self._gradients(self._cast(params), frozen, parts, tau)
        update = self.optimizer.update(params, gradients, adam, step)
        rates = self.optimizer.learning_rates(step)
        metrics |= {f"grad_norm/{part}": norm for part, norm in gradient_norms(gradients).items()}
        metrics |= {
            "grad_norm": update.norm,
            "tau": tau,
            "learning_rate": rates[2],
            "predictor_learning_rate": rates[0],
        }
        return (update.params, update.adam, step + 1), metrics

    def _gradients(
        self, params: dict[str, Array], frozen: dict[str, Array], parts: _Parts, tau: Float[Array, ""]
    ) -> tuple[dict[str, Array], Metrics]:
        """Gradients of the global batch's loss in float32, micro-batch after micro-batch."""

        def loss(params: dict[str, Array], part: _Parts) -> tuple[Array, Metrics]:
            batch, keys, noise, share = part
            out = compute_loss(self._merge(params, frozen), batch, keys, GumbelRule(noise, tau), share, self.plan)
            return out.total, _sums(out, batch)

        def one(params: dict[str, Array], part: _Parts) -> tuple[dict[str, Array], Metrics]:
            gradients, sums = jax.grad(loss, has_aux=True)(params, part)
            return {path: self._like(path, g.astype(jnp.float32)) for path, g in gradients.items()}, sums

        if self.division.accumulation == 1:
            gradients, sums = one(params, parts)
            return gradients, _finish(sums)

        def add(total: Any, part: _Parts) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, one(params, part)), None

        micro = jax.tree.map(self._split, parts)
        shapes = jax.eval_shape(one, params, jax.tree.map(lambda x: x[0], micro))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        zeros = ({path: self._like(path, x) for path, x in zeros[0].items()}, zeros[1])
        (gradients, sums), _ = jax.lax.scan(add, zeros, micro)
        return gradients, _finish(sums)

    def _run_evaluate(self, params: dict[str, Array], frozen: dict[str, Array], batch: Batch) -> Metrics:
        keys = self._keys(jnp.zeros((), jnp.int32), batch.tokens.shape[0])
        one = jnp.ones(batch.lengths.shape)
        model = self._merge(self._cast(params), frozen)
        return _sums(compute_loss(model, batch, keys, InferenceRule(), Shares(one, one), self.plan), batch)

    def _run_health(
        self, params: dict[str, Array], frozen: dict[str, Array], step: Int[Array, ""], batch: Batch
    ) -> Metrics:
        keys = self._keys(step, batch.tokens.shape[0])
        noise = draw_noise(batch, keys, self.model_config.image_tokens)
        rule = GumbelRule(noise, temperature(step, self.optimizer.total, self.config.gumbel))
        model = self._merge(self._cast(params), frozen)
        plan = dataclasses.replace(self.plan, probe=Probe(denominator=True))
        trained = forward(model, batch, keys, rule, plan)
        used = forward(model, batch, keys, InferenceRule(), plan)
        numbers = health(trained.decisions, used.decisions)
        return numbers if trained.lowest is None else numbers | {"lowest_denominator": trained.lowest}

    def _keys(self, step: Int[Array, ""], rows: int) -> Key[Array, " B"]:
        """One key per sample from its place in the global batch: meshes and micro-batches have no say."""
        root = jax.random.fold_in(random_key(self.config.seed), step)
        return jax.vmap(lambda row: jax.random.fold_in(root, row))(jnp.arange(rows))

    @property
    def loss_groups(self) -> int:
        """Groups of samples of whose mean losses the loss is the mean, see `LossConfig.normalise`."""
        per_device = self.config.loss.normalise == "per_device"
        return self.division.devices * self.division.accumulation if per_device else 1

    def _shares(self, batch: Batch) -> Shares:
        return shares(batch.need_labels(), batch.lengths, self.loss_groups)

    def _split(self, x: Array) -> Array:
        """[B, …] to [A, B/A, …]: every device cuts its own rows, none travels."""
        shape = (self.division.devices, self.division.accumulation, self.division.rows)
        x = x.reshape(*shape, *x.shape[1:]).swapaxes(0, 1)
        return x.reshape(shape[1], -1, *x.shape[3:])

    def _cast(self, params: dict[str, Array]) -> dict[str, Array]:
        """To the compute dtype while still split, so that only half the bytes are gathered. Vectors stay float32."""
        dtype = jnp.dtype(self.config.dtype)
        axes = self.parameters.axes
        return {path: self._like(path, x.astype(dtype)) if len(axes[path]) > 1 else x for path, x in params.items()}

    def _like(self, path: str, x: Array) -> Array:
        return jax.lax.with_sharding_constraint(x, self.parameters.shardings[path])

    def _merge(self, params: dict[str, Array], frozen: dict[str, Array]) -> DynamicLlava:
        return unflatten(self.parameters.abstract, {**params, **frozen})


def _sums(out: LossOutput, batch: Batch) -> Metrics:
    """What adds up over the parts of a batch."""
    sums = {"loss": out.total, **out.terms, "tokens": jnp.sum(supervised(batch.need_labels())).astype(jnp.float32)}
    sums["samples"] = jnp.sum(batch.lengths > 0).astype(jnp.float32)
    sums["read_tokens"] = jnp.sum(batch.lengths).astype(jnp.float32)
    for place, verdict in out.forward.decisions.verdicts().items():
        sums[f"{place}_judged"] = jnp.sum(verdict.judged, dtype=jnp.float32)
        sums[f"{place}_kept"] = jnp.sum(jnp.where(verdict.judged, verdict.keep, 0.0))
    return sums


def _finish(sums: Metrics) -> Metrics:
    """Keep rates in place of counts, NaN where nothing was judged."""
    metrics = {name: value for name, value in sums.items() if not name.endswith(("_judged", "_kept"))}
    for name, value in sums.items():
        if name.endswith("_judged"):
            place = name.removesuffix("_judged")
            rate = sums[f"{place}_kept"] / jnp.maximum(value, 1.0)
            metrics[f"{place}_keep_rate"] = jnp.where(value > 0, rate, jnp.nan)
    return metrics
