"""A model checkpoint gives back what was written, or says what is wrong with it."""

import json
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from dynllava_jax.checkpoint import store
from dynllava_jax.checkpoint.leaves import item_of, leaf_shapes
from dynllava_jax.config.presets import tiny
from dynllava_jax.errors import InputError

CONFIG = tiny()


def random_leaves(dtype: str = "float32") -> list[tuple[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    shapes = leaf_shapes(CONFIG)
    return [
        (name, rng.standard_normal(shapes[name]).astype(np.dtype(dtype)))
        for name in sorted(shapes, key=lambda name: (item_of(name), name))
    ]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    carried = [("a.position_ids", np.arange(3)[None]), ("b.scalar", np.full((), 2, np.float32))]
    extras = store.Extras({"sub/tokenizer.model": b"\0pieces"}, {"layout": "official"})
    store.write(tmp_path / "ckpt", CONFIG, random_leaves(), carried=carried, extras=extras)
    return tmp_path / "ckpt"


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_round_trip(tmp_path: Path, dtype: str) -> None:
    leaves = dict(random_leaves(dtype))
    done: list[int] = []
    store.write(tmp_path / "ckpt", CONFIG, leaves.items(), progress=done.append)
    info = store.read_info(tmp_path / "ckpt")
    assert info.config == CONFIG
    assert info.dtype == dtype
    found = {name: leaf for item in store.read_items(tmp_path / "ckpt", info) for name, leaf in item.items()}
    assert found.keys() == leaves.keys()
    for name, leaf in leaves.items():
        assert found[name].dtype == leaf.dtype
        np.testing.assert_array_equal(found[name], leaf)
    assert sum(done) == sum(leaf.nbytes for leaf in leaves.values())
    assert len(done) == CONFIG.decoder.num_layers + 4  # embedding, head, tower, the rest


def test_what_travels_along(checkpoint: Path) -> None:
    info = store.read_info(checkpoint)
    assert info.facts == {"layout": "official"}
    assert (checkpoint / store.FILES / "sub/tokenizer.model").read_bytes() == b"\0pieces"
    carried = store.read_carried(checkpoint, info)
    np.testing.assert_array_equal(carried["a.position_ids"], [[0, 1, 2]])
    assert carried["a.position_ids"].dtype == np.int64
    assert carried["b.scalar"].shape == ()


def test_one_flipped_bit_is_named(checkpoint: Path) -> None:
    info = store.read_info(checkpoint)
    stored = dict(random_leaves())["decoder/layers/1/mlp/up/kernel"].tobytes()
    files = [path for path in (checkpoint / "decoder_001").rglob("*") if path.is_file() and stored in path.read_bytes()]
    assert len(files) == 1
    content = bytearray(files[0].read_bytes())
    content[content.index(stored) + 1001] ^= 4
    files[0].write_bytes(content)
    with pytest.raises(
        InputError, match=r"decoder_001.*decoder/layers/1/mlp/up/kernel|decoder_001 is missing or damaged"
    ):
        list(store.read_items(checkpoint, info))


def test_a_leaf_swapped_for_another_is_named(tmp_path: Path, checkpoint: Path) -> None:
    other = [(name, leaf + (name == "vision/class_embedding")) for name, leaf in random_leaves()]
    store.write(tmp_path / "other", CONFIG, other)
    (checkpoint / "vision").rename(tmp_path / "old")
    (tmp_path / "other" / "vision").rename(checkpoint / "vision")
    with pytest.raises(InputError, match=r"vision is damaged: vision/class_embedding differ"):
        list(store.read_items(checkpoint, store.read_info(checkpoint)))


def test_a_missing_item(checkpoint: Path) -> None:
    (checkpoint / "decoder_002").rename(checkpoint / "elsewhere")
    with pytest.raises(InputError, match="decoder_002 is missing or damaged"):
        list(store.read_items(checkpoint, store.read_info(checkpoint)))


@pytest.mark.parametrize("name", ["config.json", "files/sub/tokenizer.model"])
def test_a_changed_file_is_named(checkpoint: Path, name: str) -> None:
    content = (checkpoint / name).read_bytes()
    (checkpoint / name).write_bytes(content.replace(b"2", b"3").replace(b"pieces", b"places"))
    with pytest.raises(InputError, match=f"{name} is missing or was changed"):
        store.read_info(checkpoint)


def test_a_newer_format_is_refused_by_number(checkpoint: Path) -> None:
    for name in ("config.json", "hashes.json"):
        path = checkpoint / name
        value = json.loads(path.read_text())
        value.get("files", {}).pop("config.json", None)
        path.write_text(json.dumps(value | ({"format_version": 9} if name == "config.json" else {})))
    with pytest.raises(InputError, match="has format_version 9"):
        store.read_info(checkpoint)


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    def broken() -> Iterator[tuple[str, np.ndarray]]:
        yield from random_leaves()[:30]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.write(tmp_path / "ckpt", CONFIG, broken())
    assert list(tmp_path.iterdir()) == []


def test_a_killed_write_never_loads_and_can_be_repeated(tmp_path: Path, checkpoint: Path) -> None:
    half = tmp_path / "half.tmp"
    checkpoint.rename(half)
    (half / "config.json").unlink()
    assert not store.is_checkpoint(half)
    with pytest.raises(InputError, match="conversion did not finish"):
        store.read_info(tmp_path / "half")
    store.write(tmp_path / "half", CONFIG, random_leaves())
    assert store.is_checkpoint(tmp_path / "half")
    assert not half.exists()


def test_a_killed_write_goes_on_with_what_is_not_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def lazy(name: str, leaf: np.ndarray, kill: bool = False) -> tuple[str, store.Leaf]:
        def make() -> np.ndarray:
            if kill and name.startswith("decoder/layers/3"):
                raise KeyboardInterrupt
            made.append(name)
            return leaf

        return name, make

    leaves = random_leaves()
    with monkeypatch.context() as patch:
        patch.setattr(store, "remove_tree", lambda folder: None)  # as a kill does: nothing is cleared
        dying = [lazy(name, leaf, kill=True) for name, leaf in leaves]
        with pytest.raises(KeyboardInterrupt):
            store.write(tmp_path / "ckpt", CONFIG, dying, identity="one")
    finished = json.loads((tmp_path / "ckpt.tmp" / "hashes.json").read_text())["items"].keys()
    assert {"decoder_000", "decoder_001"} <= finished
    assert not store.is_checkpoint(tmp_path / "ckpt.tmp")
    (tmp_path / "ckpt.tmp" / "decoder_003").mkdir()  # begun, not finished
    made.clear()
    store.write(tmp_path / "ckpt", CONFIG, [lazy(*leaf) for leaf in leaves], identity="one")
    assert not {item_of(name) for name in made} & finished
    info = store.read_info(tmp_path / "ckpt")
    found = {name: leaf for item in store.read_items(tmp_path / "ckpt", info) for name, leaf in item.items()}
    assert all(np.array_equal(found[name], leaf) for name, leaf in leaves)
    assert [path.name for path in tmp_path.iterdir()] == ["ckpt"]


def test_what_another_conversion_left_is_not_used(tmp_path: Path, checkpoint: Path) -> None:
    checkpoint.rename(tmp_path / "other.tmp")
    store.write(tmp_path / "other", CONFIG, random_leaves("float16"), identity="two")
    assert store.read_info(tmp_path / "other").dtype == "float16"


def test_what_is_not_ours_is_not_removed(tmp_path: Path) -> None:
    (tmp_path / "ckpt.tmp").mkdir()
    (tmp_path / "ckpt.tmp" / "thesis.txt").touch()
    with pytest.raises(InputError, match=r"ckpt\.tmp is in the way"):
        store.write(tmp_path / "ckpt", CONFIG, random_leaves())
    assert (tmp_path / "ckpt.tmp" / "thesis.txt").exists()


def test_an_empty_folder_may_be_filled(tmp_path: Path) -> None:
    (tmp_path / "ckpt").mkdir()
    store.write(tmp_path / "ckpt", CONFIG, random_leaves())
    assert store.is_checkpoint(tmp_path / "ckpt")


def test_what_is_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="it does not exist"):
        store.read_config(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"no config\.json of ours"):
        store.read_config(tmp_path)
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(InputError, match=f"dynllava convert from-torch {tmp_path} {tmp_path.name}-jax"):
        store.read_config(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"Hugging Face name.*llava-v1\.5-7b-jax"):
        store.read_config(Path("liuhaotian/llava-v1.5-7b"))
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"^\. is no model checkpoint: no config\.json of ours"):
        store.read_config(Path())


def test_bytes_on_disk_are_the_weights(tmp_path: Path) -> None:
    """Uncompressed: random bfloat16 take their own size and little more."""
    big = [("decoder/layers/0/x", np.zeros((1024, 1024), ml_dtypes.bfloat16))]
    store.write(tmp_path / "ckpt", CONFIG, big)
    size = sum(path.stat().st_size for path in (tmp_path / "ckpt" / "decoder_000").rglob("*"))
    assert 2**21 <= size < 2**21 + 2**16
