"""The analytic FLOPs against what XLA counts in the lowered programs of the model's own parts."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from dynllava_jax.analysis import flops
from dynllava_jax.config import presets
from dynllava_jax.config.decoder import DecoderConfig
from dynllava_jax.config.model import ImagePrep, ModelConfig
from dynllava_jax.config.sparsity import (
    LinearPredictor,
    MlpPredictor,
    Predictor,
    SparsityConfig,
    TransformerPredictor,
)
from dynllava_jax.config.training import LoraConfig, OptimizerConfig
from dynllava_jax.config.vision import MlpProjector, Projector, TokenPackerProjector, VisionConfig
from dynllava_jax.kernels import xla
from dynllava_jax.model.decoder import Decoder, run_stack
from dynllava_jax.model.predictors import learned
from dynllava_jax.model.projector import make_projector
from dynllava_jax.model.vision import VisionTower
from dynllava_jax.nn.rope import rope
from dynllava_jax.sparsify.selector import SelectorContext

S = 256
WIDE = ModelConfig(
    # XLA counts the body of a loop once: one layer in each.
    vision=VisionConfig(
        hidden_size=256, intermediate_size=512, num_layers=2, num_heads=2, image_size=224, select_layer=1
    ),
    decoder=DecoderConfig(
        vocab_size=1024,
        hidden_size=256,
        intermediate_size=768,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=64,
    ),
    sparsity=SparsityConfig(
        sparse_layer=1,
        image_predictor=TransformerPredictor(256, 4, 512, 1),
        text_predictor=MlpPredictor(256),
    ),
    image_prep=ImagePrep(crop=224),
)


def counted(function: Callable[..., Any], *args: Any) -> float:
    cost: Any = jax.jit(function).lower(*args).cost_analysis()
    return cost["flops"]


def abstract(make: Callable[[nnx.Rngs], Any]) -> Any:
    return jax.eval_shape(lambda: make(nnx.Rngs(params=jax.random.key(0))))


def real(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def run_decoder(decoder: Decoder, hidden: jax.Array) -> jax.Array:
    by = rope(WIDE.decoder, jnp.arange(S)[None])
    for layers in (decoder.shallow, decoder.deep):
        hidden = run_stack(layers, hidden, by, lambda q, k, v, index: xla.attention(q, k, v)).hidden
    return decoder.logits(hidden)


def test_decoder() -> None:
    layer, head = flops.decoder_layer(WIDE.decoder, S), 2 * S * 256 * 1024
    decoder = abstract(lambda rngs: Decoder(rngs, WIDE.decoder, 1))
    found = counted(run_decoder, decoder, real(1, S, 256))
    assert 2 * layer.forward + head == pytest.approx(found, rel=0.04)

    def loss(decoder: Decoder, hidden: jax.Array) -> jax.Array:
        return jnp.sum(run_decoder(decoder, hidden) ** 2)

    found = counted(jax.grad(loss, argnums=(0, 1)), decoder, real(1, S, 256))
    both = 2 * (layer.forward + layer.backward(True, True)) + 3 * head
    assert both == pytest.approx(found, rel=0.06)
    found = counted(jax.grad(loss, argnums=1), decoder, real(1, S, 256))
    inputs = 2 * (layer.forward + layer.backward(False, True)) + 2 * head
    assert inputs == pytest.approx(found, rel=0.06)


def test_tower() -> None:
    found = counted(
        lambda tower, x: tower(x).features, abstract(lambda rngs: VisionTower(rngs, WIDE)), real(1, 224, 224, 3)
    )
    assert flops.tower(WIDE.vision, 1).forward == pytest.approx(found, rel=0.04)


@pytest.mark.parametrize("kind", [MlpProjector(2), TokenPackerProjector(2, 512, 2, (1, 2))])
def test_projector(kind: Projector) -> None:
    config = dataclasses.replace(
        WIDE,
        projector=kind,
        vision=dataclasses.replace(WIDE.vision, hidden_size=512),
        decoder=dataclasses.replace(WIDE.decoder, hidden_size=1024),
    )
    features = real(1, 256, 512)
    levels = [features] * 2 if isinstance(kind, TokenPackerProjector) else None
    made = abstract(lambda rngs: make_projector(rngs, config))
    found = counted(lambda made, x, levels: made(x, levels), made, features, levels)
    assert flops.projector(config).forward == pytest.approx(found, rel=0.04)


@pytest.mark.parametrize("kind", [LinearPredictor(), MlpPredictor(256), TransformerPredictor(256, 4, 512, 1)])
def test_predictor(kind: Predictor) -> None:
    place = "image" if isinstance(kind, TransformerPredictor) else "output"
    context = SelectorContext(1024, 64, 16, 0.2, kind, place, 0.02)
    found = counted(lambda made, x: made.logits(x), abstract(lambda rngs: learned(rngs, context)), real(1, 64, 1024))
    # A linear predictor does little but its norm.
    assert flops.predictor(kind, 1024, 64).forward == pytest.approx(
        found, rel=0.9 if kind == LinearPredictor() else 0.1
    )


def step(model: ModelConfig = WIDE, **options: Any) -> float:
    return flops.training_flops(model, OptimizerConfig(**options), rows=2, length=S, slots=1)


def test_what_is_frozen_costs_less() -> None:
    layer, head = flops.decoder_layer(WIDE.decoder, S), 2 * S * 256 * 1024
    tower, projector = flops.tower(WIDE.vision, 1), flops.projector(WIDE)
    image = flops.predictor(WIDE.sparsity.image_predictor, 256, 256)
    text = flops.predictor(WIDE.sparsity.text_predictor, 256, 1).times(S)
    trained = (projector, layer, layer, image, text)
    assert step() == pytest.approx(2 * (tower.forward + 3 * (sum(part.forward for part in trained) + head)))
    only = step(freeze_decoder=True, freeze_projector=True)
    below = tower.forward + projector.forward + layer.forward
    above = 2 * (layer.weights + head) + 3 * layer.mixing
    assert only == pytest.approx(2 * (below + 3 * (image.forward + text.forward) + above))
    assert step(freeze_vision=False) > step() > step(freeze_projector=True) > step(freeze_decoder=True) > only
    dense = dataclasses.replace(WIDE, sparsity=WIDE.sparsity.dense())
    assert step(dense) == pytest.approx(step() - 6 * (image.forward + text.forward))


def test_lora_costs_the_input_gradients_and_itself() -> None:
    lora = LoraConfig(rank=4, targets=("query", "down"))
    adapters = 2 * 2 * S * 4 * (256 + 256 + 256 + 768)
    frozen = step(freeze_decoder=True)
    assert step(lora=lora) == pytest.approx(frozen + 2 * 3 * adapters)
    # Gradients pass through the shallow layers' weights whether or not the projector below wants them.
    projector = 2 * 2 * flops.projector(WIDE).forward
    assert step(lora=lora, freeze_projector=True) == pytest.approx(step(lora=lora) - projector)


def test_the_whole_grows_as_it_must() -> None:
    model = presets.dynamic_llava_7b()

    def flops_of(**sizes: int) -> float:
        return flops.training_flops(model, OptimizerConfig(), **({"rows": 1, "length": 2048, "slots": 1} | sizes))

    assert flops_of(rows=64) == pytest.approx(64 * flops_of())
    # 6 FLOPs a weight and token, attention on top: 6.7e9 weights, 2048 tokens.
    weights = 6 * 6.6e9 * 2048
    assert 1.05 * weights < flops_of(slots=0) < 1.2 * weights
    assert flops_of(slots=0) < flops_of(slots=1)


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("TPU v4", 275e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5e", 197e12),
        ("TPU v5p", 459e12),
        ("TPU v6 lite", 918e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("cpu", None),
        ("NVIDIA GeForce RTX 4090", None),
    ],
)
def test_peaks(kind: str, peak: float | None) -> None:
    assert flops.peak_flops(kind) == peak
