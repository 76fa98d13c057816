"""What is saved comes back bit for bit on any mesh, or the damage is named."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from dynllava_jax.checkpoint import orbax_items, trained, versions
from dynllava_jax.errors import InputError
from dynllava_jax.sharding.mesh import make_mesh
from dynllava_jax.training.checkpoint import TrainingCheckpoints
from dynllava_jax.training.retention import superfluous
from dynllava_jax.training.trees import flatten
from tests.training.states import CONFIG, DATA, assert_same, kernel, make, open_run, save


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with two checkpoints, saved on a mesh (data 2, fsdp 4). Do not change it."""
    workdir = tmp_path_factory.mktemp("run") / "workdir"
    save(workdir, 100, 200, mesh=make_mesh("data=2,fsdp=4"))
    return workdir


@pytest.fixture
def run(saved: Path, tmp_path: Path) -> Path:
    """The same run to be damaged."""
    return shutil.copytree(saved, tmp_path / "workdir")


@pytest.mark.parametrize("spec", ["data=2,fsdp=4", "data=8", "fsdp=8", None])
def test_onto_any_mesh(saved: Path, spec: str | None) -> None:
    mesh = None if spec is None else make_mesh(spec)
    with open_run(saved) as checkpoints:
        assert checkpoints.steps() == (100, 200)
        found = checkpoints.restore(None, *make(0, mesh))
    assert_same((found.params, found.rest), make(200))
    assert found.params["block"]["kernel"].get_metadata("axes") == ("embed", "mlp")
    assert (found.info.step, found.info.data, found.info.config, found.frozen) == (200, DATA, CONFIG, {})
    assert found.info.versions["jax"] == jax.__version__
    assert kernel(found.params).sharding.is_equivalent_to(kernel(make(0, mesh)[0]).sharding, 3)


def test_a_donated_state_is_saved_as_it_was(tmp_path: Path) -> None:
    overwrite = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0 - 1, tree), donate_argnums=0)
    state = make(7)
    with open_run(tmp_path) as checkpoints:
        checkpoints.save_async(7, *state, DATA)
        for _ in range(5):
            state = overwrite(state)
        found = checkpoints.restore(7, *state)
    assert_same((found.params, found.rest), make(7))


def files(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file() and file.stat().st_size)


def flip(file: Path, seed: int = 0) -> None:
    content = bytearray(file.read_bytes())
    bit = np.random.default_rng(seed).integers(8 * len(content))
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)


def test_a_flipped_bit_in_any_file_is_named(run: Path) -> None:
    step = run / "checkpoints" / "200"
    assert len(files(step)) > 10
    with open_run(run) as checkpoints:
        for i, file in enumerate(files(step)):
            whole = file.read_bytes()
            flip(file, i)
            with pytest.raises(InputError) as caught:
                checkpoints.restore(None, *make(0))
            assert str(file) in str(caught.value)
            assert str(caught.value).endswith("to go on from the one before it, ask for it: --restore=100.")
            file.write_bytes(whole)
        assert_same(checkpoints.restore(None, *make(0)).params, make(200)[0])


