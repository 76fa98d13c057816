"""The model checkpoint on disk: what conversion writes, what `load` and warm starts read.

    DST/config.json   our config, format version, package versions, facts about the source; written last
        hashes.json   a hash per leaf and per file
        decoder_000/ … one Orbax pytree per decoder layer; embedding/, head/, vision/, rest/; all uncompressed
        carried/      tensors of the source that the model does not use; never loaded, written back on export
        files/        tokenizer and the source's own JSON files, byte for byte

Everything is made in `DST.tmp` and renamed, so that a half-written checkpoint never has the name of a whole one.
"""

import dataclasses
import itertools
import json
import re
import shlex
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from types import MappingProxyType
from typing import Any

import jax
import numpy as np

from dynllava_jax.checkpoint import hashes, orbax_items, versions
from dynllava_jax.checkpoint.leaves import item_of, nbytes
from dynllava_jax.checkpoint.paths import AnyPath, as_path, is_remote, remove_tree
from dynllava_jax.checkpoint.prefetch import ahead
from dynllava_jax.checkpoint.written import Written
from dynllava_jax.config.json_codec import from_json, to_json
from dynllava_jax.config.model import ModelConfig
from dynllava_jax.errors import InputError

FORMAT = "dynllava_jax model checkpoint"
CARRIED = "carried"
FILES = "files"
TOWER_FILES = ("config.json", "preprocessor_config.json")
"""Of what a checkpoint was made from, those that it carries of the tower's folder."""
SOURCE_FILES = (
    *TOWER_FILES,
    "generation_config.json",
    "processor_config.json",
    "chat_template.json",
    "chat_template.jinja",
)
"""And of the model's folder, besides the tokenizer's."""

Leaf = np.ndarray | Callable[[], np.ndarray]
Shardings = Mapping[str, jax.sharding.Sharding | None]

_PACKAGES = ("dynllava_jax", "jax", "flax", "orbax-checkpoint", "numpy")


@dataclasses.dataclass(frozen=True)
class Extras:
    """What travels with the weights: `files` by name (kept byte for byte) and `facts` (JSON, kept in config.json)."""

    files: Mapping[str, bytes] = dataclasses.field(default_factory=dict)
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Info:
    """`config.json` of a checkpoint.

    Attributes:
        config: the model.
        dtype: of the weights, the widest if there are several.
        versions: of the packages that wrote it.
        facts: what conversion noted, such as `fresh` (predictors without trained weights).
        items: item -> leaf -> hash, shape, dtype.
        content_hash: one hash for all leaves and carried tensors.
    """

    config: ModelConfig
    dtype: str
    versions: dict[str, str]
    facts: dict[str, Any]
    items: dict[str, dict[str, dict[str, Any]]]
    content_hash: str


def write(
    dst: AnyPath,
    config: ModelConfig,
    leaves: Iterable[tuple[str, Leaf]],
    *,
    carried: Iterable[tuple[str, Leaf]] = (),
    extras: Extras = Extras(),
    progress: Callable[[int], None] = lambda nbytes: None,
    identity: str = "",
    shardings: Shardings = MappingProxyType({}),
) -> None:
    """Writes a checkpoint, holding one item (a decoder layer, or the rest) in memory at a time.

    Args:
        dst: a folder that does not exist yet, or is empty.
        config: the model that the leaves fill.
        leaves: (path, array or function that makes it), the leaves of one item one after the other.
        carried: (source's name, array or function).
        extras: files and facts to keep.
        progress: is told the bytes of each finished item, also of one that was there already.
        identity: what is being written. Finished items that a killed process left of the same are kept, and their
            functions not called; "": nothing is kept.
        shardings: where leaves go before they are written: each shard is a piece of its own on the disk, and a device
            holds its shards of one item at a time. Leaves without one are written whole, from the host.

    Raises:
        InputError: `dst` is taken, or the disk refuses it. Whatever fails leaves no trace on disk.
    """
    check_free(dst)
    # A bucket has no renaming: there, a checkpoint is whole when its config.json, written last, is there.
    partial = dst if is_remote(dst) else dst.with_name(dst.name + ".tmp")
    if not is_free(partial) and not (partial / "hashes.json").exists():
        raise InputError(f"{partial} is in the way and is no unfinished checkpoint; remove it.")
    finished = _finished(partial, identity)
    try:
        _clear(partial, finished)
        partial.mkdir(parents=True, exist_ok=True)
        _write_into(partial, config, leaves, carried, extras, progress, identity, finished, shardings)
        if partial != dst:
            if dst.exists():
                dst.rmdir()
            partial.rename(dst)
    except BaseException as error:
        remove_tree(partial)
        if isinstance(error, OSError):
            raise InputError(f"{dst} cannot be written: {error.strerror or error}.") from error
        raise


