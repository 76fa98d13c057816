"""`configs/*.py` plus what the command line changes: one `TrainConfig`.

A file defines `get_config()`, which returns an `ml_collections.ConfigDict` of the keys that differ from
`TrainConfig`'s defaults. `--config.key.sub=value` changes a key afterwards. We read both ourselves: the flags of
ml_collections take their values from `sys.argv` and let a tuple of another length replace one without a word.
"""

import ast
import dataclasses
import traceback
from collections.abc import Iterable
from typing import Any

from dynllava_jax.config.json_codec import CLASS, from_json, to_json
from dynllava_jax.config.presets import get_preset
from dynllava_jax.config.sparsity import SparsityConfig
from dynllava_jax.config.training import TrainConfig
from dynllava_jax.errors import InputError

FLAG = "--config"


def read_experiment(path: str, overrides: Iterable[str] = ()) -> TrainConfig:
    """The run that a config file describes.

    Keys of `sparsity` change the sparsity of the preset that `model` names. Other parts that are None, such as
    `optimizer.lora`, begin with their defaults as soon as one of their keys is set.

    Args:
        path: the file, here or on a bucket (`gs://…`).
        overrides: `--config.key.sub=value`, the value a Python literal, or else text; the last one of a key counts.

    Raises:
        InputError: names the file, or the override's key: a file that cannot be read or run, an unknown key (with
            the nearest right one), a value of a wrong type.
    """
    values = _run_file(path)
    # Checked before anything is changed, so that the file is blamed for its own mistakes only.
    config = _decode(values, f"{path}: config")
    changes = [_parse(override) for override in overrides]
    for key, value in changes:
        _set(values, key, value)
    return _decode(values, FLAG) if changes else config


def _run_file(path: str) -> dict[str, Any]:
    """What the file's `get_config()` returns, as plain dicts."""
    try:
        from ml_collections import ConfigDict
    except ImportError:
        raise InputError("Config files need ml_collections; run: pip install 'dynllava_jax[train]'") from None
    from etils import epath

    try:
        source = epath.Path(path).expanduser().read_text().removeprefix("\ufeff")
    except (OSError, UnicodeDecodeError, ImportError, RuntimeError) as error:  # the last: ~ of an unknown user
        raise InputError(f"The config {path} cannot be read: {error}.") from None
    except KeyError:  # a kind of address to which etils has no way
        raise InputError(f"The config {path} cannot be read: no bucket has such an address; give a path.") from None
    scope: dict[str, Any] = {"__name__": "dynllava_config", "__file__": path}
    try:
        exec(compile(source, path, "exec"), scope)
        config = scope["get_config"]() if callable(scope.get("get_config")) else None
    except (Exception, SystemExit) as error:
        problem = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(f"The config {path} fails{_line(error, path)}: {problem}") from error
    if not isinstance(config, ConfigDict):
        raise InputError(f"The config {path} must define get_config() that returns an ml_collections.ConfigDict.")
    return config.to_dict()


def _line(error: BaseException, path: str) -> str:
    """Where in the file it went wrong."""
    if isinstance(error, SyntaxError):
        return f" in line {error.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    return f" in line {lines[-1]}" if lines else ""


def _parse(override: str) -> tuple[list[str], Any]:
    """`--config.optimizer.lora.rank=8` -> (["optimizer", "lora", "rank"], 8)."""
    name, equals, text = override.partition("=")
    key = name.removeprefix(f"{FLAG}.").split(".")
    if not name.startswith(f"{FLAG}.") or not equals or not all(key):
        raise InputError(f"'{override}' is not {FLAG}.key=value, such as {FLAG}.optimizer.learning_rate=1e-5.")
    try:
        return key, ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):  # the last two: too deep for Python's parser
        return key, text


def _set(values: dict[str, Any], key: list[str], value: Any) -> None:
    """Puts `value` into nested dicts. A wrong name or type is found when the whole is decoded."""
    *parents, last = key
    for parent in parents:
        if not isinstance(values.get(parent), dict):
            values[parent] = {}
        values = values[parent]
    values[last] = value


def _decode(values: dict[str, Any], where: str) -> TrainConfig:
    """The dataclass, `sparsity` filled up from the preset."""
    if isinstance(given := values.get("sparsity"), dict):
        values = values | {"sparsity": _merge(_preset_sparsity(values, given, where), given)}
    return from_json(TrainConfig, values, where)


def _preset_sparsity(values: dict[str, Any], given: dict[str, Any], where: str) -> dict[str, Any]:
    model = values.get("model", TrainConfig.model)
    if isinstance(model, str):
        try:
            return to_json(get_preset(model).sparsity)
        except InputError as error:
            raise InputError(f"{where}.model: {error}") from None
    if absent := [field.name for field in dataclasses.fields(SparsityConfig) if field.name not in given]:
        raise InputError(
            f"{where}.sparsity lacks {absent[0]}; it must state everything when {where}.model names no preset."
        )
    return {}


def _merge(base: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """`base` with what `given` says otherwise; an object of another class takes nothing from `base`."""
    if given.get(CLASS, base.get(CLASS)) != base.get(CLASS):
        return given
    nested = {
        key: _merge(base[key], value)
        for key, value in given.items()
        if isinstance(value, dict) and isinstance(base.get(key), dict)
    }
    return base | given | nested
