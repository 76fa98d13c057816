"""The products of one decoder layer for a few rows, on GPUs, by Pallas-Triton: three kernels in place of a dozen.

B rows, L layers of one stack, D hidden size, E head dimension, Q and KV columns of all query and all key/value heads,
F hidden features of the MLP, I inputs of one product, P programs that write the residual stream.

Weights are passed as whole stacks and addressed by layer, so that none is copied. A program reads some columns of them
from top to bottom, and every program the rows, which are few. Between two steps of its loop stands only what a tensor
core needs: who writes the residual stream also writes it times the next norm's scale, and sums of its squares. What a
row's norm divides it by is one number, by which the product is divided in the end.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pltriton
from jaxtyping import Array, Float, Int

from dynllava_jax.kernels import tuning
from dynllava_jax.kernels.limits import check
from dynllava_jax.kernels.target import target
from dynllava_jax.kernels.triton import SMALLEST, cells, dot, fitting, triton_call

_MOST_ROWS = 16


class Stream(NamedTuple):
    """The residual stream, with what the RMSNorm before the next products needs.

    Attributes:
        x: the stream.
        scaled: times the scale of that norm.
        squares: sums of x² over some columns each, P of them, in float32; all of them together are the row's.
    """

    x: Float[Array, "B D"]
    scaled: Float[Array, "B D"]
    squares: Float[Array, "B P"]


class Kept(NamedTuple):
    """Every layer's rotated keys and values, of which a layer writes its own in place."""

    key: Float[Array, "L B KV"]
    value: Float[Array, "L B KV"]


