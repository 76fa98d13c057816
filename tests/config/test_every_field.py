"""Every config field reaches the code: each one, changed, changes something that can be seen.

A field without an entry in the tables below fails the test.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dynllava_jax.checkpoint.leaves import leaf_shapes
from dynllava_jax.config import decoder, model, sparsity, vision
from dynllava_jax.config.decoder import DynamicNtkScaling, LinearScaling, Llama3Scaling
from dynllava_jax.config.hf import to_hf
from dynllava_jax.config.model import ImagePrep, ModelConfig, TextPrep
from dynllava_jax.config.presets import tiny
from dynllava_jax.config.sparsity import LinearPredictor, MlpPredictor, SparsityConfig, TransformerPredictor
from dynllava_jax.config.vision import MlpProjector, TokenPackerProjector
from dynllava_jax.data.batch import make_batch
from dynllava_jax.data.image import preprocess
from dynllava_jax.data.spans import expand
from dynllava_jax.data.templates import get_template
from dynllava_jax.inference.assistant import Assistant
from dynllava_jax.inference.buckets import Shape, output_rate
from dynllava_jax.inference.engine import Engine
from dynllava_jax.inference.prefill import PrefillPlan, prefill
from dynllava_jax.model.dynllava import DynamicLlava
from dynllava_jax.nn.rope import inverse_frequencies
from dynllava_jax.testing import synthetic_image, tiny_assistant, tiny_buckets, tiny_model

Observe = Callable[[ModelConfig], Any]
TINY = tiny()


def shapes(config: ModelConfig) -> Any:
    return leaf_shapes(config)


def image_slots(config: ModelConfig) -> Any:
    return config.image_tokens, config.kept_image_tokens


def initial(config: ModelConfig) -> Any:
    made = DynamicLlava(nnx.Rngs(params=jax.random.key(0)), config)
    return [float(jnp.std(x)) for x in jax.tree.leaves(made.decoder)], float(
        jnp.std(made.output_predictor.layers[0].kernel[...])
    )


def logits(config: ModelConfig) -> Any:
    """The last logits of one prompt with one image; equal shapes mean equal weights."""
    sample = expand([5, -200, *range(40, 60)], None, image_tokens=config.image_tokens, round_ids=(45, 46))
    size = config.vision.image_size
    pixels = np.random.default_rng(0).standard_normal((size, size, 3)).astype(np.float32)
    batch = make_batch([sample], [[pixels]], length=sample.length, slots=1, rows=1)
    plan = PrefillPlan(config.sparsity, sample.length)
    keys = jax.vmap(jax.random.key)(jnp.zeros(1, jnp.uint32))
    out = jax.jit(prefill, static_argnames="plan")(tiny_model(config), batch, keys, plan=plan)
    return np.asarray(out.logits).round(4).tolist(), out.selection.lengths.tolist()


def frequencies(config: ModelConfig) -> Any:
    return inverse_frequencies(config.decoder).tolist()


def exported(config: ModelConfig) -> Any:
    """What an official checkpoint's config.json would say."""
    return to_hf(config)


def room(config: ModelConfig) -> Any:
    """The longest prompts and answers, and the cache of one."""
    shape = Shape(1, 1, 256, 256, 2048)
    return config.decoder.context, shape.deep_capacities(output_rate(config))


def pixels(config: ModelConfig) -> Any:
    return preprocess(synthetic_image(3, 90, 60), config.image_prep).round(4).tolist()


@functools.cache
def _tokenizer() -> Any:
    return tiny_assistant().tokenizer


def prompt(config: ModelConfig) -> Any:
    template = get_template(config.text_prep.template)
    return template.render([("What?", None)]), _assistant(config).engine.stop_ids


def padding(config: ModelConfig) -> Any:
    """What stands behind a finished answer."""
    engine = _assistant(config).engine
    assert isinstance(engine, Engine)
    state, _ = engine.open(*engine._nothing(SMALL), SMALL, config.sparsity)
    _, out = engine.advance(state, SMALL, config.sparsity, 0)
    return np.asarray(out.tokens).tolist()


SMALL = Shape(1, 0, 64, 64, 16)


def _assistant(config: ModelConfig) -> Assistant:
    return Assistant(tiny_model(config), _tokenizer(), buckets=tiny_buckets())


def kinds(config: ModelConfig) -> Any:
    ids = [5, -200, *range(40, 60)]
    return expand(ids, None, image_tokens=4, round_ids=config.text_prep.round_ids).kind.tolist()


