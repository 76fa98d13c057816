"""Pixels equal the official ones; every kind of picture is read, every bad one is named."""

import contextlib
import functools
import http.server
import io
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dynllava_jax.config.model import ImagePrep
from dynllava_jax.data import download
from dynllava_jax.data.image import load_image, preprocess
from dynllava_jax.errors import InputError
from tests.golden_files import arrays

_PREP = {aspect: ImagePrep(resize=56, crop=56, aspect=aspect) for aspect in ("pad", "crop")}


def _bytes(picture: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


class Unreadable:
    """As a tensor with gradients, or one that is not in the host's memory."""

    def __array__(self, dtype: object = None, copy: object = None) -> np.ndarray:
        raise RuntimeError("it is on a GPU.\nMove it.")


def _gradient(height: int = 20, width: int = 30) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows * 8, columns * 8, rows + columns], -1).astype(np.uint8)


@pytest.mark.parametrize("name", ["wide", "tall", "square"])
@pytest.mark.parametrize("aspect", ["pad", "crop"])
def test_golden_pixels(name: str, aspect: str) -> None:
    golden = arrays("01b_image_preprocess")
    expected = golden.get(f"{name}_{'pad' if aspect == 'pad' or name == 'square' else 'plain'}_pixel_values")
    assert expected is not None
    pixels = preprocess(load_image(golden[f"{name}_rgb"]), _PREP[aspect])
    assert pixels.dtype == np.float32
    np.testing.assert_array_equal(pixels.transpose(2, 0, 1), expected[0])


@settings(max_examples=30, deadline=None)
@given(width=st.integers(1, 90), height=st.integers(1, 90), aspect=st.sampled_from(["pad", "crop"]))
def test_every_shape_gives_the_same_pixels_shape(width: int, height: int, aspect: str) -> None:
    pixels = preprocess(load_image(_gradient(height, width)), _PREP[aspect])
    assert pixels.shape == (56, 56, 3)
    assert np.isfinite(pixels).all()


def test_a_crop_larger_than_the_picture_is_filled_with_black() -> None:
    pixels = preprocess(load_image(np.full((10, 10, 3), 255, np.uint8)), ImagePrep(resize=4, crop=8))
    white = (1 - np.array(ImagePrep().mean)) / np.array(ImagePrep().std)
    black = -np.array(ImagePrep().mean) / np.array(ImagePrep().std)
    np.testing.assert_allclose(pixels[2:6, 2:6], np.broadcast_to(white, (4, 4, 3)), rtol=1e-5)
    np.testing.assert_allclose(pixels[0], np.broadcast_to(black, (8, 3)), rtol=1e-5)


@pytest.mark.parametrize("make", [str, Path, Path.read_bytes, Image.open, lambda path: np.asarray(Image.open(path))])
def test_every_source_gives_the_same_picture(tmp_path: Path, make: Callable[[Path], object]) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(_gradient()).save(path)
    np.testing.assert_array_equal(np.asarray(load_image(make(path))), _gradient())


def test_exif_orientation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    data = _bytes(Image.fromarray(_gradient(20, 30)), "PNG", exif=exif)
    np.testing.assert_array_equal(np.asarray(load_image(data)), np.rot90(_gradient(20, 30), -1))


def _colour(source: object) -> list[int]:
    loaded = load_image(source)
    assert loaded.mode == "RGB"
    return np.asarray(loaded)[0, 0].tolist()


def test_transparency_is_laid_on_white() -> None:
    assert _colour(_bytes(Image.new("RGBA", (2, 2), (255, 0, 0, 0)), "PNG")) == [255, 255, 255]
    assert _colour(_bytes(Image.new("LA", (2, 2), (0, 51)), "PNG")) == [204, 204, 204]
    palette = Image.new("P", (2, 2))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    assert _colour(_bytes(palette, "PNG")) == [10, 20, 30]
    assert _colour(_bytes(palette, "GIF", transparency=0)) == [255, 255, 255]


