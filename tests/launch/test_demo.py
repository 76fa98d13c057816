"""The demo's recipes: every row of the comparison has a training, and every training says something of its own."""

import pytest

from dynllava_jax.config.experiment import read_experiment
from dynllava_jax.evaluation import settings
from tests.launch.conftest import ROOT, Desk

COMPARED = {name for row in (*settings.VISION, *settings.LANGUAGE, *settings.ABLATIONS) for name in row.models}
RECIPE = ("base", "base_whole", "dynamic", "control", "vision_only")
OF_A_RUN = ("--workdir=", "--config.init.checkpoint=", "--config.data.")


def trainings(desk: Desk, script: str, *names: str, **variables: str) -> dict[str, list[str]]:
    """What `dynllava train` is told, by the work folder's name."""
    desk.fake("dynllava")
    status, _, error = desk.run(script, str(desk.folder), *names, **variables)
    assert (status, error) == (0, "")
    calls = [call.split()[1:] for call in desk.calls("dynllava") if call.startswith("train ")]
    return {word.rpartition("/")[2]: call for call in calls for word in call if word.startswith("--workdir=")}


def test_the_recipe_trains_the_base_and_what_goes_on_from_it(desk: Desk) -> None:
    made = trainings(desk, "demo_recipe.sh", BATCH="4", TRAIN_OPTIONS="--config.remat=full --config.dtype=bfloat16")
    assert tuple(made) == RECIPE
    for name, words in made.items():
        assert f"--config=configs/demo/{name}.py" in words
        assert {"--config.global_batch_size=4", "--config.remat=full", "--config.dtype=bfloat16"} < set(words)
        start = {"base": "tower/model", "base_whole": "models/base"}.get(name, "models/base_whole")
        assert f"--config.init.checkpoint={desk.folder}/{start}" in words


def test_every_other_row_of_the_comparison_has_a_training_of_its_own(desk: Desk) -> None:
    made = trainings(desk, "demo_ablations.sh")
    assert set(made) == COMPARED - set(RECIPE)
    configs = {read_experiment(str(ROOT / "configs/demo/vision_only.py"))}  # `reference` alone may equal dynamic.py
    for name, words in made.items():
        assert f"--config.init.checkpoint={desk.folder}/models/base_whole" in words
        file, *overrides = [word for word in words if not word.startswith(OF_A_RUN)]
        config = read_experiment(str(ROOT / file.removeprefix("--config=")), overrides)
        assert config not in configs, name
        configs.add(config)


def test_ablations_are_chosen_by_name(desk: Desk) -> None:
    assert tuple(trainings(desk, "demo_ablations.sh", "layer4", "zeroed")) == ("zeroed", "layer4")


def test_ablations_may_be_shorter_than_the_recipe(desk: Desk) -> None:
    made = trainings(desk, "demo_ablations.sh", "reference", EPOCH="short")
    assert f"--config.data.source={desk.folder}/short/train.json" in made["reference"]


def test_an_unknown_ablation_is_refused_before_anything_is_trained(desk: Desk) -> None:
    desk.fake("dynllava")
    status, _, error = desk.run("demo_ablations.sh", str(desk.folder), "layer4", "layer")
    assert status == 2
    assert "no ablation layer;" in error
    assert not desk.calls("dynllava")


def test_the_work_folder_is_named_from_where_the_caller_stands(desk: Desk) -> None:
    desk.fake("dynllava")
    desk.cwd = desk.folder
    assert desk.run("demo_recipe.sh", "runs")[0] == 0
    calls = desk.calls("dynllava")
    assert calls
    assert all(f"{desk.folder}/runs" in call for call in calls)


@pytest.mark.parametrize("script", ["demo_recipe.sh", "demo_ablations.sh"])
def test_a_missing_work_folder_is_named(desk: Desk, script: str) -> None:
    assert desk.run(script) == (2, "", f"{script}: WORKDIR is missing; it says at its top how it is called.\n")


@pytest.mark.parametrize("script", ["demo_recipe.sh", "demo_ablations.sh"])
def test_an_option_is_no_work_folder(desk: Desk, script: str) -> None:
    """Asked for its help it drew 60 000 pictures into a folder called --help."""
    desk.fake("dynllava")
    desk.cwd = desk.folder
    status, _, error = desk.run(script, "--help")
    assert (status, error) == (2, f"{script}: --help is no WORKDIR; it says at its top how it is called.\n")
    assert not desk.calls("dynllava")
