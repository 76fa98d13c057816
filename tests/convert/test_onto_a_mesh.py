"""`convert from-torch --mesh`: the same weights, written shard by shard from the devices of a mesh."""

from collections import Counter
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from dynllava_jax.checkpoint import orbax_items, store
from dynllava_jax.checkpoint.leaves import item_of, targets
from dynllava_jax.checkpoint.load import leaf_shardings, load_parameters
from dynllava_jax.cli.main import main
from dynllava_jax.convert.from_torch import convert
from dynllava_jax.convert.to_torch import export
from dynllava_jax.sharding.mesh import make_mesh
from dynllava_jax.sharding.specs import param_shardings
from tests import golden_files
from tests.convert.test_to_torch import content

SRC = golden_files.ROOT / "checkpoint"
MESH = "data=1,fsdp=8"


@pytest.fixture(scope="module")
def held() -> list[Counter[Any]]:
    """Bytes on each device while each item is written."""
    return []


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory, held: list[Counter[Any]]) -> Path:
    path = tmp_path_factory.mktemp("mesh") / "model"
    save = orbax_items.save
    before = jax.live_arrays()  # other tests' arrays; kept here, so that no id is given twice
    known = {id(array) for array in before}

    def watched(*args: object) -> None:
        now: Counter[Any] = Counter()
        for array in (array for array in jax.live_arrays() if id(array) not in known):
            for shard in array.addressable_shards:
                now[shard.device] += shard.data.nbytes
        held.append(now)
        save(*args)  # pyright: ignore[reportArgumentType]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(orbax_items, "save", watched)
        assert main(["convert", "from-torch", str(SRC), str(path), "--mesh", MESH]) == 0
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "model"
    convert(SRC, path)
    return path


def test_every_shard_is_a_chunk_of_its_own(sharded: Path) -> None:
    info = store.read_info(sharded)
    mesh = make_mesh(MESH)
    wanted = leaf_shardings(info.config, lambda model: param_shardings(model, mesh, model.config))
    split = 0
    for item, leaves in info.items.items():
        stored = ocp.metadata(str(sharded / item)).metadata
        for name, entry in leaves.items():
            if item == store.CARRIED:
                continue
            shape = tuple(entry["shape"])
            where = wanted[name]
            assert where is not None
            chunk, shard = stored[name].storage_metadata.chunk_shape, where.shard_shape(shape)
            if shard == shape:  # a whole one is written by all devices that have it, a part each
                assert all(size % part == 0 for size, part in zip(shape, chunk, strict=True)), name
                continue
            assert tuple(chunk) == shard, name
            split += 1
    assert split > 30


def test_no_device_holds_more_than_its_shards_of_an_item(sharded: Path, held: list[Counter[Any]]) -> None:
    info = store.read_info(sharded)
    mesh = make_mesh(MESH)
    where = leaf_shardings(info.config, lambda model: param_shardings(model, mesh, model.config))
    share: Counter[str] = Counter()
    total = 0
    for target in targets(info.config):
        for leaf in target.leaves:
            sharding = where[leaf]
            assert sharding is not None
            share[item_of(leaf)] += 4 * int(np.prod(sharding.shard_shape(target.leaf_shape)))
            total += 4 * int(np.prod(target.leaf_shape))
    most = max(max(now.values(), default=0) for now in held)
    assert most <= max(share.values())
    assert most < total / 16


def test_it_is_the_same_model(sharded: Path, whole: Path, tmp_path: Path) -> None:
    first, second = store.read_info(whole), store.read_info(sharded)
    assert first.content_hash == second.content_hash
    mesh = make_mesh(MESH)
    config = first.config
    alone = load_parameters(whole, config)
    split = load_parameters(sharded, config, sharding=lambda model: param_shardings(model, mesh, config))
    assert all(np.array_equal(alone[name], value) for name, value in split.items())
    export(sharded, tmp_path / "back", layout="official")
    assert content(tmp_path / "back") == content(SRC)


@pytest.mark.parametrize(
    ("mesh", "said"),
    [
        ("fsdp=16", "Mesh fsdp=16 needs 16 devices, but there are 8."),
        ("fsdp=3", "Mesh fsdp=3 does not divide the decoder's embed (64); use a size that does."),
        ("tensor=8", "Mesh tensor=8 does not divide the decoder's heads (4); use a size that does."),
        ("layers=2", "Mesh axis 'layers' is unknown"),
    ],
)
def test_a_mesh_that_does_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str], mesh: str, said: str) -> None:
    assert main(["convert", "from-torch", str(SRC), str(tmp_path / "model"), "--mesh", mesh]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())
