"""Pictures from anywhere, and the pixels that the vision tower wants.

Axis legend: H W pixels of the tower's input, last axis red, green, blue.
"""

import io
import stat
import threading
import warnings
from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageOps, UnidentifiedImageError

from dynllava_jax.config.model import ImagePrep
from dynllava_jax.data.download import download
from dynllava_jax.errors import InputError

MAX_PIXELS = 100_000_000
"""Largest picture that is decoded, and largest canvas that padding or resizing may need (300 MB)."""

ImageSource = str | Path | bytes | Image.Image | np.ndarray
"""What `load_image` understands; anything else that numpy can read as an array is fine too."""

_filters = threading.Lock()
_shared = threading.Lock()
"""Pillow reads a file when its pixels are wanted: two threads with one image would each read half of it."""


def load_image(source: ImageSource | object) -> Image.Image:
    """An RGB picture from a path, an http(s) address, file bytes, a PIL image or an array.

    EXIF orientation is applied, transparency is laid on white, 16-bit values are scaled to 8 bits, and of an
    animation the first frame counts. Arrays are [height, width], or [height, width, 1|3|4], of uint8, uint16 or
    floats in [0, 1].

    Raises:
        InputError: names the source and what is wrong with it: missing, unreadable, no image, cut short, more
            than MAX_PIXELS, or empty.
    """
    if isinstance(source, Image.Image):
        with _shared:
            return _to_rgb(source, "The PIL image")
    if isinstance(source, (bytes, bytearray)):
        return _decode(io.BytesIO(source), f"The image of {len(source)} bytes")
    if isinstance(source, str) and source.lower().startswith(("http://", "https://")):
        return _decode(io.BytesIO(download(source)), f"The image {source[:300]!r}")
    if isinstance(source, (str, Path)):
        if not str(source):
            raise InputError("The name of an image is empty; name a file, or leave it out.")
        return _open(source, f"The image {str(source)[:300]!r}")
    if hasattr(source, "__array__"):
        return _to_rgb(_from_array(_as_array(source)), "The image array")
    raise InputError(f"An image is a path, an address, bytes, a PIL image or an array, not a {type(source).__name__}.")