def change(part: str, **values: Any) -> ModelConfig:
    return dataclasses.replace(TINY, **{part: dataclasses.replace(getattr(TINY, part), **values)})


def with_size(size: int) -> ModelConfig:
    prep = dataclasses.replace(TINY.image_prep, crop=size)
    return dataclasses.replace(TINY, vision=dataclasses.replace(TINY.vision, image_size=size), image_prep=prep)


def packer(**values: Any) -> ModelConfig:
    made = TokenPackerProjector(**({"scale": 2, "width": 16, "num_heads": 2, "levels": (1, 2)} | values))
    return dataclasses.replace(TINY, projector=made)


def scaled(scaling: Any) -> ModelConfig:
    return change("decoder", rope_scaling=scaling)


def dropping(**values: Any) -> ModelConfig:
    return change("sparsity", **values)


LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position": 64}
INSTRUCT = {"instruct_selector": "stride", "instruct_keep_rate": 0.9}

Entry = tuple[Observe, ModelConfig, ModelConfig]
"""What to look at, and two configs that differ in the field."""

CHANGES: dict[type, dict[str, Entry]] = {
    vision.VisionConfig: {
        "hidden_size": (shapes, TINY, change("vision", hidden_size=64)),
        "intermediate_size": (shapes, TINY, change("vision", intermediate_size=96)),
        "num_layers": (shapes, TINY, change("vision", num_layers=4)),
        "num_heads": (logits, TINY, change("vision", num_heads=2)),
        "image_size": (shapes, TINY, with_size(42)),
        "patch_size": (shapes, TINY, change("vision", patch_size=28)),
        "norm_eps": (logits, TINY, change("vision", norm_eps=0.5)),
        "activation": (logits, TINY, change("vision", activation="gelu")),
        "select_layer": (shapes, TINY, change("vision", select_layer=-1)),
        "select_feature": (image_slots, TINY, change("vision", select_feature="cls_patch")),
    },
    MlpProjector: {"depth": (shapes, TINY, change("projector", depth=3))},
    TokenPackerProjector: {
        "scale": (image_slots, packer(), packer(scale=4)),
        "width": (shapes, packer(), packer(width=32)),
        "num_heads": (logits, packer(), packer(num_heads=4)),
        "levels": (shapes, packer(), packer(levels=(1, 2, 3))),
    },
    decoder.DecoderConfig: {
        "vocab_size": (shapes, TINY, change("decoder", vocab_size=600)),
        "hidden_size": (shapes, TINY, change("decoder", hidden_size=96)),
        "intermediate_size": (shapes, TINY, change("decoder", intermediate_size=96)),
        "num_layers": (shapes, TINY, change("decoder", num_layers=5)),
        "num_heads": (shapes, TINY, change("decoder", num_heads=8)),
        "num_kv_heads": (shapes, TINY, change("decoder", num_kv_heads=4)),
        "head_dim": (shapes, TINY, change("decoder", head_dim=32)),
        "norm_eps": (logits, TINY, change("decoder", norm_eps=0.5)),
        "rope_theta": (logits, TINY, change("decoder", rope_theta=100.0)),
        "rope_scaling": (logits, TINY, scaled(LinearScaling(4.0))),
        "max_positions": (room, TINY, change("decoder", max_positions=256)),
        "attention_bias": (shapes, TINY, change("decoder", attention_bias=True)),
        "tie_embeddings": (shapes, TINY, change("decoder", tie_embeddings=True)),
        "initializer_range": (initial, TINY, change("decoder", initializer_range=0.1)),
    },
    LinearScaling: {"factor": (frequencies, scaled(LinearScaling(2.0)), scaled(LinearScaling(3.0)))},
    # Within the trained context, the only range allowed, dynamic NTK is plain RoPE whatever its factor.
    DynamicNtkScaling: {"factor": (exported, scaled(DynamicNtkScaling(2.0)), scaled(DynamicNtkScaling(3.0)))},
    Llama3Scaling: {
        name: (frequencies, scaled(Llama3Scaling(**LLAMA3)), scaled(Llama3Scaling(**LLAMA3 | {name: value})))
        for name, value in {
            "factor": 4.0,
            "low_freq_factor": 0.5,
            "high_freq_factor": 8.0,
            "original_max_position": 256,
        }.items()
    },
    SparsityConfig: {
        "sparse_layer": (logits, TINY, dropping(sparse_layer=1)),
        "tower_selector": (image_slots, TINY, dropping(tower_selector="stride", tower_keep_rate=0.5)),
        "tower_keep_rate": (
            image_slots,
            dropping(tower_selector="stride", tower_keep_rate=0.5),
            dropping(tower_selector="stride", tower_keep_rate=0.75),
        ),
        "embed_selector": (image_slots, TINY, dropping(embed_selector="stride", embed_keep_rate=0.5)),
        "embed_keep_rate": (
            image_slots,
            dropping(embed_selector="stride", embed_keep_rate=0.5),
            dropping(embed_selector="stride", embed_keep_rate=0.75),
        ),
        "image_selector": (logits, TINY, dropping(image_selector="stride")),
        "image_keep_rate": (image_slots, TINY, dropping(image_keep_rate=0.5)),
        "output_selector": (shapes, TINY, dropping(output_selector=None)),
        "output_keep_rate": (room, TINY, dropping(output_keep_rate=0.2)),
        "instruct_selector": (shapes, TINY, dropping(instruct_selector="learned")),
        "instruct_keep_rate": (logits, dropping(**INSTRUCT), dropping(**INSTRUCT | {"instruct_keep_rate": 0.3})),
        "image_predictor": (shapes, TINY, dropping(image_predictor=LinearPredictor())),
        "text_predictor": (shapes, TINY, dropping(text_predictor=LinearPredictor())),
    },
    MlpPredictor: {"width": (shapes, TINY, dropping(text_predictor=MlpPredictor(64)))},
    TransformerPredictor: {
        "width": (shapes, TINY, dropping(image_predictor=TransformerPredictor(64, 4, 64))),
        "num_heads": (logits, TINY, dropping(image_predictor=TransformerPredictor(32, 1, 64))),
        "mlp_width": (shapes, TINY, dropping(image_predictor=TransformerPredictor(32, 4, 96))),
        "depth": (shapes, TINY, dropping(image_predictor=TransformerPredictor(32, 4, 64, 1))),
    },
    ImagePrep: {
        "resize": (pixels, TINY, change("image_prep", resize=80)),
        "crop": (pixels, TINY, with_size(42)),
        "aspect": (pixels, TINY, change("image_prep", aspect="crop")),
        "mean": (pixels, TINY, change("image_prep", mean=(0.5, 0.5, 0.5))),
        "std": (pixels, TINY, change("image_prep", std=(0.5, 0.5, 0.5))),
    },
    TextPrep: {
        "template": (prompt, TINY, change("text_prep", template="chatml_direct")),
        "bos_id": (exported, TINY, change("text_prep", bos_id=7)),  # the tokenizer's own is what prompts get
        "eos_id": (prompt, TINY, change("text_prep", eos_id=7)),
        "pad_id": (padding, TINY, change("text_prep", pad_id=3)),
        "round_ids": (kinds, TINY, change("text_prep", round_ids=(45, 46))),
        "max_length": (exported, TINY, change("text_prep", max_length=1024)),
    },
    ModelConfig: {
        "vision": (shapes, TINY, change("vision", hidden_size=64)),
        "projector": (shapes, TINY, packer()),
        "decoder": (shapes, TINY, change("decoder", vocab_size=600)),
        "sparsity": (image_slots, TINY, dropping(image_keep_rate=0.5)),
        "image_prep": (pixels, TINY, change("image_prep", aspect="crop")),
        "text_prep": (prompt, TINY, change("text_prep", template="mpt")),
    },
}


def configs() -> set[type]:
    """All dataclasses of the config files."""
    return {
        item
        for module in (vision, decoder, sparsity, model)
        for item in vars(module).values()
        if isinstance(item, type) and dataclasses.is_dataclass(item) and dataclasses.fields(item)
    }


def test_the_table_is_complete() -> None:
    assert set(CHANGES) == configs()
    for config, entries in CHANGES.items():
        assert set(entries) == {field.name for field in dataclasses.fields(config)}, config


CASES = [(f"{config.__name__}.{name}", entry) for config, fields in CHANGES.items() for name, entry in fields.items()]


@pytest.mark.slow
@pytest.mark.parametrize("entry", [entry for _, entry in CASES], ids=[name for name, _ in CASES])
def test_the_field_changes_something(entry: Entry) -> None:
    observe, before, after = entry
    assert observe(before) != observe(after)
