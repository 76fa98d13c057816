"""The decode segment and the prefill that the engine runs, compiled for a machine that need not exist.

L layers of one stack, B batch rows, G key/value heads, C cache capacity, E head dimension.

    python -m dynllava_jax.analysis.decode_program a100:1x1 --rows 8
"""

import argparse
import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dynllava_jax.analysis.aot import compile_ahead, described, memory, place, topology
from dynllava_jax.checkpoint.leaves import abstract_model
from dynllava_jax.config.model import ModelConfig
from dynllava_jax.config.presets import dynamic_llava_7b
from dynllava_jax.inference.buckets import Buckets, Shape
from dynllava_jax.inference.cache import AXES
from dynllava_jax.inference.decode import DecodeState
from dynllava_jax.inference.engine import Engine
from dynllava_jax.inference.layouts import placement
from dynllava_jax.kernels import api
from dynllava_jax.nn.constrain import constraints
from dynllava_jax.sharding.mesh import make_mesh
from dynllava_jax.sharding.specs import activation_constraint, activation_sharding, replicated


def compile_segment(
    config: ModelConfig,
    shape: Shape,
    where: Any,
    *,
    dtype: str = "bfloat16",
    grown: int = 0,
    attention: api.Implementation = None,
    products: str | None = None,
) -> jax.stages.Compiled:
    """Compiles what `Engine.advance` runs; its memory is `aot.memory` of the result.

    Args:
        config: the model.
        shape: of the batch.
        where: a device or a mesh (see `aot.topology` and `sharding.mesh.make_mesh`).
        dtype: of weights, cache and computation.
        grown: how often the deep cache has grown.
        attention: implementation of attention, see `kernels.api`.
        products: fused kernels for products, see `kernels.products`.
    """
    engine, mesh = _engine(config, where, dtype, attention, products)
    limit = jax.ShapeDtypeStruct((), np.int32)
    with _tracing(where):
        body, params, state = engine.segment_program(shape, config.sparsity, grown)
        limit = place(limit, where if mesh is None else replicated(mesh))
        return compile_ahead(
            body, params, _place(state, where), limit, donate_argnums=(1,), compiler_options=engine.xla_options
        )


def segment_arguments(
    config: ModelConfig, shape: Shape, where: Any, *, dtype: str = "bfloat16", grown: int = 0
) -> tuple[Any, DecodeState]:
    """The weights and the state of `compile_segment`, as shapes that lie where they will lie."""
    engine, _ = _engine(config, where, dtype, None)
    with _tracing(where):
        _, params, state = engine.segment_program(shape, config.sparsity, grown)
    return params, _place(state, where)


def compile_prefill(
    config: ModelConfig, shape: Shape, where: Any, *, dtype: str = "bfloat16", attention: api.Implementation = None
) -> jax.stages.Compiled:
    """Compiles what `Engine.open` runs; arguments as those of `compile_segment`."""
    engine, _ = _engine(config, where, dtype, attention)
    with _tracing(where):
        body, params, arguments = engine.prefill_program(shape, config.sparsity)
        return compile_ahead(body, params, *_place(arguments, where), compiler_options=engine.xla_options)


def _engine(
    config: ModelConfig, where: Any, dtype: str, attention: api.Implementation, products: str | None = None
) -> tuple[Engine, Mesh | None]:
    mesh = where if isinstance(where, Mesh) else None
    model = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.dtype(dtype)), abstract_model(config))
    model = place(model, placement(model, where, config))
    stop_ids = (config.text_prep.eos_id,)
    options = {"dtype": dtype, "stop_ids": stop_ids, "attention": attention, "products": products}
    return Engine(model, buckets=Buckets(), mesh=mesh, **options), mesh


@contextlib.contextmanager
def _tracing(where: Any) -> Iterator[None]:
    """What `where` means to activations and kernels while a program is traced."""
    if isinstance(where, Mesh):
        with constraints(activation_constraint(where)), described(where.devices.flat[0]):
            yield
    else:
        with described(where):
            yield


def _place(tree: Any, where: Any) -> Any:
    return place(tree, jax.tree.map(lambda x: _sharding(x, where), tree) if isinstance(where, Mesh) else where)


def _sharding(x: Any, mesh: Mesh) -> jax.sharding.NamedSharding:
    axes = AXES if len(x.shape) == len(AXES) else ("batch", *(None,) * (len(x.shape) - 1))
    return activation_sharding(x.shape, axes, mesh)


def main() -> None:
    """Prints the memory of one device for Dynamic-LLaVA-7B, in MiB."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("topology", help="such as a100:1x1 or v5e:2x2")
    parser.add_argument("--mesh", help="such as tensor=4; default: the topology's first device")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--grown", type=int, default=0, help="how often the deep cache has grown")
    parser.add_argument("--attention", action="append", metavar="NAME", help="implementation; the first that serves")
    args = parser.parse_args()
    config = dynamic_llava_7b()
    config = dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, num_layers=args.layers))
    devices = topology(args.topology)
    where = make_mesh(args.mesh, devices) if args.mesh else devices[0]
    shape = Shape(args.rows, images=1, length=768, deep_length=256, answer=2048)
    needs = memory(compile_segment(config, shape, where, grown=args.grown, attention=args.attention))
    share = needs.temporaries / needs.arguments
    print(f"weights + cache {needs.arguments / 2**20:.0f}, temporaries {needs.temporaries / 2**20:.0f} ({share:.1%})")


if __name__ == "__main__":
    main()
