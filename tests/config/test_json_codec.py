"""Configs survive JSON, and JSON that is no config is refused by key."""

import dataclasses
import json
from typing import Any

import pytest

from dynllava_jax.config import presets
from dynllava_jax.config.decoder import DecoderConfig, LinearScaling
from dynllava_jax.config.json_codec import from_json, to_json
from dynllava_jax.config.model import ModelConfig
from dynllava_jax.config.sparsity import LinearPredictor, SparsityConfig
from dynllava_jax.config.vision import IdentityProjector, MlpProjector, TokenPackerProjector
from dynllava_jax.errors import InputError


@pytest.mark.parametrize(
    "config",
    [
        presets.tiny(),
        presets.llava_1_5_7b(),
        ModelConfig(projector=TokenPackerProjector(scale=4)),
        ModelConfig(decoder=DecoderConfig(rope_scaling=LinearScaling(2.0))),
        ModelConfig(sparsity=SparsityConfig(image_predictor=LinearPredictor(), image_selector="mine:Selector")),
    ],
)
def test_both_ways(config: ModelConfig) -> None:
    found = from_json(ModelConfig, json.loads(json.dumps(to_json(config))), "file")
    assert found == config
    assert hash(found) == hash(config)


def test_absent_fields_take_their_defaults() -> None:
    assert from_json(ModelConfig, {}, "file") == ModelConfig()
    assert from_json(ModelConfig, {"projector": {"class": "MlpProjector"}}, "file").projector == MlpProjector()


@pytest.mark.parametrize(
    ("change", "needle"),
    [
        ({"decodr": {}}, "file.decodr is unknown; the nearest key is decoder"),
        ({"decoder": {"layers": 3}}, "file.decoder.layers is unknown; the nearest key is num_layers"),
        ({"decoder": 3}, "file.decoder must be an object, not 3"),
        ({"projector": {"depth": 2}}, "file.projector.class must be one of IdentityProjector, MlpProjector"),
        ({"projector": {"class": "Linear"}}, "not 'Linear'"),
        ({"projector": {"class": "MlpProjector", "depth": 0}}, "file.projector: MlpProjector.depth must be above 0"),
        ({"projector": {"class": "TokenPackerProjector", "levels": []}}, "file.projector: projector.levels ()"),
        ({"projector": {"class": "TokenPackerProjector", "levels": [-2]}}, "counted from 0 (the embedding)"),
        ({"decoder": {"rope_theta": float("inf")}}, "file.decoder: DecoderConfig.rope_theta must be finite, not inf"),
        ({"decoder": {"rope_theta": 0.0}}, "file.decoder: DecoderConfig.rope_theta must be above 0, not 0.0"),
        ({"vision": {"patch_size": 400}}, "file.vision: vision.patch_size 400 exceeds vision.image_size 336"),
        ({"sparsity": {"image_keep_rate": 2.0}}, "file.sparsity: SparsityConfig.image_keep_rate must lie in (0, 1]"),
        ({"decoder": {"rope_scaling": {"class": "Yarn"}}}, "file.decoder.rope_scaling.class must be one of"),
    ],
)
def test_what_is_refused(change: dict[str, Any], needle: str) -> None:
    with pytest.raises(InputError) as caught:
        from_json(ModelConfig, change, "file")
    assert needle in str(caught.value)


def test_only_unions_name_their_class() -> None:
    written = to_json(
        ModelConfig(projector=IdentityProjector(), decoder=dataclasses.replace(DecoderConfig(), hidden_size=1024))
    )
    assert written["projector"] == {"class": "IdentityProjector"}
    assert "class" not in written["decoder"]