def test_other_depths_and_colour_spaces() -> None:
    deep = np.full((2, 2), 200 * 257, np.uint16)
    assert _colour(_bytes(Image.fromarray(deep), "PNG")) == [200, 200, 200]
    assert _colour(_bytes(Image.fromarray(deep.astype(np.int32)), "TIFF")) == [200, 200, 200]
    assert _colour(_bytes(Image.fromarray(np.full((2, 2), 0.2, np.float32)), "TIFF")) == [51, 51, 51]
    assert _colour(_bytes(Image.new("1", (2, 2), 1), "PNG")) == [255, 255, 255]
    red = np.array(_colour(_bytes(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG")))
    np.testing.assert_allclose(red, [255, 0, 0], atol=4)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_the_first_frame_of_an_animation_counts(kind: str) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("black", "white")]
    assert _colour(_bytes(frames[0], kind, save_all=True, append_images=frames[1:])) == [0, 0, 0]


@pytest.mark.parametrize(
    ("array", "colour"),
    [
        (np.full((2, 2), 7, np.uint8), [7, 7, 7]),
        (np.full((2, 2, 1), 7, np.uint8), [7, 7, 7]),
        (np.full((2, 2, 4), [0, 0, 0, 0], np.uint8), [255, 255, 255]),
        (np.full((2, 2, 3), 0.2, np.float32), [51, 51, 51]),
        (np.full((2, 2, 3), 0.2, ml_dtypes.bfloat16), [51, 51, 51]),
        (np.full((2, 2, 3), 65535, np.uint16), [255, 255, 255]),
        (np.full((2, 2, 3), 0x0700, ">u2"), [7, 7, 7]),
    ],
)
def test_arrays(array: np.ndarray, colour: list[int]) -> None:
    assert _colour(array) == colour


def _png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


_NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
_JPEG = _bytes(Image.fromarray(_NOISE), "JPEG")
_BAD_FILES = {
    "text.jpg": (b"this is no picture", "in no image format that Pillow knows"),
    "empty.png": (b"", "is empty"),
    "short.jpg": (_JPEG[: len(_JPEG) // 2], "cannot be decoded: .*truncated"),
    "header.jpg": (_JPEG[:20], "in no image format|damaged|cannot be decoded"),
    "bomb.png": (_png_header(11_000, 11_000), "has 11000x11000 pixels, more than the limit of 100000000"),
    "big_bomb.png": (_png_header(60_000, 60_000), "far more pixels than the limit"),
    "hollow.png": (_png_header(500, 500), "cannot be decoded"),
    "program.jpg": (_bytes(Image.new("RGB", (4, 4)), "EPS"), "is PostScript, a program; make a PNG or JPEG of it"),
    "nothing.png": (_png_header(0, 5), "is empty: 0x5|in no image format|damaged"),
}


@pytest.mark.parametrize("name", _BAD_FILES)
def test_bad_files_are_named(tmp_path: Path, name: str) -> None:
    data, message = _BAD_FILES[name]
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(InputError, match=message) as error:
        load_image(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@given(
    cut=st.integers(0, len(_JPEG) - 1), flips=st.lists(st.tuples(st.integers(0, len(_JPEG) - 1), st.integers(1, 255)))
)
@settings(max_examples=200, deadline=None)
def test_damage_gives_a_picture_or_one_error(cut: int, flips: list[tuple[int, int]]) -> None:
    data = bytearray(_JPEG)
    for position, bits in flips:
        data[position] ^= bits
    for broken in (bytes(data), bytes(data[:cut])):
        with contextlib.suppress(InputError):
            assert load_image(broken).mode == "RGB"


def test_paths_that_are_no_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.png' does not exist"):
        load_image(tmp_path / "nowhere.png")
    with pytest.raises(InputError, match="The name of an image is empty"):
        load_image("")
    with pytest.raises(InputError, match="is a directory; give an image file"):
        load_image(tmp_path)
    with pytest.raises(InputError, match="no ordinary file"):
        load_image("/dev/zero")
    with pytest.raises(InputError, match="cannot be read: File name too long"):
        load_image("x" * 5000)
    with pytest.raises(InputError, match="null"):
        load_image("a\0b.png")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (3, "not a int"),
        (np.zeros((3, 8, 8), np.uint8), r"not \[3, 8, 8\]"),
        (np.zeros((0, 8, 3), np.uint8), r"not \[0, 8, 3\]"),
        (np.full((2, 2, 3), 128.0), "in \\[0, 1\\]; scale it"),
        (np.full((2, 2, 3), np.nan), "in \\[0, 1\\]; scale it"),
        (np.zeros((2, 2, 3), np.int64), "not int64"),
        (Unreadable(), r"^The image, a Unreadable, cannot be read as a numpy array: it is on a GPU\.$"),
        (Image.new("RGB", (0, 4)), "is empty: 0x4"),
    ],
)
def test_other_bad_sources_are_named(source: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_image(source)


@pytest.mark.parametrize("aspect", ["pad", "crop"])
def test_long_thin_pictures_are_refused_before_they_fill_the_memory(aspect: str) -> None:
    with pytest.raises(InputError, match="too long and thin"):
        preprocess(Image.new("RGB", (40_000, 1)), _PREP[aspect])


class _Server(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None: ...

    def do_GET(self) -> None:
        if self.path == "/endless":
            self.send_response(200)
            self.end_headers()
            self.wfile.write(bytes(5000))
        elif self.path == "/short":
            self.send_response(200)
            self.send_header("Content-Length", "999")
            self.end_headers()
            self.wfile.write(b"x")
        else:
            super().do_GET()


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    Image.fromarray(_gradient()).save(tmp_path / "a.png")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Server, directory=tmp_path)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_addresses(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    np.testing.assert_array_equal(np.asarray(load_image(f"{address}/a.png")), _gradient())
    with pytest.raises(InputError, match=r"b\.png cannot be downloaded: status 404"):
        load_image(f"{address}/b.png")
    with pytest.raises(InputError, match=r"short .*broke off|short cannot be downloaded"):
        load_image(f"{address}/short")
    monkeypatch.setattr(download, "MAX_BYTES", 4096)
    with pytest.raises(InputError, match=rf"^{address}/endless is larger than 0 MiB; give a smaller image\.$"):
        load_image(f"{address}/endless")


def test_an_address_that_nobody_answers() -> None:
    with pytest.raises(InputError, match=r"127\.0\.0\.1:1/a\.png cannot be downloaded"):
        load_image("http://127.0.0.1:1/a.png")


def test_an_image_that_was_closed_before_it_was_read(tmp_path: Path) -> None:
    Image.fromarray(_gradient()).save(tmp_path / "picture.png")
    with Image.open(tmp_path / "picture.png") as closed:
        pass
    with pytest.raises(InputError, match="was closed before it was read; load"):
        load_image(closed)
    with Image.open(tmp_path / "picture.png") as read:
        read.load()
    np.testing.assert_array_equal(load_image(read), _gradient())


def test_threads_share_an_image_that_nobody_has_read(tmp_path: Path) -> None:
    """Pillow reads its file at first use; a server shows one picture to all who ask at once."""
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (600, 800, 3), np.uint8)).save(tmp_path / "picture.png")
    for _ in range(3):
        with Image.open(tmp_path / "picture.png") as picture, ThreadPoolExecutor(8) as pool:
            seen = list(pool.map(lambda _, picture=picture: load_image(picture).tobytes(), range(8)))
            assert set(seen) == {picture.tobytes()}