@dataclasses.dataclass(frozen=True)
class Products:
    """The three kernels; `interpret` runs them as plain JAX, on any platform."""

    interpret: bool = False

    def check(self, rows: int, dtype: jnp.dtype, head_dim: int) -> None:
        """Raises NotImplementedError for rows, a dtype, head dimension or GPU that they do not serve."""
        check(dtype, head_dim)
        if rows > _MOST_ROWS:
            raise NotImplementedError(f"it serves up to {_MOST_ROWS} rows, not {rows}")
        if self.interpret:
            return
        tuning.gpu_blocks(target(), head_dim, dtype.itemsize)
        if head_dim % (2 * SMALLEST):  # half a head is a tile of columns, or several
            raise NotImplementedError(f"it serves head dimensions that are multiples of {2 * SMALLEST}, not {head_dim}")
        if dtype != jnp.bfloat16:
            raise NotImplementedError(f"it multiplies bfloat16 on tensor cores, not {dtype.name}")

    def begin(self, x: Float[Array, "B D"], scale: Float[Array, " D"]) -> Stream:
        """The stream before the first layer, whose norm has this scale."""
        wide = x.astype(jnp.float32)
        squares = jnp.sum(wide * wide, axis=1, keepdims=True)
        parts = pl.cdiv(x.shape[1], tuning.GPU_PRODUCTS.added.columns)
        return Stream(x, _scaled(wide, scale).astype(x.dtype), jnp.pad(squares, ((0, 0), (0, parts - 1))))

    def rotated(
        self,
        stream: Stream,
        eps: float,
        weights: Sequence[Float[Array, "L D _"]],
        cos: Float[Array, "B E"],
        sin: Float[Array, "B E"],
        layer: Int[Array, ""],
        kept: Kept,
    ) -> tuple[Float[Array, "B Q"], Float[Array, "B KV"], Float[Array, "B KV"], Kept]:
        """Rotated queries, rotated keys, and values: of the normed rows by the three weights.

        Args:
            stream: scaled for the norm before them.
            eps: what the norm adds to the mean square.
            weights: of queries, keys and values.
            cos, sin: of each row's rotation.
            layer: whose weights.
            kept: where this layer's keys and values are written too; what is returned takes its place.
        """
        half = cos.shape[1] // 2
        walk = tuning.GPU_PRODUCTS.rotated
        tile = min(walk.columns, half & -half)
        outputs = [weight.shape[2] for weight in weights]
        heads = tuple(size // (2 * half) for size in outputs)
        body = functools.partial(_rotated, heads=heads, half=half, eps=eps, tile=tile)
        out_shape = [jax.ShapeDtypeStruct((len(cos), size), stream.x.dtype) for size in outputs]
        out_shape += [jax.ShapeDtypeStruct(stack.shape, stack.dtype) for stack in kept]
        arguments = (layer[None], stream.scaled, stream.squares, cos, sin, *weights, *kept)
        aliases = {len(arguments) - 2: 3, len(arguments) - 1: 4}
        call = self._call(body, walk, (sum(heads), half // tile), out_shape, "rotated", input_output_aliases=aliases)
        query, key, value, *stacks = call(*arguments)
        return query, key, value, Kept(*stacks)

    def gated(
        self,
        stream: Stream,
        eps: float,
        gate: Float[Array, "L D F"],
        up: Float[Array, "L D F"],
        layer: Int[Array, ""],
    ) -> Float[Array, "B F"]:
        """silu(gate) · up of the normed rows; arguments as those of `rotated`."""
        walk, size = tuning.GPU_PRODUCTS.gated, gate.shape[2]
        body, programs = functools.partial(_gated, eps=eps, tile=walk.columns), (pl.cdiv(size, walk.columns),)
        out_shape = [jax.ShapeDtypeStruct((len(stream.x), size), stream.x.dtype)]
        (out,) = self._call(body, walk, programs, out_shape, "gated")(
            layer[None], stream.scaled, stream.squares, gate, up
        )
        return out

    def added(
        self,
        stream: Stream,
        hidden: Float[Array, "B I"],
        weight: Float[Array, "L I D"],
        layer: Int[Array, ""],
        scale: Float[Array, "L D"],
        ahead: int = 0,
    ) -> Stream:
        """Adds hidden @ weight to the stream, rounded once.

        Args:
            stream: what it is added to.
            hidden: the left side of the product.
            weight: the right side.
            layer: whose weight.
            scale: every layer's scale of the norm that comes next.
            ahead: that norm is so many layers further; behind the last one, the last layer's stands for it.
        """
        walk, (rows, size) = tuning.GPU_PRODUCTS.added, stream.x.shape
        body, programs = functools.partial(_added, ahead=ahead, tile=walk.columns), pl.cdiv(size, walk.columns)
        out_shape = [jax.ShapeDtypeStruct((rows, size), stream.x.dtype)] * 2
        out_shape.append(jax.ShapeDtypeStruct((rows, programs), jnp.float32))
        return Stream(
            *self._call(body, walk, (programs,), out_shape, "added")(layer[None], stream.x, hidden, weight, scale)
        )

    def _call(
        self,
        body: Callable[..., None],
        walk: tuning.ProductWalk,
        programs: tuple[int, ...],
        out_shape: Sequence[jax.ShapeDtypeStruct],
        name: str,
        **options: Any,
    ) -> Callable[..., Any]:
        return triton_call(
            functools.partial(body, rows=fitting(out_shape[0].shape[0]), step=walk.step),
            warps=walk.warps,
            stages=walk.stages,
            interpret=self.interpret,
            grid=programs,
            out_shape=out_shape,
            name=f"decode_{name}",
            **options,
        )


def _rotated(layer_ref, x_ref, squares_ref, cos_ref, sin_ref, *refs, heads, half, eps, tile, rows, step):
    row, place = jnp.arange(rows), pl.program_id(1) * tile + jnp.arange(tile)
    first = 0
    # The two in between are the stacks again, as arguments, in whose place the last two are written.
    weights, outputs, stacks = refs[:3], refs[5:8], (None, *refs[8:])
    for turned, count, weight_ref, out_ref, kept_ref in zip(
        (True, True, False), heads, weights, outputs, stacks, strict=True
    ):
        head = pl.program_id(0) - first

        def one(head=head, turned=turned, weight_ref=weight_ref, out_ref=out_ref, kept_ref=kept_ref):
            columns = [head * 2 * half + place + side for side in (0, half)]
            pair = _normed(x_ref, squares_ref, layer_ref[0], [(weight_ref, c) for c in columns], eps, rows, step)
            if turned:
                left, right = (_rounded(part, out_ref) for part in pair)
                cos, sin = ([_load(ref, row, place + side) for side in (0, half)] for ref in (cos_ref, sin_ref))
                pair = left * cos[0] - right * sin[0], right * cos[1] + left * sin[1]
            for part, column in zip(pair, columns, strict=True):
                _store(out_ref, row, column, part)
                if kept_ref is not None:
                    _store(kept_ref, row, column, part, layer_ref[0])

        pl.when((head >= 0) & (head < count))(one)
        first += count


def _gated(layer_ref, x_ref, squares_ref, gate_ref, up_ref, out_ref, *, eps, tile, rows, step):
    column = pl.program_id(0) * tile + jnp.arange(tile)
    both = _normed(x_ref, squares_ref, layer_ref[0], [(gate_ref, column), (up_ref, column)], eps, rows, step)
    gate, up = (_rounded(part, out_ref) for part in both)
    _store(out_ref, jnp.arange(rows), column, gate / (1.0 + jnp.exp(-gate)) * up)


def _added(
    layer_ref, x_ref, hidden_ref, weight_ref, scale_ref, out_ref, scaled_ref, squares_ref, *, ahead, tile, rows, step
):
    row, column = jnp.arange(rows), pl.program_id(0) * tile + jnp.arange(tile)
    (found,) = _products(hidden_ref, layer_ref[0], [(weight_ref, column)], rows, step)
    x = _rounded(_load(x_ref, row, column).astype(jnp.float32) + found, out_ref)
    following = jnp.minimum(layer_ref[0] + ahead, scale_ref.shape[0] - 1)
    _store(out_ref, row, column, x)
    _store(scaled_ref, row, column, _scaled(x, _load(scale_ref, following[None], column)))
    _store(squares_ref, row, pl.program_id(0)[None], jnp.sum(x * x, axis=1, keepdims=True))


def _scaled(x, scale):
    return x * scale.astype(jnp.float32)


def _normed(x_ref, squares_ref, layer, tiles, eps, rows, step):
    """`_products` of the normed rows, of which `x_ref` holds the scaled ones."""
    squares = _load(squares_ref, jnp.arange(rows), jnp.arange(pl.next_power_of_2(squares_ref.shape[1])))
    sums = _products(x_ref, layer, tiles, rows, step)
    inverse = lax.rsqrt(jnp.sum(squares, axis=1, keepdims=True) / x_ref.shape[1] + eps)
    return [total * inverse for total in sums]


def _products(x_ref, layer, tiles, rows, step):
    """The rows by some columns of each of some weights, in float32."""
    row = jnp.arange(rows)

    def body(index, sums):
        place = index * step + jnp.arange(step)
        x = _load(x_ref, row, place)
        return [
            total + dot(x, _load(ref, place, column, layer)) for total, (ref, column) in zip(sums, tiles, strict=True)
        ]

    zeros = [jnp.zeros((rows, column.shape[0])) for _, column in tiles]
    return lax.fori_loop(0, pl.cdiv(x_ref.shape[1], step), body, zeros)


def _load(ref, row, column, *index):
    inside = _inside(ref, row, column)
    return pltriton.load(ref.at[(*index, *cells(row, column))], mask=inside, other=None if inside is None else 0.0)


def _store(ref, row, column, x, *index):
    pltriton.store(ref.at[(*index, *cells(row, column))], x.astype(ref.dtype), mask=_inside(ref, row, column))


def _inside(ref, row, column):
    """Which cells the array has; None where it is known to have all, because whole tiles make it up."""
    shape = (row.shape[0], column.shape[0])
    limits = ((row[:, None], ref.shape[-2]), (column[None], ref.shape[-1]))
    known = [jnp.broadcast_to(at < size, shape) for at, size in limits if size % at.size]
    return functools.reduce(jnp.logical_and, known) if known else None


def _rounded(x, ref):
    """As it would be if it had been stored in between."""
    return x.astype(ref.dtype).astype(jnp.float32)
