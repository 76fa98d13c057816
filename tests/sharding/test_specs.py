import dataclasses
import logging
import math

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from dynllava_jax.config.decoder import DecoderConfig
from dynllava_jax.config.model import ModelConfig
from dynllava_jax.config.presets import PRESETS
from dynllava_jax.errors import InputError
from dynllava_jax.model.dynllava import DynamicLlava
from dynllava_jax.nn.attention import Attention
from dynllava_jax.nn.constrain import constrain, constraints, per_shard
from dynllava_jax.nn.mlp import GatedMlp
from dynllava_jax.nn.norm import RmsNorm
from dynllava_jax.nn.param import normal, param
from dynllava_jax.nn.stack import stack
from dynllava_jax.sharding import specs
from dynllava_jax.sharding.mesh import make_mesh
from dynllava_jax.sharding.specs import activation_constraint, activation_sharding, param_shardings


class Layer(nnx.Module):
    def __init__(self, rngs: nnx.Rngs, config: DecoderConfig):
        self.norm = RmsNorm(rngs, config.hidden_size, config.norm_eps)
        self.attention = Attention(rngs, config)
        self.mlp = GatedMlp(rngs, config.hidden_size, config.intermediate_size, 0.02)


class Decoder(nnx.Module):
    def __init__(self, rngs: nnx.Rngs, config: DecoderConfig):
        self.embedding = param(rngs, (config.vocab_size, config.hidden_size), ("vocab", "embed"), normal(0.02))
        self.shallow = stack(rngs, 3, lambda rngs: Layer(rngs, config))


class Model(nnx.Module):
    def __init__(self, rngs: nnx.Rngs, config: DecoderConfig):
        self.decoder = Decoder(rngs, config)


TINY = DecoderConfig(
    hidden_size=16, intermediate_size=24, num_heads=4, num_kv_heads=4, head_dim=4, num_layers=3, vocab_size=40
)


def tiny(**changes) -> DecoderConfig:
    return dataclasses.replace(TINY, **changes)


def build(config: DecoderConfig) -> Model:
    return Model(nnx.Rngs(params=jax.random.key(0)), config)


def shardings(config: DecoderConfig, mesh: str):
    return param_shardings(jax.eval_shape(lambda: build(config)), make_mesh(mesh), ModelConfig(decoder=config))


def test_stacked_parameters_follow_their_names():
    decoder = shardings(tiny(), "data=2,fsdp=2,tensor=2").decoder
    layer = decoder.shallow
    assert decoder.embedding.get_value().spec == P("tensor", "fsdp")
    assert layer.attention.query.kernel.get_value().spec == P(None, "fsdp", "tensor")
    assert layer.attention.out.kernel.get_value().spec == P(None, "tensor", "fsdp")
    assert layer.mlp.down.kernel.get_value().spec == P(None, "tensor", "fsdp")
    assert layer.norm.scale.get_value().spec == P(None, None)


def test_a_sharded_model_is_born_in_place_and_computes_the_same():
    config, mesh = tiny(), make_mesh("fsdp=4,tensor=2")
    wanted = param_shardings(jax.eval_shape(lambda: build(config)), mesh, ModelConfig(decoder=config))
    model = jax.jit(lambda: build(config), out_shardings=wanted)()
    kernel = model.decoder.shallow.mlp.up.kernel[...]
    assert kernel.addressable_shards[0].data.shape == (3, 4, 12)

    def run(model: Model, x: jax.Array) -> jax.Array:
        x = constrain(x, "batch", "seq", "embed")
        return jax.lax.scan(lambda x, layer: (x + layer.mlp(layer.norm(x)), None), x, model.decoder.shallow)[0]

    x = jax.random.normal(jax.random.key(1), (4, 5, 16))
    with constraints(activation_constraint(mesh)):
        y = jax.jit(run)(model, x)
    assert y.sharding.is_equivalent_to(activation_sharding(y.shape, ("batch", "seq", "embed"), mesh), y.ndim)
    assert jnp.abs(y - run(build(config), x)).max() < 1e-6


