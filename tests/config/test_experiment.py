"""Config files and command-line overrides become one checked TrainConfig, or one sentence that names the key."""

from pathlib import Path

import pytest

from dynllava_jax.config.data import DataConfig
from dynllava_jax.config.experiment import read_experiment
from dynllava_jax.config.presets import tiny
from dynllava_jax.config.sparsity import LinearPredictor, MlpPredictor, SparsityConfig
from dynllava_jax.config.training import LoraConfig, TrainConfig
from dynllava_jax.errors import InputError


def write(folder: Path, body: str) -> str:
    file = folder / "experiment.py"
    file.write_text(
        f"from ml_collections import ConfigDict, FieldReference\ndef get_config():\n    return ConfigDict({body})\n"
    )
    return str(file)


def read(folder: Path, body: str, *overrides: str) -> TrainConfig:
    return read_experiment(write(folder, body), [f"--config.{override}" for override in overrides])


def test_an_empty_file_is_the_default(tmp_path: Path) -> None:
    assert read(tmp_path, "{}") == TrainConfig()


def test_nested_keys_tuples_and_references(tmp_path: Path) -> None:
    body = "dict(seed=FieldReference(3), data=dict(source=('a', 'b'), weights=[1, 0.5]), epochs=2)"
    found = read(tmp_path, body)
    assert (found.seed, found.data.source, found.data.weights) == (3, ("a", "b"), (1.0, 0.5))
    assert isinstance(found.epochs, float)
    assert hash(found) == hash(read(tmp_path, body))


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("optimizer.learning_rate=1e-4", "optimizer.learning_rate", 1e-4),
        ("optimizer.learning_rate=1", "optimizer.learning_rate", 1.0),
        ("mesh=data=2,tensor=4", "mesh", "data=2,tensor=4"),
        ("data.source=gs://bucket/a=b.json", "data.source", "gs://bucket/a=b.json"),
        ("data.source='2024'", "data.source", "2024"),
        ("data.source=('a', 'b')", "data.source", ("a", "b")),
        ("data.lengths=[64, 128]", "data.lengths", (64, 128)),
        ("data.require_image=False", "data.require_image", False),
        ("steps=None", "steps", None),
        ("steps=5", "steps", 5),
        ("optimizer.lora.rank=8", "optimizer.lora", LoraConfig(rank=8)),
        ("optimizer.lora={}", "optimizer.lora", LoraConfig()),
    ],
)
def test_overrides(override: str, key: str, value: object, tmp_path: Path) -> None:
    found: object = read(tmp_path, "{}", override)
    for name in key.split("."):
        found = getattr(found, name)
    assert found == value
    assert type(found) is type(value)


def test_overrides_are_checked_together_and_the_last_one_counts(tmp_path: Path) -> None:
    found = read(tmp_path, "{}", "data.weights=(1, 2)", "data.source=('a', 'b')", "seed=1", "seed=2")
    assert found.data.weights == (1.0, 2.0)
    assert found.seed == 2


def test_sparsity_changes_the_presets(tmp_path: Path) -> None:
    body = "dict(model='tiny', sparsity=dict(output_selector=None))"
    found = read(tmp_path, body, "sparsity.image_keep_rate=0.3", "sparsity.text_predictor.width=64").sparsity
    assert found is not None
    assert found.image_predictor == tiny().sparsity.image_predictor
    assert (found.output_selector, found.image_keep_rate, found.text_predictor) == (None, 0.3, MlpPredictor(64))
    assert read(tmp_path, "dict(model='tiny')", "sparsity.sparse_layer=1").sparsity != SparsityConfig(sparse_layer=1)
    # A model chosen later changes what the file's `sparsity` begins with.
    found = read(tmp_path, "dict(sparsity=dict(image_keep_rate=0.3))", "model=tiny").sparsity
    assert found is not None
    assert found.output_keep_rate == tiny().sparsity.output_keep_rate
    assert found.image_predictor == tiny().sparsity.image_predictor


def test_another_predictor_class_takes_nothing_from_the_presets(tmp_path: Path) -> None:
    found = read(tmp_path, "dict(model='tiny')", "sparsity.image_predictor.class=MlpPredictor").sparsity
    assert found is not None
    assert found.image_predictor == MlpPredictor()
    found = read(tmp_path, "dict(model='tiny')", "sparsity.image_predictor={'class': 'LinearPredictor'}").sparsity
    assert found is not None
    assert found.image_predictor == LinearPredictor()