def _finished(partial: AnyPath, identity: str) -> dict[str, Any]:
    """The items of an unfinished checkpoint that are those of `identity`, as hashes.json has them."""
    try:
        listing = json.loads((partial / "hashes.json").read_text())
        return listing["items"] if identity and listing["identity"] == identity else {}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}


def _clear(partial: AnyPath, finished: Mapping[str, Any]) -> None:
    """Removes all but finished items."""
    for path in partial.iterdir() if partial.is_dir() else ():
        if path.name not in finished and path.name != "hashes.json":
            remove_tree(path) if path.is_dir() else path.unlink()


def check_free(dst: AnyPath) -> None:
    """Raises InputError when `dst` cannot become a checkpoint."""
    unfinished = is_remote(dst) and (dst / "hashes.json").exists() and not (dst / "config.json").exists()
    if not unfinished and not is_free(dst):
        raise InputError(f"{dst} exists already and is not overwritten; give another DST or remove it.")
    if not is_remote(dst) and dst.name in ("", ".."):
        raise InputError(f"DST must be a folder's own name, not {str(dst)!r}: while it is written it is NAME.tmp.")


def is_free(path: AnyPath) -> bool:
    """Whether nothing is there, or an empty folder."""
    return not path.exists() or (path.is_dir() and not any(path.iterdir()))


def package_versions() -> dict[str, str]:
    """Of the packages that a checkpoint depends on."""
    return {name: _version(name) for name in _PACKAGES}


def is_checkpoint(path: AnyPath) -> bool:
    try:
        return json.loads((path / "config.json").read_text())["format"] == FORMAT and (path / "hashes.json").is_file()
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def read_info(path: AnyPath) -> Info:
    """Raises InputError for a path that is no checkpoint, a newer format, or a damaged file."""
    path = as_path(path)
    if not is_checkpoint(path):
        raise InputError(_no_checkpoint(path))
    recorded = Written.read(path / "hashes.json")
    for name, digest in recorded.nested("files").items():
        if not (path / name).is_file() or hashes.hash_bytes((path / name).read_bytes()) != digest:
            raise InputError(f"{path / name} is missing or was changed since the checkpoint was written.")
    written = Written.read(path / "config.json")
    content = versions.migrated(written.content, str(path), versions.MODEL_VERSION, versions.MODEL)
    written = dataclasses.replace(written, content=content)
    config = from_json(ModelConfig, written.nested("model"), f"{written.file}: model")
    items = recorded.items()
    dtype, packages = written.dtype("dtype", content.get("dtype")), written.nested("versions")
    return Info(config, dtype, packages, written.facts(), items, hashes.content_hash(items))


def read_config(path: AnyPath) -> ModelConfig:
    """Raises InputError as `read_info` does."""
    return read_info(path).config


def read_items(path: AnyPath, info: Info, wanted: Collection[str] | None = None) -> Iterator[dict[str, np.ndarray]]:
    """The leaves, item by item, each checked against its hash; only items that hold one of `wanted`, if given."""
    for item, recorded in info.items.items():
        if item != CARRIED and (wanted is None or not recorded.keys().isdisjoint(wanted)):
            yield _read_item(path, item, recorded)


def read_carried(path: AnyPath, info: Info) -> dict[str, np.ndarray]:
    """The source's tensors that the model does not use, by the source's names."""
    return _read_item(path, CARRIED, info.items[CARRIED]) if CARRIED in info.items else {}


def _read_item(path: AnyPath, item: str, recorded: Mapping[str, Mapping[str, Any]]) -> dict[str, np.ndarray]:
    leaves = orbax_items.load(as_path(path) / item, recorded)
    hashes.check(leaves, recorded, str(as_path(path) / item))
    return leaves


