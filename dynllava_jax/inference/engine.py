"""The compiled programs of generation and their placement on devices. No text, no files: arrays in, arrays out.

B batch rows, M images, P image tokens of one image, K kept of P, V vocabulary.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from dynllava_jax.config.sparsity import SparsityConfig
from dynllava_jax.data.batch import Batch
from dynllava_jax.errors import InputError
from dynllava_jax.inference import nocache
from dynllava_jax.inference.buckets import Buckets, Shape, output_rate
from dynllava_jax.inference.cache import Cache
from dynllava_jax.inference.decode import DecodeState, Segment, SegmentPlan, segment, start
from dynllava_jax.inference.extend import ExtendPlan, extend
from dynllava_jax.inference.prefill import PrefillOutput, PrefillPlan, prefill
from dynllava_jax.inference.sampling import Draws
from dynllava_jax.kernels import api
from dynllava_jax.kernels.products import fused_products
from dynllava_jax.model.dynllava import DynamicLlava
from dynllava_jax.model.fused import check_fused
from dynllava_jax.model.probe import Probe
from dynllava_jax.nn.constrain import OneDevice, constraints
from dynllava_jax.nn.jax_settings import check_jax_settings, random_key
from dynllava_jax.sharding.mesh import check_context
from dynllava_jax.sharding.specs import activation_constraint, activation_sharding, batch_parts
from dynllava_jax.sharding.xla_options import xla_options


class Asked(NamedTuple):
    """Each row's wishes as numbers; a budget of 0 marks a padding row.

    Attributes:
        budget: answer tokens at most.
        temperature, k, p: see `sampling.Draws`.
        seed: uint32.
    """

    budget: Int[Array, " B"] | Any
    temperature: Float[Array, " B"] | Any
    k: Int[Array, " B"] | Any
    p: Float[Array, " B"] | Any
    seed: Int[Array, " B"] | Any


class Opened(NamedTuple):
    """What a prefill tells the host.

    Attributes:
        kept: patch of every image token that entered the deep stack, or None without images.
        logits: float32 [B, V] of the last prompt token.
        deep_length: tokens that entered the deep stack.
        origin: patch that each image token stands for, or None without images.
        scores: what the image tokens were ranked by, or None when none was ranked.
    """

    kept: Int[Array, "B M K"] | None
    logits: Float[Array, "B V"]
    deep_length: Int[Array, " B"]
    origin: Int[Array, "B M P"] | None
    scores: Float[Array, "B M P"] | None


class Engine:
    """Runs the model's programs; each shape is compiled once.

    Args:
        model: the weights, already where they belong.
        buckets: shapes that requests are padded to.
        mesh: devices, or None for one.
        dtype: compute dtype.
        stop_ids: tokens that end an answer.
        attention: implementation of attention, see `kernels.api`.
        collect_logits: segments also return every step's logits.
        products: fused kernels for the products of each generated token, see `kernels.products`; None: by XLA.

    Raises:
        InputError: fused products that there are not, that do not serve the model, its device or so many rows, or with
            a mesh; JAX is set to what is not supported.
    """

    def __init__(
        self,
        model: DynamicLlava,
        *,
        buckets: Buckets,
        mesh: Mesh | None = None,
        dtype: str = "float32",
        stop_ids: tuple[int, ...] = (),
        attention: api.Implementation = None,
        collect_logits: bool = False,
        products: str | None = None,
    ):
        check_jax_settings()
        self.config = model.config
        self.mesh = mesh
        within = buckets.within(model.config.decoder.context)
        self.buckets = dataclasses.replace(within, rows=tuple(sorted({self._whole_rows(n) for n in within.rows})))
        self.dtype = dtype
        self.stop_ids = stop_ids
        # Part of what a program is known by, which a list cannot be.
        self._attention = attention if attention is None or isinstance(attention, str) else tuple(attention)
        self._collect_logits = collect_logits
        self._products = products
        self._graph, self._params = nnx.split(model)
        self._constraint = _where(self._params) if mesh is None else activation_constraint(mesh)
        self._check_products(model)
        device = None if self._constraint is None else self._constraint.device
        self._in_pieces = mesh is None and device is not None and device.platform == "cpu"
        self.xla_options = xla_options(device, dtype)
        jit = functools.partial(jax.jit, compiler_options=self.xla_options)
        self._prefill = jit(self._run_prefill, static_argnames=("plan",))
        self._segment = jit(self._run_segment, static_argnames=("plan",), donate_argnums=(1,))
        self._extend = jit(self._run_extend, static_argnames=("plan",), donate_argnums=(3,))
        self._repack = jax.jit(self._run_repack, static_argnames=("capacities",))
        self._grow = jax.jit(self._run_grow, static_argnames=("capacity",), donate_argnums=(0,))
        self._nocache_open = jit(self._run_nocache_open, static_argnames=("plan",))
        self._nocache = jit(self._run_nocache, static_argnames=("plan",), donate_argnums=(1,))

    def _check_products(self, model: DynamicLlava) -> None:
        """Before anything is computed: what is not served would be said only once the prompt was read."""
        fused = fused_products(self._products)
        if fused is None:
            return
        if self.mesh is not None:
            raise InputError(f"products={self._products!r} runs on one device; leave it out, or the mesh.")
        rows = max(self.buckets.rows)
        try:
            with constraints(self._constraint):
                for layers in (model.decoder.shallow, model.decoder.deep):
                    check_fused(fused, layers, rows, jnp.dtype(self.dtype))
        except NotImplementedError as error:
            raise InputError(
                f"products={self._products!r} does not serve this model here, in batches of up to {rows} "
                f"(Buckets.rows): {error}; leave it out."
            ) from error

    def _check_jax(self) -> None:
        """An answer begins: what was set since the model was loaded counts too."""
        check_jax_settings()
        check_context(self.mesh)

    @property
    def model(self) -> DynamicLlava:
        return nnx.merge(self._graph, self._params)

    def _whole_rows(self, rows: int) -> int:
        """Rows rounded up to what the mesh splits evenly."""
        if self.mesh is None:
            return rows
        parts = batch_parts(self.mesh)
        return -(-rows // parts) * parts

    def open(self, batch: Batch, asked: Asked, shape: Shape, sparsity: SparsityConfig) -> tuple[DecodeState, Opened]:
        """Prefills a padded batch and draws the first token of each answer."""
        self._check_jax()
        plan = self.opening_plan(shape, sparsity)
        with constraints(self._constraint):
            return self._prefill(self._params, self.place(batch), self.place(asked), plan=plan)

    def advance(
        self, state: DecodeState, shape: Shape, sparsity: SparsityConfig, steps: int | None = None
    ) -> tuple[DecodeState, Segment]:
        """Decodes one segment of at most `steps` tokens, growing the deep cache first where it is full."""
        return self._decode(self._make_room(state, shape, sparsity), self._limit(steps), sparsity)

    def resume(
        self,
        cache: Cache,
        tokens: np.ndarray,
        lengths: np.ndarray,
        asked: Asked,
        shape: Shape,
        sparsity: SparsityConfig,
    ) -> DecodeState:
        """Feeds a further instruction to a cache, repacked to the shape's capacities; draws the next token."""
        self._check_jax()
        capacities = (shape.shallow_capacity, shape.deep_capacities(self._rate(sparsity))[0])
        plan = self._extend_plan("instruct", sparsity)
        with constraints(self._constraint):
            cache = self._repack(cache, capacities=capacities)
            tokens, lengths = self.place((tokens, lengths))
            return self._extend(self._params, tokens, lengths, cache, self.place(asked), plan=plan)

    def open_without_cache(
        self, batch: Batch, asked: Asked, shape: Shape, sparsity: SparsityConfig
    ) -> tuple[nocache.NoCacheState, Opened]:
        """As `open`, for steps that run the whole sequence: the shape's length has room for the answer."""
        self._check_jax()
        plan = self._nocache_plan(shape, sparsity)
        with constraints(self._constraint):
            return self._nocache_open(self._params, self.place(batch), self.place(asked), plan=plan)

    def advance_without_cache(
        self, state: nocache.NoCacheState, shape: Shape, sparsity: SparsityConfig, steps: int | None = None
    ) -> tuple[nocache.NoCacheState, Segment]:
        """One segment, each step a full forward pass over prompt and answer (paper section 3.3.2, stage 2)."""
        plan = self._nocache_plan(shape, sparsity)
        limit = self._limit(steps)
        with constraints(self._constraint):
            return self._nocache(self._params, state, limit, plan=plan)

    def compile(self, shape: Shape, sparsity: SparsityConfig) -> None:
        """Compiles all that single-turn requests of this shape can need, by running it on nothing."""
        shape = dataclasses.replace(shape, rows=self._whole_rows(shape.rows))
        state, _ = self.open(*self._nothing(shape), shape, sparsity)
        state, _ = self._decode(state, self._limit(0), sparsity)
        for capacity in shape.deep_capacities(self._rate(sparsity))[1:]:
            with constraints(self._constraint):
                state = self._grow(state, capacity=capacity)
            state, _ = self._decode(state, self._limit(0), sparsity)

    def segment_program(
        self, shape: Shape, sparsity: SparsityConfig, grown: int = 0
    ) -> tuple[Callable[..., tuple[DecodeState, Segment]], Any, DecodeState]:
        """What `advance` compiles, for whoever wants to know it without running it (`analysis.decode_program`).

        Args:
            shape: of the batch.
            sparsity: what is dropped.
            grown: how often the deep cache has grown.

        Returns:
            The traced body, a function of weights, state and step limit; the weights; the state's shapes.
        """
        body = functools.partial(self._run_segment, plan=self._segment_plan(sparsity))
        prefill = functools.partial(self._run_prefill, plan=self.opening_plan(shape, sparsity))
        state, _ = jax.eval_shape(prefill, self._params, *self._nothing(shape))
        for capacity in shape.deep_capacities(self._rate(sparsity))[1 : grown + 1]:
            state = jax.eval_shape(functools.partial(self._run_grow, capacity=capacity), state)
        return body, self._params, state

    def prefill_program(
        self, shape: Shape, sparsity: SparsityConfig
    ) -> tuple[Callable[..., Any], Any, tuple[Batch, Asked]]:
        """What opens an answer, as `segment_program`: the body, the weights, and its other arguments' shapes."""
        body = functools.partial(self._run_prefill, plan=self.opening_plan(shape, sparsity))
        return body, self._params, self._nothing(shape)

    def _nothing(self, shape: Shape) -> tuple[Batch, Asked]:
        size = self.config.vision.image_size
        flat, row = np.zeros((shape.rows, shape.length), np.int32), np.zeros(shape.rows, np.int32)
        images = np.zeros((shape.rows, shape.images, size, size, 3), np.float32) if shape.images else None
        zero = np.zeros(shape.rows, np.float32)
        return Batch(flat, flat, flat, row, row, images), Asked(row, zero, row, zero + 1, row.astype(np.uint32))

    def _decode(
        self, state: DecodeState, limit: Int[Array, ""], sparsity: SparsityConfig
    ) -> tuple[DecodeState, Segment]:
        with constraints(self._constraint):
            return self._segment(self._params, state, limit, plan=self._segment_plan(sparsity))

    def _make_room(self, state: DecodeState, shape: Shape, sparsity: SparsityConfig) -> DecodeState:
        deep = state.cache.deep
        done, length = jax.device_get((state.done, deep.length))
        longest = np.max(np.where(done, 0, length), initial=0)
        if longest < deep.capacity:
            return state
        larger = [size for size in shape.deep_capacities(self._rate(sparsity)) if size > deep.capacity]
        with constraints(self._constraint):
            return self._grow(state, capacity=larger[0])

    def _prefill_plan(self, shape: Shape, sparsity: SparsityConfig) -> PrefillPlan:
        return PrefillPlan(sparsity, shape.deep_length, attention=self._attention, dtype=self.dtype)

    def opening_plan(self, shape: Shape, sparsity: SparsityConfig) -> PrefillPlan:
        """Of the pass that fills the caches: a prompt holds no answer, so that there is none to judge."""
        return dataclasses.replace(
            self._prefill_plan(shape, dataclasses.replace(sparsity, output_selector=None)),
            shallow_capacity=shape.shallow_capacity,
            deep_capacity=shape.deep_capacities(self._rate(sparsity))[0],
        )

    def _segment_plan(self, sparsity: SparsityConfig) -> SegmentPlan:
        plan = self._extend_plan("output", sparsity)
        return SegmentPlan(plan, self.buckets.segment, self.stop_ids, self.config.text_prep.pad_id or 0)

    def _extend_plan(self, judge: Any, sparsity: SparsityConfig) -> ExtendPlan:
        probe = Probe(logits=self._collect_logits and judge == "output")
        how = {"attention": self._attention, "products": self._products, "in_pieces": self._in_pieces}
        return ExtendPlan(sparsity, judge, probe, dtype=self.dtype, **how)

    def _nocache_plan(self, shape: Shape, sparsity: SparsityConfig) -> nocache.NoCachePlan:
        plan = self._prefill_plan(shape, sparsity)
        return nocache.NoCachePlan(plan, self.buckets.segment, self.stop_ids, self.config.text_prep.pad_id or 0)

    def _limit(self, steps: int | None) -> Int[Array, ""]:
        return self.place(np.int32(self.buckets.segment if steps is None else min(steps, self.buckets.segment)))

    def _rate(self, sparsity: SparsityConfig) -> float:
        return output_rate(dataclasses.replace(self.config, sparsity=sparsity))

    def place(self, tree: Any) -> Any:
        """Arrays from the host, rows split over the mesh, or beside the weights."""
        mesh = self.mesh
        if mesh is None:
            # What could stand anywhere would have every program compiled once more.
            return jax.device_put(tree, jax.tree.leaves(self._params)[0].sharding)

        def put(x: Any) -> jax.Array:
            axes = ("batch", *(None,) * (np.ndim(x) - 1)) if np.ndim(x) else ()
            return jax.device_put(x, activation_sharding(np.shape(x), axes, mesh))

        return jax.tree.map(put, tree)

    # The traced bodies.

    def _run_prefill(self, params: Any, batch: Batch, asked: Asked, plan: PrefillPlan) -> tuple[DecodeState, Opened]:
        draws = _draws(asked)
        out = prefill(nnx.merge(self._graph, params), batch, draws.key, plan)
        assert out.cache is not None
        return start(out.logits, out.cache, asked.budget, draws, self.stop_ids), _opened(out)

    def _run_segment(
        self, params: Any, state: DecodeState, limit: Array, plan: SegmentPlan
    ) -> tuple[DecodeState, Segment]:
        return segment(nnx.merge(self._graph, params), state, limit, plan)

    def _run_extend(
        self,
        params: Any,
        tokens: Array,
        lengths: Array,
        cache: Cache,
        asked: Asked,
        plan: ExtendPlan,
    ) -> DecodeState:
        draws = _draws(asked)
        out = extend(nnx.merge(self._graph, params), tokens, lengths, cache, draws.key, plan)
        return start(out.logits, out.cache, asked.budget, draws, self.stop_ids)

    def _run_repack(self, cache: Cache, capacities: tuple[int, int]) -> Cache:
        return Cache(cache.shallow.repack(capacities[0]), cache.deep.repack(capacities[1]))

    def _run_grow(self, state: DecodeState, capacity: int) -> DecodeState:
        cache = Cache(state.cache.shallow, state.cache.deep.grow(capacity))
        return dataclasses.replace(state, cache=cache)

    def _run_nocache_open(
        self, params: Any, batch: Batch, asked: Asked, plan: nocache.NoCachePlan
    ) -> tuple[nocache.NoCacheState, Opened]:
        state, out = nocache.start(nnx.merge(self._graph, params), batch, asked.budget, _draws(asked), plan)
        return state, _opened(out)

    def _run_nocache(
        self, params: Any, state: nocache.NoCacheState, limit: Array, plan: nocache.NoCachePlan
    ) -> tuple[nocache.NoCacheState, Segment]:
        return nocache.segment(nnx.merge(self._graph, params), state, limit, plan)


def _opened(out: PrefillOutput) -> Opened:
    return Opened(out.kept_origin, out.logits, out.selection.lengths, out.origin, out.selection.image_scores)


def _draws(asked: Asked) -> Draws:
    return Draws(asked.temperature, asked.k, asked.p, jax.vmap(random_key)(asked.seed))


def _where(params: Any) -> OneDevice | None:
    """The device that the weights lie on, which need not be JAX's default."""
    sharding = getattr(jax.tree.leaves(params)[0], "sharding", None)
    return None if sharding is None else OneDevice(next(iter(sharding.device_set)))