def preprocess(image: Image.Image, prep: ImagePrep) -> Float[np.ndarray, "H W 3"]:
    """Pads to a square (or not), resizes the short side, crops the centre, scales to [0, 1] and normalises.

    Equal to the official `process_images` with `CLIPImageProcessor`, but with channels last: the mean colour of
    the padding is rounded down, and the bicubic filter rounds to 8 bits.

    Args:
        image: RGB, as `load_image` gives it.
        prep: sizes, mean and deviation; H = W = `prep.crop`.

    Raises:
        InputError: so long and thin that the canvas would exceed MAX_PIXELS.
    """
    width, height = image.size
    short, long = min(image.size), max(image.size)
    canvas = long * long if prep.aspect == "pad" else prep.resize * int(prep.resize * long / short)
    if canvas > MAX_PIXELS:
        raise InputError(
            f"The image of {width}x{height} is too long and thin: it would take {canvas} pixels, and {MAX_PIXELS} is "
            "the limit; crop it."
        )
    if prep.aspect == "pad" and width != height:
        square = Image.new("RGB", (long, long), tuple(int(mean * 255) for mean in prep.mean))
        square.paste(image, ((long - width) // 2, (long - height) // 2))
        image, short = square, long
    size = tuple(prep.resize if side == short else int(prep.resize * side / short) for side in image.size)
    image = image.resize((size[0], size[1]), Image.Resampling.BICUBIC)
    left, top = (size[0] - prep.crop) // 2, (size[1] - prep.crop) // 2
    pixels = np.asarray(image.crop((left, top, left + prep.crop, top + prep.crop)))
    scaled = (pixels * (1 / 255)).astype(np.float32)
    return (scaled - np.asarray(prep.mean, np.float32)) / np.asarray(prep.std, np.float32)


def _open(source: str | Path, what: str) -> Image.Image:
    try:
        path = Path(source).expanduser()
        mode = path.stat().st_mode
        file = path.open("rb") if stat.S_ISREG(mode) else None
    except FileNotFoundError:
        raise InputError(f"{what} does not exist; check the path.") from None
    except OSError as error:
        raise InputError(f"{what} cannot be read: {error.strerror}.") from None
    except (ValueError, RuntimeError) as error:  # a NUL in the path; ~ of an unknown user
        raise InputError(f"{what} cannot be read: {error}.") from None
    if file is None:
        kind = "a directory" if stat.S_ISDIR(mode) else "no ordinary file"
        raise InputError(f"{what} is {kind}; give an image file.")
    with file:
        return _decode(file, what)


def _decode(file: io.BytesIO | io.BufferedReader, what: str) -> Image.Image:
    if not file.read(1):
        raise InputError(f"{what} is empty.")
    file.seek(0)
    try:
        # Opening reads the header only; PIL's own warning about size would come on top of our error.
        with _filters, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(file)
    except Image.DecompressionBombError:
        raise InputError(f"{what} has far more pixels than the limit of {MAX_PIXELS}; make it smaller.") from None
    except UnidentifiedImageError:
        raise InputError(f"{what} is in no image format that Pillow knows, whatever its name says.") from None
    except Exception as error:  # decoders raise anything on damaged files
        raise InputError(f"{what} is damaged: {error}.") from None
    with image:
        if image.format == "EPS":  # Pillow would have Ghostscript run it, whatever the file is named
            raise InputError(f"{what} is PostScript, a program; make a PNG or JPEG of it.")
        return _to_rgb(image, what)


def _to_rgb(image: Image.Image, what: str) -> Image.Image:
    width, height = image.size
    if not width or not height:
        raise InputError(f"{what} is empty: {width}x{height} pixels.")
    if width * height > MAX_PIXELS:
        raise InputError(f"{what} has {width}x{height} pixels, more than the limit of {MAX_PIXELS}; make it smaller.")
    closed = getattr(image, "fp", image) is None and bool(getattr(image, "tile", ()))
    try:
        image.load()
        if image.mode.startswith(("I", "F")):
            image = _to_8_bits(image)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return _upright(image).convert("RGB")
    except Exception as error:  # decoders raise anything on damaged files
        if closed:
            raise InputError(f"{what} was closed before it was read; load() it first, or give its path.") from None
        raise InputError(f"{what} cannot be decoded: {str(error) or type(error).__name__}.") from None


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:
        return image  # Damaged EXIF says nothing about the pixels.


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Grey values of 16 bits (0 … 65535), or floats (0 … 1 if none is larger, else 0 … 255)."""
    values = np.asarray(image, np.float64)
    if not np.isfinite(values).all():
        raise ValueError("it holds infinities or NaN")
    if image.mode == "F":
        values = values * 255 if values.max() <= 1 else values
    elif image.mode != "I" or values.max() > 255:
        values = values / 257
    return Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8))


def _as_array(source: object) -> np.ndarray:
    try:
        return np.asarray(source)
    except Exception as error:  # a tensor with gradients, on a GPU, of a dtype that numpy does not know
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
        raise InputError(f"The image, a {type(source).__name__}, cannot be read as a numpy array: {reason}.") from None


def _from_array(array: np.ndarray) -> Image.Image:
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)) or 0 in array.shape:
        raise InputError(f"An image array is [height, width] or [height, width, 1|3|4], not {list(array.shape)}.")
    if array.dtype.name == "bfloat16":  # which numpy does not count among its floats
        array = array.astype(np.float32)
    if array.dtype.newbyteorder("=") == np.uint16:
        array = np.rint(array / 257).astype(np.uint8)
    elif np.issubdtype(array.dtype, np.floating):
        if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
            raise InputError("An image array of floats holds values in [0, 1]; scale it, or give uint8.")
        array = np.rint(array.astype(np.float64) * 255).astype(np.uint8)
    elif array.dtype != np.uint8:
        raise InputError(f"An image array is uint8, uint16 or floats in [0, 1], not {array.dtype}.")
    return Image.fromarray(array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array)
