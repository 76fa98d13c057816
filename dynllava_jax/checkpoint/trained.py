"""The training checkpoint on disk: what `training.checkpoint` writes and resumes from, and `load` reads as a model.

    WORKDIR/files/              tokenizer and the source's own JSON files, written once
            init                where to put (or link) the initial checkpoint if its own path is gone; optional
            checkpoints/STEP/   params/, state/, frozen/   Orbax pytrees, each path -> array as the run holds them
                                config.json                model config, data position, what the run recorded
                                hashes.json                a checksum per array, a hash per small file; written last

`params` are the trained parameters alone, adapters by their own names; `frozen` ones are kept only where they cannot
be read from the initial checkpoint. Orbax gives the folder its name when everything is written; a kill in between
leaves a temporary one. Only then are config.json and hashes.json added, so a folder is a whole checkpoint exactly if
hashes.json is in it, on a bucket (which has no renaming) too.

Two things are checked on the way back. Arrays: the checksum of what arrived on the devices against the one taken on
the devices before saving (`checksums`), which no damage between can escape, wherever it happened. Files up to 1 MiB,
which is Orbax's bookkeeping and ours: a hash each, since damage there need not change an array, yet may tomorrow.
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from typing import Any

from etils import epath

from dynllava_jax.checkpoint import hashes, versions
from dynllava_jax.checkpoint.checksums import ALGORITHM
from dynllava_jax.checkpoint.paths import files_below, size_of
from dynllava_jax.config.json_codec import from_json, to_json
from dynllava_jax.config.json_file import read_object
from dynllava_jax.config.model import ModelConfig
from dynllava_jax.config.training import LoraConfig
from dynllava_jax.errors import InputError

FORMAT = "dynllava_jax training checkpoint"
CHECKPOINTS = "checkpoints"
FILES = "files"
INIT = "init"
PARAMS, STATE, FROZEN = "params", "state", "frozen"

_HASHES, _CONFIG = "hashes.json", "config.json"
_SMALL = 1 << 20


class DamageError(InputError):
    """A checkpoint is not what was written; another one may be."""


@dataclasses.dataclass(frozen=True)
class Info:
    """`config.json` and `hashes.json` of a training checkpoint.

    Attributes:
        step: optimizer steps done, which is also the position in the data.
        score: held-out loss, or None.
        config: of the model.
        init: `path` and `content_hash` of the checkpoint that frozen parameters come from, or {}.
        facts: about the model, as in a model checkpoint.
        versions: of the packages that wrote it.
        data: what the run recorded, such as fingerprints of its config and data.
        lora: how the adapters among the trained parameters were made, or None.
        items: item -> path -> checksum, shape, dtype.
        files: small files -> hash.
    """

    step: int
    score: float | None
    config: ModelConfig
    init: Mapping[str, str]
    facts: Mapping[str, Any]
    versions: Mapping[str, str]
    data: Mapping[str, Any]
    lora: LoraConfig | None = None
    items: Mapping[str, Mapping[str, Mapping[str, Any]]] = dataclasses.field(default_factory=dict)
    files: Mapping[str, str] = dataclasses.field(default_factory=dict)


def steps(folder: epath.Path) -> tuple[int, ...]:
    """Steps of the whole checkpoints in a folder, ascending."""
    if not folder.is_dir():
        return ()
    return tuple(sorted(int(path.name) for path in folder.iterdir() if is_whole(path)))


def is_whole(path: epath.Path) -> bool:
    return path.name.isdecimal() and (path / _HASHES).exists()


def is_incomplete(path: epath.Path) -> bool:
    """What a kill while saving or removing leaves: Orbax's temporary folder, or a step without its hashes."""
    stem, _, rest = path.name.partition(".")
    return stem.isdecimal() and not is_whole(path) and (not rest or rest.startswith("orbax-checkpoint-tmp"))


def check_writable(folder: epath.Path) -> None:
    """Writes and removes a file; raises OSError where that is not possible."""
    probe = folder / "probe.tmp"
    probe.write_text("x")
    probe.unlink()


def find(path: epath.Path) -> epath.Path | None:
    """The step folder that a work folder (its newest), a folder of checkpoints or a step folder means, if any."""
    if is_whole(path):
        return path
    for folder in (path / CHECKPOINTS, path):
        if found := steps(folder):
            return folder / str(found[-1])
    return None


def work_folder(path: epath.Path) -> epath.Path:
    """The work folder of a step folder."""
    return path.parent.parent