def test_a_function_runs_on_each_part_alone():
    mesh, seen = make_mesh("data=2,tensor=4"), []

    def scaled(tree: dict[str, jax.Array], by: jax.Array) -> dict[str, jax.Array]:
        seen.append((tree["x"].shape, by.shape))
        return {"x": tree["x"] * by[:, None]}

    tree, by = {"x": jnp.arange(24.0).reshape(4, 6)}, jnp.arange(4.0)
    axes = {"axes": (("batch", "kv_heads"), ("batch",)), "out": ("batch", "kv_heads")}
    with constraints(activation_constraint(mesh)):
        split = jax.jit(lambda tree, by: per_shard(scaled, tree, by, **axes))(tree, by)
    assert seen[-1] == ((2, 6), (2,))  # four devices do not divide six heads, two do divide four samples
    assert jnp.array_equal(split["x"], per_shard(scaled, tree, by, **axes)["x"])
    assert seen[-1] == ((4, 6), (4,))


def test_optimizer_moments_are_sharded_as_their_parameters():
    config, mesh = tiny(), make_mesh("fsdp=4,tensor=2")
    params = jax.eval_shape(lambda: nnx.state(build(config), nnx.Param))
    moments = param_shardings(jax.eval_shape(optax.adam(1e-3).init, params), mesh, ModelConfig(decoder=config))
    assert moments[0].mu["decoder"]["shallow"]["mlp"]["up"]["kernel"].get_value().spec == P(None, "fsdp", "tensor")
    assert moments[0].count.spec == P()


def test_too_few_kv_heads_are_replicated_with_one_log_line(caplog):
    config = tiny(num_kv_heads=2, head_dim=8)
    specs._log_once.cache_clear()  # another test may have met the same line
    with caplog.at_level(logging.INFO, "dynllava_jax"):
        attention = shardings(config, "data=2,tensor=4").decoder.shallow.attention
    # The kernel's 16 columns would divide by 4, but that would cut heads in two.
    assert attention.key.kernel.get_value().spec == P(None, None, None)
    assert attention.query.kernel.get_value().spec == P(None, None, "tensor")
    assert [record.message for record in caplog.records] == [
        "decoder kv_heads (2) replicated: mesh tensor=4 does not divide it"
    ]


def test_odd_vocabulary_is_replicated():
    assert shardings(tiny(vocab_size=41), "tensor=2").decoder.embedding.get_value().spec == P(None, None)


def test_heads_that_do_not_divide_are_an_error():
    with pytest.raises(InputError, match=r"tensor=8 does not divide the decoder's heads \(4\)"):
        shardings(tiny(vocab_size=64), "tensor=8")


def test_a_batch_that_is_split_in_part_is_not_called_replicated(caplog):
    specs._log_once.cache_clear()
    with caplog.at_level(logging.INFO, "dynllava_jax"):
        split = activation_sharding((2, 3), ("batch", "kv_heads"), make_mesh("data=2,fsdp=2,tensor=2"))
    assert split.spec == P("data", None)
    assert [record.message for record in caplog.records] == [
        "activation batch (2) split over data=2 alone: mesh data=2,fsdp=2 does not divide it",
        "activation kv_heads (3) replicated: mesh tensor=2 does not divide it",
    ]


def test_a_batch_is_split_as_far_as_it_goes():
    mesh = make_mesh("data=2,fsdp=2,tensor=2")
    cache = ("layers", "batch", "kv_heads", None, None)
    assert activation_sharding((3, 4, 2, 9, 4), cache, mesh).spec == P(None, ("data", "fsdp"), "tensor", None, None)
    assert activation_sharding((3, 2, 2, 9, 4), cache, mesh).spec == P(None, "data", "tensor", None, None)
    assert activation_sharding((3, 1, 1, 9, 4), cache, mesh).spec == P(None, None, None, None, None)


@pytest.mark.parametrize("name", ["dynamic_llava_7b", "dynamic_llava_13b", "dynamic_llava_70b"])
@pytest.mark.parametrize("mesh", ["fsdp=8", "fsdp=2,tensor=4"])
def test_full_size_weights_take_an_eighth_of_each_device(name: str, mesh: str):
    config = PRESETS[name]()
    model = jax.eval_shape(lambda: DynamicLlava(nnx.Rngs(params=jax.random.key(0)), config))
    specs = param_shardings(model, make_mesh(mesh), config)
    pairs = list(zip(jax.tree.leaves(model), jax.tree.leaves(specs), strict=True))
    total = sum(leaf.size for leaf, _ in pairs)
    share = sum(math.prod(sharding.shard_shape(leaf.shape)) for leaf, sharding in pairs)
    assert total / 8 <= share < total / 8 * 1.02
