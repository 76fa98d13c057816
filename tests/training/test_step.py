"""One optimizer step on every mesh, in parts or whole; what is frozen; what is split at full size."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynllava_jax.config.presets import get_preset
from dynllava_jax.config.training import LoraConfig, LossConfig, OptimizerConfig
from dynllava_jax.config.vision import IdentityProjector
from dynllava_jax.errors import InputError
from dynllava_jax.nn.flat import flatten, unflatten
from dynllava_jax.sharding.mesh import make_mesh
from dynllava_jax.testing import tiny_config, tiny_model
from dynllava_jax.training.decisions import draw_noise
from dynllava_jax.training.optimizer import group_of
from dynllava_jax.training.state import Parameters, begin
from dynllava_jax.training.step import Division, Trainer
from tests.training.batches import mixed, settings
from tests.training.steps import TOTAL, Run, first_state, placed, run, trainer_of


def on_one_device() -> Run:
    return run(settings())


@pytest.mark.parametrize(
    "mesh",
    [
        "data=2,fsdp=2,tensor=2",
        pytest.param("data=8", marks=pytest.mark.slow),
        pytest.param("fsdp=8", marks=pytest.mark.slow),
        pytest.param("data=2,fsdp=4", marks=pytest.mark.slow),
        pytest.param("fsdp=4,tensor=2", marks=pytest.mark.slow),
    ],
)
def test_ten_steps_on_a_mesh_equal_those_on_one_device(mesh):
    found, wanted = run(settings(mesh=mesh)), on_one_device()
    for mine, theirs in zip(found.rows, wanted.rows, strict=True):
        for name, value in theirs.items():
            # Where a dropped key holds a row's maximum, the policy softmax has gradients as large as its eps is small:
            # their norm shows every rounding, their effect (the parameters, below) does not.
            near = 1e-2 if name.startswith("grad_norm") else 1e-4
            assert mine[name] == pytest.approx(value, rel=near, abs=1e-6), name
    for path, value in wanted.params.items():
        np.testing.assert_allclose(found.params[path], value, atol=1e-4, err_msg=path)


@pytest.mark.slow
def test_micro_batches_equal_the_whole_batch():
    # Flat attention: where a dropped key holds a row's maximum, gradients would show every rounding (see above).
    found, wanted = (run(config, 1, False) for config in (settings(mesh="data=2", device_batch_size=2), settings()))
    assert found.rows[0]["loss"] == pytest.approx(wanted.rows[0]["loss"], rel=1e-5)
    for path, value in wanted.gradient.items():
        np.testing.assert_allclose(found.gradient[path], value, atol=1e-5 * np.abs(value).max(), err_msg=path)


@pytest.mark.slow
def test_per_device_normalisation_is_the_mean_of_means():
    loss = dataclasses.replace(settings().loss, normalise="per_device")
    found = run(settings(mesh="data=2", device_batch_size=2, loss=loss), 1)
    trainer = trainer_of(settings(global_batch_size=2))
    state = first_state(trainer)
    means = []
    for start in range(0, 8, 2):
        part = jax.tree.map(lambda x, start=start: x[start : start + 2], mixed(tiny_config()))
        # The noise that these samples have in the whole batch.
        keys = jax.vmap(lambda row: jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 0), row))
        noise = draw_noise(part, keys(jnp.arange(start, start + 2)), tiny_config().image_tokens)
        metrics = trainer.step(jax.tree.map(jnp.copy, state), part, noise)[1]
        means.append(float(metrics["ce"]))
    assert found.rows[0]["ce"] == pytest.approx(np.mean(means), rel=1e-5)
    assert found.rows[0]["ce"] != pytest.approx(on_one_device().rows[0]["ce"], rel=1e-4)


def test_a_selector_made_of_flaxs_own_modules_is_trained():
    name = "tests.sparsify.own_selectors:OfFlax"
    sparsity = dataclasses.replace(tiny_config().sparsity, image_selector=name, output_selector=name)
    config = dataclasses.replace(tiny_config(), sparsity=sparsity)
    frozen = OptimizerConfig(learning_rate=1e-2, freeze_decoder=True, freeze_projector=True, warmup_ratio=0.0)
    training = settings(optimizer=frozen)
    trainer = Trainer(config, training, make_mesh(training.mesh), TOTAL)
    start = flatten(tiny_model(config))
    state = begin(trainer.parameters, start, training.dtype, trainer.mesh)
    before = {path: np.asarray(value) for path, value in state.params.items()}
    assert set(before) == {f"{part}_predictor/linear/{x}" for part in ("image", "output") for x in ("bias", "kernel")}
    state, _ = trainer.step(state, placed(mixed(config), trainer))
    assert all(np.any(np.asarray(value) != before[path]) for path, value in state.params.items())


@pytest.mark.slow
def test_frozen_parts_have_no_moments_and_do_not_move():
    frozen = OptimizerConfig(learning_rate=1e-2, freeze_decoder=True, freeze_projector=True, warmup_ratio=0.0)
    trainer = trainer_of(settings(optimizer=frozen))
    state = first_state(trainer)
    before = {path: np.asarray(value) for path, value in state.frozen.items()}
    assert all("predictor" in path for path in (*state.params, *state.adam.mean, *state.adam.square))
    start = {path: np.asarray(value) for path, value in state.params.items()}
    state, _ = trainer.step(state, placed(mixed(tiny_config()), trainer))
    for path, value in before.items():
        np.testing.assert_array_equal(state.frozen[path], value)
    assert all(np.any(np.asarray(value) != start[path]) for path, value in state.params.items())


@pytest.mark.slow
def test_adapters_train_while_the_decoder_rests():
    lora = LoraConfig(rank=2, alpha=4.0, targets=("query", "down"))
    optimizer = dataclasses.replace(settings().optimizer, lora=lora)
    trainer = trainer_of(settings(optimizer=optimizer))
    state = first_state(trainer)
    adapters = [path for path in state.params if path.endswith("lora_b")]
    assert sorted(path.split("/")[-2] for path in adapters) == ["down", "down", "query", "query"]
    assert all(not path.startswith("decoder") or path.endswith(("lora_a", "lora_b")) for path in state.params)
    batch = placed(mixed(tiny_config()), trainer)
    assert float(trainer.step(state, batch)[1]["loss"]) == pytest.approx(on_one_device().rows[0]["loss"], rel=1e-5)


@pytest.mark.slow
def test_bfloat16_stays_near_float32():
    found = run(settings(dtype="bfloat16", mesh="fsdp=2"), 1)
    assert found.rows[0]["ce"] == pytest.approx(on_one_device().rows[0]["ce"], rel=0.03)


def test_a_batch_that_does_not_divide_is_refused():
    mesh = make_mesh("data=8")
    with pytest.raises(InputError, match="global_batch_size 12 does not divide over the 8 devices"):
        Division.of(settings(global_batch_size=12), mesh)
    with pytest.raises(InputError, match="device_batch_size 3 does not divide a device's 4 samples"):
        Division.of(settings(global_batch_size=32, device_batch_size=3), mesh)
    assert Division.of(settings(global_batch_size=32, device_batch_size=2), mesh) == Division(8, 2, 2)
    assert Division.of(settings(global_batch_size=32, device_batch_size=9), mesh) == Division(8, 1, 4)


def test_norms_and_biases_of_own_selectors_are_not_decayed_either():
    for name in ("norm/scale", "norm/bias", "linear/bias"):  # as Flax's own modules name them, without axis names
        assert not group_of(f"image_predictor/{name}", (None,)).decayed
    assert group_of("image_predictor/linear/kernel", (None, None)).decayed


def test_a_model_that_has_nothing_to_train_is_refused():
    config = tiny_config()
    dense = dataclasses.replace(config, sparsity=config.sparsity.dense())
    predictors = OptimizerConfig(freeze_decoder=True, freeze_projector=True)
    same = dataclasses.replace(config.vision, hidden_size=config.decoder.hidden_size)
    unprojected = dataclasses.replace(config, vision=same, projector=IdentityProjector())
    projector = OptimizerConfig(freeze_decoder=True, freeze_predictors=True)
    for model, optimizer in ((dense, predictors), (unprojected, projector)):
        with pytest.raises(InputError, match="freezes every part that has parameters"):
            Parameters.of(model, optimizer, make_mesh("data=1"))


def test_the_same_shape_compiles_once():
    trainer = trainer_of(settings())
    state, batch = first_state(trainer), placed(mixed(tiny_config()), trainer)
    for _ in range(3):
        state, _ = trainer.step(state, batch)
    assert trainer.step_programs == 1


@pytest.mark.parametrize("mesh", ["fsdp=8", "data=2,fsdp=4", "fsdp=4,tensor=2"])
def test_nothing_large_is_replicated_at_full_size(mesh):
    model = get_preset("dynamic_llava_7b")
    parameters = Parameters.of(model, OptimizerConfig(), make_mesh(mesh))
    shapes = flatten(parameters.abstract)
    whole = [
        path
        for path, sharding in parameters.shardings.items()
        if sharding.is_fully_replicated and 4 * shapes[path].size > 2**20
    ]
    # Norm scales of all layers together; their rule says that norms are never split.
    assert whole == []


@pytest.mark.slow
def test_mask_weight_reaches_the_loss():
    (row,) = run(settings(loss=LossConfig(mask_weight=0.0, min_answer_tokens=6, chunk=32)), 1).rows
    assert row["loss"] == pytest.approx(row["ce"])


def test_values_merge_into_a_model():
    model = tiny_model()
    again = unflatten(model, flatten(model))
    assert all(jnp.all(a == b) for a, b in zip(jax.tree.leaves(model), jax.tree.leaves(again), strict=True))