def remove(path: epath.Path) -> None:
    """Removes a checkpoint; a kill in between leaves one that no longer counts as whole."""
    (path / _HASHES).unlink(missing_ok=True)
    path.rmtree()


def seal(path: epath.Path, info: Info) -> None:
    """Makes what Orbax has written a whole checkpoint."""
    document = {
        "format": FORMAT,
        "format_version": versions.TRAINING_VERSION,
        **{name: getattr(info, name) for name in _PLAIN},
        "model": to_json(info.config),
        "lora": None if info.lora is None else to_json(info.lora),
    }
    _write(path / _CONFIG, (json.dumps(document, indent=1) + "\n").encode())
    files = {name: hashes.hash_bytes((path / name).read_bytes()) for name in _small_files(path)}
    run_files = {name: hashes.hash_bytes(data) for name, data in read_files(path).items()}
    content = {"algorithm": ALGORITHM, "items": info.items, "files": files, "run_files": run_files}
    _write(path / _HASHES, json.dumps({"content": content, "sha256": _hash(content)}).encode())


def read_info(path: epath.Path, items: Iterable[str] = (PARAMS, STATE, FROZEN)) -> Info:
    """Reads what is known of a checkpoint, after checking its small files and those of some items.

    Raises:
        DamageError: a missing, changed or unreadable file.
        InputError: another format version.
    """
    listing = _read_json(path / _HASHES)
    content = listing.get("content")
    if not isinstance(content, dict) or listing.get("sha256") != _hash(content):
        raise DamageError(f"{path / _HASHES} is damaged: it was changed since the checkpoint was written")
    for name, digest in content["files"].items():
        item, slash, _ = name.partition("/")
        if not slash or item in items:
            _check_file(path / name, digest)
    for name, digest in content["run_files"].items():
        _check_file(work_folder(path) / FILES / name, digest)
    document = _read_json(path / _CONFIG)
    document = versions.migrated(document, str(path), versions.TRAINING_VERSION, versions.TRAINING)
    if content["algorithm"] != ALGORITHM:
        raise InputError(
            f"{path} has checksums of the kind {content['algorithm']!r}; install the version that wrote it."
        )
    config = from_json(ModelConfig, document["model"], f"{path / _CONFIG}: model")
    lora = document.get("lora")
    if lora is not None:
        lora = from_json(LoraConfig, lora, f"{path / _CONFIG}: lora")
    plain = {name: document[name] for name in _PLAIN}
    return Info(config=config, lora=lora, items=content["items"], files=content["files"], **plain)


def read_score(path: epath.Path) -> float | None:
    """The score alone, None also where the file cannot be read: a checkpoint is then only kept while it is new."""
    try:
        score = _read_json(path / _CONFIG).get("score")
    except InputError:
        return None
    return score if isinstance(score, float) else None


def read_files(path: epath.Path) -> dict[str, bytes]:
    """Tokenizer and source files of the run that a step folder belongs to."""
    return read_folder(work_folder(path) / FILES)


def read_folder(folder: epath.Path) -> dict[str, bytes]:
    """All files of a folder by relative name."""
    return {name: path.read_bytes() for name, path in files_below(folder)}


def check_arrays(where: epath.Path, wrong: list[str]) -> None:
    """Raises DamageError that names the arrays that are wrong, if any."""
    if wrong:
        names = f"{', '.join(wrong[:5])}{' …' if len(wrong) > 5 else ''}"
        raise DamageError(f"{where} is damaged: {names} differ from what was saved")


_PLAIN = ("step", "score", "init", "facts", "versions", "data")
"""Fields of `Info` that config.json holds as they are."""


def _small_files(path: epath.Path) -> list[str]:
    ours = (_HASHES, _HASHES + ".tmp")
    return [name for name, file in files_below(path) if name not in ours and size_of(file) <= _SMALL]


def _check_file(path: epath.Path, digest: str) -> None:
    if not path.exists() or hashes.hash_bytes(path.read_bytes()) != digest:
        raise DamageError(f"{path} is damaged: it is missing or was changed since the checkpoint was written")


def _hash(content: Any) -> str:
    return hashes.hash_bytes(json.dumps(content, sort_keys=True).encode())


def _write(path: epath.Path, data: bytes) -> None:
    """Never leaves half a file under the name."""
    partial = path.with_name(path.name + ".tmp")
    partial.write_bytes(data)
    partial.replace(path)


def _read_json(path: epath.Path) -> dict[str, Any]:
    try:
        return read_object(path, "it is damaged")
    except InputError as error:
        raise DamageError(str(error).rstrip(".")) from None