def _write_into(
    folder: AnyPath,
    config: ModelConfig,
    leaves: Iterable[tuple[str, Leaf]],
    carried: Iterable[tuple[str, Leaf]],
    extras: Extras,
    progress: Callable[[int], None],
    identity: str,
    finished: Mapping[str, Mapping[str, Mapping[str, Any]]],
    shardings: Shardings,
) -> None:
    items: dict[str, Mapping[str, Mapping[str, Any]]] = dict(finished)
    files: dict[str, str] = {}
    listing = {"algorithm": hashes.ALGORITHM, "identity": identity, "items": items, "files": files}
    _write_json(folder / "hashes.json", listing)
    for item, content in ahead(_items(leaves, carried, finished)):
        if content is None:
            progress(sum(nbytes(entry["shape"], entry["dtype"]) for entry in finished[item].values()))
            continue
        with ThreadPoolExecutor(1) as pool:  # writing waits for the disk while hashing computes
            described = pool.submit(hashes.describe, content)
            orbax_items.save(folder / item, _placed(content, shardings))
            items[item] = described.result()
        progress(sum(leaf.nbytes for leaf in content.values()))
        # Rewritten after each item: the list of finished ones is what a resumed conversion reads.
        _write_json(folder / "hashes.json", listing)
        del content
    for name, data in extras.files.items():
        _put(folder, f"{FILES}/{name}", data, files)
    dtypes = {np.dtype(leaf["dtype"]) for item, found in items.items() if item != CARRIED for leaf in found.values()}
    config_json = {
        "format": FORMAT,
        "format_version": versions.MODEL_VERSION,
        "dtype": max(dtypes, key=lambda dtype: dtype.itemsize).name,
        "versions": package_versions(),
        "facts": dict(extras.facts),
        "model": to_json(config),
    }
    data = _json_bytes(config_json)
    files["config.json"] = hashes.hash_bytes(data)
    _write_json(folder / "hashes.json", listing)
    (folder / "config.json").write_bytes(data)


def _placed(content: Mapping[str, np.ndarray], shardings: Shardings) -> dict[str, np.ndarray | jax.Array]:
    return {
        name: leaf if (where := shardings.get(name)) is None else jax.device_put(leaf, where)
        for name, leaf in content.items()
    }


def _items(
    leaves: Iterable[tuple[str, Leaf]],
    carried: Iterable[tuple[str, Leaf]],
    finished: Mapping[str, Mapping[str, Any]],
) -> Iterator[tuple[str, dict[str, np.ndarray] | None]]:
    """The items' arrays, made when asked for; None for a finished one."""
    seen: set[str] = set()
    grouped = itertools.groupby(leaves, key=lambda leaf: item_of(leaf[0]))
    for item, group in itertools.chain(grouped, ((CARRIED, carried),)):
        if item in seen:
            raise ValueError(f"the leaves of {item} do not come one after the other")
        seen.add(item)
        made = dict(group)
        if item in finished and finished[item].keys() == made.keys():
            yield item, None
        elif made:
            with ThreadPoolExecutor(2) as pool:  # transposing is arithmetic of one core
                arrays = pool.map(lambda leaf: np.asarray(leaf() if callable(leaf) else leaf, order="C"), made.values())
                yield item, dict(zip(made, arrays, strict=True))


def _put(folder: AnyPath, name: str, data: bytes, files: dict[str, str]) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    files[name] = hashes.hash_bytes(data)


def _write_json(path: AnyPath, value: Any) -> None:
    """Never leaves half a file under the name, whenever it is killed."""
    partial = path.with_name(path.name + ".new")
    partial.write_bytes(_json_bytes(value))
    partial.replace(path)


def _json_bytes(value: Any) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _no_checkpoint(path: AnyPath) -> str:
    quoted = shlex.quote(str(path))
    if path.is_dir() and (any(path.glob("*.safetensors")) or any(path.glob("*.bin"))):
        dst = shlex.quote(f"{path.resolve().name}-jax")
        return f"{path} holds PyTorch weights; convert them once: dynllava convert from-torch {quoted} {dst}"
    if not path.exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", str(path)):
        return (
            f"{path} is no folder here; if it is a Hugging Face name, download it and convert it once: "
            f"dynllava convert from-torch DOWNLOADED_FOLDER {shlex.quote(path.name)}-jax"
        )
    if path.name and path.with_name(path.name + ".tmp").exists():  # "." has no name
        return f"{path} is no checkpoint: its conversion did not finish; run the same dynllava convert command again."
    return f"{path} is no model checkpoint: {'no config.json of ours in it' if path.exists() else 'it does not exist'}."
