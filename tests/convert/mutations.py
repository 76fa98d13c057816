"""Damaged PyTorch folders by the hundred: whatever is changed, conversion works or says one line, and leaves nothing.

`mutated` changes one thing of a good folder: a number or a name in a header, in an index or in a config, bytes
anywhere, a file's length, a value.
"""

import json
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dynllava_jax.convert.from_torch import convert
from dynllava_jax.convert.safetensors_writer import INDEX, SafetensorsWriter, Spec
from dynllava_jax.errors import InputError
from tests.convert import torch_folders

NUMBERS = (-1, 0, 1, 2**31, 2**63, 10**30, 1.5, True, None, "7", [], {})
NAMES = ("../secret.safetensors", "/etc/passwd", "", ".", "..", "a/b.safetensors", "gone.safetensors", "x\0y", "\ud800")


def good(folder: Path) -> Path:
    """A sharded folder with its tower beside it; the base of every mutation."""
    torch_folders.golden("vision_tower", folder)
    src = torch_folders.golden("checkpoint", folder)
    tensors = torch_folders.tensors_of(src)
    (src / "model.safetensors").unlink()
    specs = [Spec(name, tensor.dtype, tensor.shape) for name, tensor in tensors.items()]
    writer = SafetensorsWriter(src, specs, shard_bytes=500_000)
    for name, tensor in tensors.items():
        writer.put(name, tensor)
    writer.finish()
    return src


def outcome(src: Path, dst: Path) -> str:
    """What was said about it; nothing when it was converted.

    Raises:
        AssertionError: anything else: another exception, a line that is none, something left behind.
    """
    try:
        convert(src, dst)
    except InputError as error:
        message = str(error)
        assert "\n" not in message, message
        assert len(message) < 6000, len(message)
        assert not list(dst.parent.glob(f"{dst.name}*")), message
        return message
    except Exception as error:
        raise AssertionError(f"{type(error).__name__}: {error}") from error
    shutil.rmtree(dst)
    return ""


def mutated(src: Path, draw: random.Random) -> str:
    """Changes one thing in the folder; returns what."""
    change = draw.choice((_header, _header, _index, _index, _config, _bytes, _length, _prefix, _json_text))
    return f"{change.__name__}: {change(src, draw)}"


def _shard(src: Path, draw: random.Random) -> Path:
    return draw.choice(sorted(src.glob("*.safetensors")))


def _header(src: Path, draw: random.Random) -> str:
    """A field of one tensor's entry, a name, or the same name twice."""
    file = _shard(src, draw)
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    name = draw.choice([key for key in header if key != "__metadata__"])
    what = draw.choice(("shape", "offsets", "dtype", "missing", "name", "twice", "entry"))
    entry: dict[str, Any] = header[name]
    number = draw.choice(NUMBERS)
    text = None
    if what == "shape" and entry["shape"]:
        entry["shape"][draw.randrange(len(entry["shape"]))] = number
    elif what == "offsets":
        entry["data_offsets"][draw.randrange(2)] = number
    elif what == "dtype":
        entry["dtype"] = draw.choice(("F64", "F33", "BF16", "I8", "BOOL", number))
    elif what == "missing":
        del entry[draw.choice(sorted(entry))]
    elif what == "name":
        header[draw.choice((*NAMES, name + "x"))] = header.pop(name)
    elif what == "entry":
        header[name] = number
    else:
        text = json.dumps(header)[:-1] + f", {json.dumps(name)}: {json.dumps(entry)}}}"
    content = (text or json.dumps(header)).encode()
    file.write_bytes(struct.pack("<Q", len(content)) + content + data[8 + length :])
    return f"{what} of {name}: {number!r}"


def _prefix(src: Path, draw: random.Random) -> str:
    """The length of the header, up to the 4 GB of a hostile file."""
    file = _shard(src, draw)
    data = bytearray(file.read_bytes())
    number = draw.choice((0, 1, 7, 2**32, 2**63, 2**64 - 1, len(data), len(data) - 8, draw.randrange(2**20)))
    data[:8] = struct.pack("<Q", number)
    file.write_bytes(data)
    return str(number)


def _index(src: Path, draw: random.Random) -> str:
    index = json.loads((src / INDEX).read_text())
    name = draw.choice(sorted(index["weight_map"]))
    value: Any = draw.choice((*NAMES, *NUMBERS, "model.txt"))
    how = draw.choice(("file", "drop", "add", "map"))
    if how == "file":
        index["weight_map"][name] = value
    elif how == "drop":
        del index["weight_map"][name]
    elif how == "add":
        index["weight_map"]["another"] = value
    else:
        index["weight_map"] = value
    (src / INDEX).write_text(json.dumps(index))
    return f"{how} {name}: {value!r}"


def _config(src: Path, draw: random.Random) -> str:
    file = draw.choice((src / "config.json", src.parent / "vision_tower" / "config.json"))
    config = json.loads(file.read_text())
    inner = draw.random() < 0.3 and "sparse_config" in config
    target = config["sparse_config"] if inner else config
    key, value = draw.choice(sorted(target)), draw.choice((*NUMBERS, "x"))
    target[key] = value
    file.write_text(json.dumps(config))
    return f"{file.parent.name} {key}: {value!r}"


def _json_text(src: Path, draw: random.Random) -> str:
    """Text that is no JSON, no text, or too deep."""
    file = draw.choice((src / "config.json", src / INDEX, src / "tokenizer_config.json"))
    content = draw.choice((b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b"null", b'{"a": 1e999}'))
    file.write_bytes(content)
    return f"{file.name}: {content[:9]!r}"


def _bytes(src: Path, draw: random.Random) -> str:
    file = draw.choice(sorted(path for path in src.iterdir() if path.is_file()))
    data = bytearray(file.read_bytes())
    places = [draw.randrange(len(data)) for _ in range(draw.choice((1, 1, 8, 64)))]
    for place in places:
        data[place] = draw.randrange(256)
    file.write_bytes(data)
    return f"{file.name} at {places[:4]}"


def _length(src: Path, draw: random.Random) -> str:
    file = draw.choice(sorted(path for path in src.iterdir() if path.is_file()))
    data = file.read_bytes()
    size = draw.choice((0, 1, 8, len(data) // 2, len(data) - 1, len(data) + 1, draw.randrange(len(data))))
    file.write_bytes(data[:size] + b"\0" * (size - len(data)))
    return f"{file.name} to {size}"


def run(folder: Path, count: int, seed: int, told: Callable[[str, str], None] = lambda what, line: None) -> int:
    """Tries `count` mutations; returns how many were refused.

    Raises:
        AssertionError: one that was neither converted nor refused as it should be; its number and seed are named.
    """
    original = good(folder / "good")
    refused = 0
    for number in range(count):
        work = folder / "work"
        shutil.copytree(folder / "good", work)
        what = mutated(work / original.name, random.Random(f"{seed} {number}"))
        try:
            line = outcome(work / original.name, folder / "dst")
        except AssertionError as error:
            raise AssertionError(f"mutation {number} of seed {seed} ({what}): {error}") from error
        refused += bool(line)
        told(what, line)
        shutil.rmtree(work)
    return refused
