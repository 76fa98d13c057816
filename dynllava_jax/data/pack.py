"""Any source becomes a folder of shards: few large files, checksums, no picture that cannot be read."""

import contextlib
import dataclasses
import fcntl
import io
import os
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from etils import epath
from PIL import Image

from dynllava_jax.config.json_file import is_whole
from dynllava_jax.data.manifest import FINISHED, UNFINISHED, Manifest, folder, is_remote
from dynllava_jax.data.records import Record, SampleError
from dynllava_jax.data.shard_writer import ShardWriter, writing
from dynllava_jax.data.source import Source
from dynllava_jax.data.workers import in_order
from dynllava_jax.errors import InputError, shown

SHARD_BYTES = 256 * 2**20
QUALITY = 95


class Packable(Source, Protocol):
    """A source that also gives its pictures as files."""

    def encoded(self, record: Record, number: int) -> bytes:
        """The bytes of an image file.

        Raises:
            SampleError: as `picture`, but it need not decode them.
        """
        ...


def pack(
    source: Packable,
    out: str,
    *,
    short_side: int | None = None,
    shard_bytes: int = SHARD_BYTES,
    workers: int = 0,
    on_start: Callable[[int, int], None] = lambda total, done: None,
    on_sample: Callable[[], None] = lambda: None,
) -> Manifest:
    """Writes all good samples of `source` into `out`, in their order; bad ones are counted in the manifest.

    Stopped at any moment, the same call goes on where the last whole shard ended, and the result is the same.

    Args:
        source: where samples come from.
        out: a folder, on a disk or a bucket.
        short_side: pictures whose short side is longer become JPEG files with this one, the others stay as they are;
            None leaves all as they are. Every picture is decoded once in any case.
        shard_bytes: where a shard ends.
        workers: processes that read and shrink pictures.
        on_start: is told how many samples there are and how many earlier runs did.
        on_sample: is told when a sample is done.

    Raises:
        InputError: `short_side`, `shard_bytes` or `workers` is too small, or no whole number; `out` holds something
            else, or shards of another source or with other settings, or cannot be written, or another process packs
            into it.
    """
    for name, value, least in (("short_side", short_side, 1), ("shard_bytes", shard_bytes, 1), ("workers", workers, 0)):
        if not is_whole(value, least) and not (name == "short_side" and value is None):
            raise InputError(f"{name} must be a whole number, {least} or more, not {shown(value)}.")
    request = {
        "source": source.name,
        "fingerprint": source.fingerprint(),
        "short_side": short_side,
        "quality": QUALITY,
        "shard_bytes": shard_bytes,
    }
    path = folder(out)
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
    with _alone(path):
        return _pack(source, path, request, workers, on_start, on_sample)


def _pack(
    source: Packable,
    path: epath.Path,
    request: dict[str, Any],
    workers: int,
    on_start: Callable[[int, int], None],
    on_sample: Callable[[], None],
) -> Manifest:
    done = _earlier(path, request)
    if (path / FINISHED).exists():
        (path / UNFINISHED).unlink(missing_ok=True)
        return done
    on_start(len(source), done.read)
    writer = ShardWriter(path, request["shard_bytes"])
    left_out = {reason: list(ids) for reason, ids in done.left_out.items()}
    read = done.read

    def finish_shard() -> Manifest:
        """The shard first, then the note that it is there: between the two, the shard is made again."""
        shards = done.shards if writer.empty else (*done.shards, writer.finish(len(done.shards)))
        manifest = Manifest(request, shards, read, {reason: tuple(ids) for reason, ids in left_out.items()})
        with writing(path):
            manifest.write(path / UNFINISHED)
        return manifest

    try:
        for result in in_order(_Prepare(source, request["short_side"]), range(done.read, len(source)), workers):
            read += 1
            if isinstance(result, SampleError):
                left_out.setdefault(result.reason, []).append(result.id)
            else:
                writer.add(*result)
            if writer.full:
                done = finish_shard()
            on_sample()
        done = finish_shard()
    finally:
        writer.close()
    if not done.samples:
        raise InputError(f"No sample of {source.name} can be packed: {describe(done)}.")
    with writing(path):
        done.write(path / FINISHED)
        (path / UNFINISHED).unlink()
    return done


def describe(manifest: Manifest) -> str:
    """Bad samples by reason, with the first ids of each."""
    return "; ".join(
        f"{len(ids)} {reason} ({', '.join(ids[:5])}{', …' if len(ids) > 5 else ''})"
        for reason, ids in manifest.left_out.items()
    )


@dataclasses.dataclass(frozen=True)
class _Prepare:
    """Reads one sample, in whatever process."""

    source: Packable
    short_side: int | None

    def __call__(self, index: int) -> tuple[Record, list[bytes]] | SampleError:
        try:
            record = self.source.record(index)
            pictures = [self._picture(record, number) for number in range(len(record.images))]
        except SampleError as error:
            return error
        return dataclasses.replace(record, images=()), pictures

    def _picture(self, record: Record, number: int) -> bytes:
        picture = self.source.picture(record, number)
        if self.short_side is None or min(picture.size) <= self.short_side:
            return self.source.encoded(record, number)
        factor = self.short_side / min(picture.size)
        width, height = (max(self.short_side, round(side * factor)) for side in picture.size)
        file = io.BytesIO()
        picture.resize((width, height), Image.Resampling.BICUBIC).save(file, "JPEG", quality=QUALITY, subsampling=0)
        return file.getvalue()


@contextlib.contextmanager
def _alone(path: epath.Path) -> Iterator[None]:
    """Refuses a second process in the same folder: both would write into one file. On a bucket each has its own.

    Raises:
        InputError: another process packs into the folder.
    """
    if is_remote(path):
        yield
        return
    with writing(path):
        number = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"{path} is being packed by another process; wait until that has ended, or give another folder."
            ) from None
        except OSError:
            pass  # a file system that does not lock folders, as some networks'
        yield
    finally:
        os.close(number)


def _earlier(path: epath.Path, request: dict[str, Any]) -> Manifest:
    """What earlier runs with the same request left; a new folder is marked as ours before anything is in it."""
    for name in (FINISHED, UNFINISHED):
        if not (path / name).exists():
            continue
        earlier = Manifest.read_from(path / name)
        for key, value in request.items():
            if key != "source" and earlier.request.get(key) != value:
                raise InputError(
                    f"{path} holds shards of {earlier.request.get('source')} with {key} {earlier.request.get(key)!r}, "
                    f"not {value!r}; give another folder, or remove this one."
                )
        return earlier
    there = path.iterdir() if path.is_dir() else ()  # on a bucket there is no folder before something lies in it
    if others := sorted(item.name for item in there if not item.name.startswith("unfinished.")):
        raise InputError(f"{path} is not empty ({others[0]}); give a new folder.")
    manifest = Manifest(request)
    with writing(path):
        manifest.write(path / UNFINISHED)
    return manifest