@pytest.mark.parametrize(
    ("override", "needle"),
    [
        ("optimzer.eps=1", "--config.optimzer is unknown; the nearest key is optimizer"),
        ("optimizer.learnrate=1", "--config.optimizer.learnrate is unknown; the nearest key is learning_rate"),
        ("learning_rate=1", "--config.learning_rate is unknown; the nearest key is optimizer.learning_rate."),
        ("every=3", "--config.every is unknown; the nearest key is checkpoint.every or eval.every."),
        ("rank=8", "--config.rank is unknown; the nearest key is optimizer.lora.rank."),
        ("init.checkpoint=", "InitConfig.checkpoint is empty; name something, or leave it out"),
        ("data.source=('a', '')", "DataConfig.source is empty"),
        ("data.index=", "DataConfig.index is empty"),
        ("eval.source=", "EvalConfig.source is empty"),
        ("data.seed=-1", "DataConfig.seed must lie in 0 … 4294967295, not -1"),
        ("seed=4294967296", "TrainConfig.seed must lie in 0 … 4294967295, not 4294967296"),
        ("init.seed=-1", "InitConfig.seed must lie in"),
        ("steps=0", "TrainConfig.steps must be above 0, not 0"),
        ("steps=100000000000000000000", "TrainConfig.steps 100000000000000000000 is more than 16777216"),
        ("epochs=1e20", "TrainConfig.epochs 1e+20 is more than 16777216"),
        ("global_batch_size=100000000000000", "TrainConfig.global_batch_size 100000000000000 is more than 16777216"),
        ("seed.value=1", "--config.seed must be int, not {'value': 1}"),
        ("seed=one", "--config.seed must be int, not 'one' (str)"),
        ("optimizer.lora.rank=8.5", "--config.optimizer.lora.rank must be int, not 8.5"),
        ("data.lengths=64", "--config.data.lengths must be a tuple of int, not 64"),
        ("data.lengths=('a',)", "--config.data.lengths must be a tuple of int, not ('a',)"),
        ("mesh=(2, 4)", "--config.mesh must be str, not (2, 4)"),
        ("image_aspect=square", "--config.image_aspect must be 'pad' or 'crop' or None, not 'square'"),
        ("optimizer=3", "--config.optimizer must be an object, not 3"),
        ("model=dynamic_llava_7", "did you mean dynamic_llava_7b"),
        ("sparsity.image_keep_rate=2.0", "image_keep_rate must lie in (0, 1]"),
        ("seed", "is not --config.key=value"),
        ("=3", "is not --config.key=value"),
        ("loss.mask_weight=1e999", "LossConfig.mask_weight must be finite, not inf"),
        ("loss.eps=-1.0", "LossConfig.eps must be 0 or more, not -1.0"),
        ("optimizer.weight_decay=1e999", "OptimizerConfig.weight_decay must be finite, not inf"),
        ("data.weights=(1.0, 0.0)", "DataConfig.weights must be above 0 and finite, not (1.0, 0.0)"),
        ("data.weights=(1e999,)", "DataConfig.weights must be above 0 and finite, not (inf,)"),
    ],
)
def test_what_overrides_are_refused(override: str, needle: str, tmp_path: Path) -> None:
    body = "dict(sparsity=dict(image_keep_rate=0.3))" if override.startswith("model") else "{}"
    with pytest.raises(InputError) as caught:
        read(tmp_path, body, override)
    assert needle in str(caught.value)


@pytest.mark.parametrize(
    ("text", "needle"),
    [
        ("def get_config(:", "fails in line 1: SyntaxError"),
        ("\n\nimport nothing_of_that_name", "fails in line 3: ModuleNotFoundError"),
        ("def get_config():\n    return 1 / 0", "fails in line 2: ZeroDivisionError"),
        ("import sys\nsys.exit(0)", "fails in line 2: SystemExit: 0"),
        ("x = 1", "must define get_config()"),
        ("def get_config():\n    return dict(seed=1)", "returns an ml_collections.ConfigDict"),
    ],
)
def test_files_that_are_none(text: str, needle: str, tmp_path: Path) -> None:
    file = tmp_path / "experiment.py"
    file.write_text(text)
    with pytest.raises(InputError) as caught:
        read_experiment(str(file))
    assert str(file) in str(caught.value)
    assert needle in str(caught.value)


def test_a_byte_order_mark_is_no_code(tmp_path: Path) -> None:
    file = tmp_path / "experiment.py"
    file.write_text("from ml_collections import ConfigDict\nget_config = lambda: ConfigDict({'seed': 3})", "utf-8-sig")
    assert read_experiment(str(file)).seed == 3


def test_a_missing_file_and_its_wrong_keys_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"https://host/a\.py cannot be read: no bucket has such an address"):
        read_experiment("https://host/a.py")
    with pytest.raises(InputError, match=r"nowhere\.py cannot be read"):
        read_experiment("nowhere.py")
    with pytest.raises(InputError, match=r"experiment\.py: config\.sed is unknown; the nearest key is seed"):
        read(tmp_path, "dict(sed=1)")


def test_sparsity_without_a_preset_must_be_whole(tmp_path: Path) -> None:
    body = "dict(model=None, init=dict(checkpoint='here'), sparsity=dict(image_keep_rate=0.3))"
    with pytest.raises(InputError, match=r"config\.sparsity lacks sparse_layer; it must state everything"):
        read(tmp_path, body)


def test_no_number_is_no_weight(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"LossConfig\.mask_weight must be 0 or more, not nan"):
        read(tmp_path, "dict(loss=dict(mask_weight=float('nan')))")


def test_a_weight_is_a_number() -> None:
    with pytest.raises(InputError, match=r"DataConfig\.weights must be above 0 and finite, not \(nan, 1\.0\)"):
        DataConfig(source=("a", "b"), weights=(float("nan"), 1.0))