@pytest.mark.parametrize("spec", ["data=8", "fsdp=8", None])
def test_a_flipped_bit_in_an_array_is_named(run: Path, spec: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for files too large to have a hash of their own: by the sums of what was read, on any mesh."""
    monkeypatch.setattr(trained, "_check_file", lambda path, digest: None)
    like = make(0, None if spec is None else make_mesh(spec))
    row = np.asarray(kernel(make(200)[1].mu))[1, 2, :8].tobytes()
    (file,) = (file for file in files(run / "checkpoints" / "200") if row in file.read_bytes())
    content = bytearray(file.read_bytes())
    content[content.index(row) + 5] ^= 16
    file.write_bytes(content)
    with open_run(run) as checkpoints:
        with pytest.raises(InputError, match=r"200 is damaged: state/mu/block/kernel differ from .*--restore=100\.$"):
            checkpoints.restore(None, *like)
        assert_same(checkpoints.restore(100, *like).params, make(100)[0])


# Orbax leaves tasks and callbacks of a read that fails behind, which complain when they are collected.
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_what_the_files_do_not_tell_the_sums_do(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever bit of whatever file: without the hashes of files, either it is named or nothing changed."""
    monkeypatch.setattr(trained, "_check_file", lambda path, digest: None)
    with open_run(run) as checkpoints:
        for i, file in enumerate(files(run / "checkpoints" / "200" / "params")):
            whole = file.read_bytes()
            flip(file, i)
            with contextlib.suppress(InputError):
                assert_same(checkpoints.restore(None, *make(0)).params, make(200)[0])
            file.write_bytes(whole)


def test_going_back_replaces_what_came_after(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    with open_run(run) as checkpoints:
        checkpoints.restore(100, *make(0))
        assert "the next checkpoint replaces those after it (200)" in caplog.text
        assert checkpoints.steps() == (100, 200)
        checkpoints.save_async(150, *make(1), DATA)
        checkpoints.wait()
        assert checkpoints.steps() == (100, 150)
        checkpoints.save_async(200, *make(2), DATA)
        assert_same(checkpoints.restore(200, *make(0)).params, make(2)[0])


def test_a_whole_checkpoint_is_not_overwritten(run: Path) -> None:
    with open_run(run) as checkpoints:
        with pytest.raises(InputError, match="200 is a whole checkpoint already"):
            checkpoints.save_async(200, *make(1), DATA)
        checkpoints.restore(200, *make(0))
        checkpoints.save_async(200, *make(1), DATA)  # the same step again, at a stop: it is there
        assert_same(checkpoints.restore(200, *make(0)).params, make(200)[0])


def test_what_a_kill_leaves_is_cleared_away(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = run / "checkpoints"
    shutil.copytree(folder / "200", folder / "300.orbax-checkpoint-tmp")
    (shutil.copytree(folder / "200", folder / "400") / "hashes.json").unlink()
    (folder / "notes.txt").write_text("not ours")
    (folder / "thesis").mkdir()
    with open_run(run) as checkpoints:
        assert checkpoints.steps() == (100, 200)
    assert {path.name for path in folder.iterdir()} == {"100", "200", "notes.txt", "thesis"}
    assert f"removed {folder / '400'}, which a run that was killed" in caplog.text


def test_errors_in_the_background_surface(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> None:
        raise OSError("No space left on device")

    with open_run(tmp_path) as checkpoints:
        with monkeypatch.context() as patch:
            patch.setattr(orbax_items, "save_async", lambda path, items: full)
            checkpoints.save_async(1, *make(1), DATA)
        with pytest.raises(InputError, match="checkpoints/1 could not be written: No space left on device"):
            checkpoints.save_async(2, *make(2), DATA)
        checkpoints.save_async(2, *make(2), DATA)
        checkpoints.wait()
        assert checkpoints.steps() == (2,)
        monkeypatch.setattr(trained, "seal", lambda path, info: full())
        checkpoints.save_async(3, *make(3), DATA)
        with pytest.raises(InputError, match="checkpoints/3 could not be written"):
            checkpoints.wait()
        assert checkpoints.steps() == (2,)


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """For root, who may write everywhere, by being somebody else for a while."""
    root = os.geteuid() == 0
    folder.chmod(0o555)
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(0o755)


def test_a_folder_that_became_read_only(tmp_path: Path) -> None:
    save(tmp_path, 1)
    with open_run(tmp_path) as checkpoints:
        with read_only(tmp_path / "checkpoints"):
            with pytest.raises(InputError, match=r"/2 could not be written: .*ermission denied.*may be"):  # noqa: PT012
                checkpoints.save_async(2, *make(2), DATA)
                checkpoints.wait()
            with pytest.raises(InputError, match="checkpoints cannot be written: Permission denied"):
                open_run(tmp_path)
        checkpoints.save_async(3, *make(3), DATA)
        checkpoints.wait()
        assert checkpoints.steps() == (1, 3)


def test_a_save_that_failed_shows_before_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_run(tmp_path) as checkpoints:
        checkpoints.check()
        monkeypatch.setattr(trained, "seal", lambda path, info: 1 / 0)
        checkpoints.save_async(1, *make(1), DATA)
        assert checkpoints._pending is not None
        checkpoints._pending.exception()
        with pytest.raises(InputError, match=r"division by zero; see to it .* the same command begins anew"):
            checkpoints.check()
        checkpoints.check()


def test_an_error_at_the_end_does_not_hide_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(trained, "seal", lambda path, info: 1 / 0)
    with pytest.raises(KeyError), open_run(tmp_path) as checkpoints:  # noqa: PT012
        checkpoints.save_async(1, *make(1), DATA)
        raise KeyError
    assert "the last checkpoint was not written either" in caplog.text
    with pytest.raises(InputError, match="division by zero"), open_run(tmp_path) as checkpoints:
        checkpoints.save_async(1, *make(1), DATA)


def test_the_newest_and_the_best_stay(tmp_path: Path) -> None:
    scores = {1: 0.7, 2: 0.4, 3: None, 4: float("nan"), 5: 0.6, 6: None}
    with open_run(tmp_path) as checkpoints:
        assert checkpoints.best() is None
        for step, score in scores.items():
            checkpoints.save_async(step, *make(step), DATA, score=score)
        checkpoints.wait()
        assert checkpoints.steps() == (2, 5, 6)
        assert checkpoints.best() == 2
    with open_run(tmp_path, keep=1, keep_best=False) as checkpoints:
        checkpoints.save_async(7, *make(7), DATA)
    assert checkpoints.steps() == (7,)


@given(st.dictionaries(st.integers(0, 50), st.none() | st.floats(0, 1), max_size=8), st.integers(1, 4), st.booleans())
def test_what_may_go(scores: dict[int, float | None], keep: int, keep_best: bool) -> None:
    stay = set(scores) - superfluous(scores, keep, keep_best)
    assert set(sorted(scores)[-keep:]) <= stay
    assert len(stay) <= keep + keep_best
    known = [score for score in scores.values() if score is not None]
    if known and keep_best:
        assert min(known) in [scores[step] for step in stay]


def test_a_state_that_does_not_fit(saved: Path) -> None:
    params, rest = make(0)
    with open_run(saved) as checkpoints:
        other = nnx.State({"block": {"kernel": nnx.Param(jnp.zeros((2, 8, 4))), "scale": nnx.Param(jnp.zeros(2))}})
        with pytest.raises(InputError) as caught:
            checkpoints.restore(None, other, rest)
        for part in (
            "params/block/scale is not in it",
            "params/block/bias is not part of this run",
            "params/block/kernel is float32[2, 32, 64], not float32[2, 8, 4]",
        ):
            assert part in str(caught.value)
        with pytest.raises(ValueError, match="block/bias has no sharding to go to"):
            checkpoints.restore(None, jax.eval_shape(lambda: params), rest)
        with pytest.raises(InputError, match=r"no whole checkpoint of step 7; there are 100, 200\."):
            checkpoints.restore(7, params, rest)
        empty = nnx.State({"x": nnx.Param(jnp.zeros((0, 3)))})
        with pytest.raises(InputError, match=r"x has shape \[0, 3\]"):
            checkpoints.save_async(300, empty, rest, DATA)


def test_nothing_to_resume_from(tmp_path: Path) -> None:
    with open_run(tmp_path) as checkpoints, pytest.raises(InputError, match="no whole checkpoint to resume from"):
        checkpoints.restore(None, *make(0))


def test_a_damaged_only_checkpoint_offers_no_other(tmp_path: Path) -> None:
    save(tmp_path, 5)
    flip(tmp_path / "checkpoints" / "5" / "config.json")
    with open_run(tmp_path) as checkpoints, pytest.raises(InputError, match="there is none before it"):
        checkpoints.info(5)


def test_a_newer_format_is_refused_by_number(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_run(run) as checkpoints, monkeypatch.context() as patch:
        patch.setattr(versions, "TRAINING_VERSION", 9)
        with pytest.raises(InputError, match="has format_version 1; this dynllava_jax reads 9"):
            checkpoints.info(200)


def test_a_run_keeps_the_tokenizer_and_not_what_lies_beside_it(tmp_path: Path) -> None:
    """`init.tokenizer` may be the folder of a whole model, whose weights every run would have copied."""
    model = tmp_path / "model"
    (model / "vision_tower").mkdir(parents=True)
    for name in ("tokenizer.model", "config.json", "model.safetensors", "notes.txt", "vision_tower/config.json"):
        (model / name).write_text(name)
    with TrainingCheckpoints(tmp_path / "run", CONFIG, files=model):
        pass
    kept = {name: data.decode() for name, data in trained.read_folder(epath.Path(tmp_path / "run" / "files")).items()}
    assert kept == {name: name for name in ("config.json", "tokenizer.model", "vision_tower/config.json")}


def test_frozen_parameters_are_kept_when_nothing_else_has_them(tmp_path: Path) -> None:
    frozen = make(5)[0]
    with open_run(tmp_path) as checkpoints:
        checkpoints.save_async(1, *make(1), DATA, frozen=frozen)
        found = checkpoints.restore(1, *make(0), frozen=make(0)[0])
        assert_same(found.frozen, flatten(frozen))
        with pytest.raises(InputError, match="frozen/block/bias is not part of this run"):
            checkpoints.restore(1, *make(0))


def test_hashes_are_plain_json(saved: Path) -> None:
    content: dict[str, Any] = json.loads((saved / "checkpoints" / "200" / "hashes.json").read_text())["content"]
    assert set(content["items"]) == {"params", "state"}
    assert content["items"]["state"]["step"].keys() == {"checksum", "shape", "dtype"}
    assert "params/manifest.ocdbt" in content["files"]
