"""From a scene to its picture, and to the mask that says which thing each pixel shows.

Y, X pixels.
"""

import functools

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from dynllava_jax.demo.catalogue import HUES, MATERIAL, Background
from dynllava_jax.demo.scenes import Placement, Scene

SIDE = 336
_CELL = (SIDE // 3, SIDE // 2)
_EXTENT = {"large": 104, "small": 60}
_HUE_REACH = 0.14
"""How far from its main hue, in turns, a dyed thing's pixels change their colour with it."""


def render(scene: Scene) -> tuple[Image.Image, UInt8[np.ndarray, "Y X"]]:
    """The picture [336, 336] and its mask: 0 where the background is seen, i + 1 where placement i is."""
    picture = _backdrop(scene)
    mask = np.zeros((SIDE, SIDE), np.uint8)
    for number, placement in enumerate(scene.placements, 1):
        cut = cutout(placement)
        x, y = box(placement)[:2]
        picture.paste(cut, (x, y), cut)
        opaque = np.asarray(cut.getchannel("A")) > 127
        mask[y : y + opaque.shape[0], x : x + opaque.shape[1]][opaque] = number
    return picture, mask


def cutout(placement: Placement) -> Image.Image:
    """The thing alone as it stands in the picture, RGBA; what is transparent is not the thing."""
    picture = _object(placement.thing.name, placement.colour).resize(_size(placement), Image.Resampling.BILINEAR)
    return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if placement.mirrored else picture


@functools.cache
def photograph(background: Background) -> Image.Image:
    """The whole photograph, larger than a picture."""
    with Image.open(MATERIAL / "backgrounds" / f"{background.name}.jpg") as file:
        return file.convert("RGB")


def box(placement: Placement) -> tuple[int, int, int, int]:
    """Pixels that a thing spans: left, top, right, bottom (the last two exclusive)."""
    width, height = _size(placement)
    free = (_CELL[0] - width, _CELL[1] - height)
    corner = (placement.column * _CELL[0], placement.row * _CELL[1])
    x, y = (round(c + f / 2 + s * f / 3) for c, f, s in zip(corner, free, placement.shift, strict=True))
    return x, y, x + width, y + height


def place_of(x: int, y: int) -> int:
    """Index into PLACES of the cell in which a pixel lies."""
    return y // _CELL[1] * (SIDE // _CELL[0]) + x // _CELL[0]


def patch_shares(mask: UInt8[np.ndarray, "Y X"], patch: int = 14) -> Int[np.ndarray, "things patches"]:
    """Pixels of each thing (row 0: the background) in each patch of the picture, row by row."""
    grid = mask.shape[0] // patch
    patches = mask.reshape(grid, patch, grid, patch).transpose(0, 2, 1, 3).reshape(grid * grid, -1)
    return np.stack([(patches == number).sum(1) for number in range(int(mask.max()) + 1)])


def _size(placement: Placement) -> tuple[int, int]:
    width, height = _object(placement.thing.name, placement.colour).size
    scale = _EXTENT[placement.size] / max(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _backdrop(scene: Scene) -> Image.Image:
    picture = photograph(scene.background)
    x, y = (round(share * (size - SIDE)) for share, size in zip(scene.crop[:2], picture.size, strict=True))
    picture = picture.crop((x, y, x + SIDE, y + SIDE))
    return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if scene.crop[2] else picture


@functools.cache
def _object(name: str, colour: str | None) -> Image.Image:
    with Image.open(MATERIAL / "objects" / f"{name}.webp") as file:
        picture = file.convert("RGBA")
    return picture if colour is None else _dye(picture, HUES[colour])


def _dye(picture: Image.Image, hue: float) -> Image.Image:
    """Turns the main hue of a picture into another one; what has other hues or hardly any stays."""
    alpha = picture.getchannel("A")
    channels = np.array(picture.convert("RGB").convert("HSV"))
    hues, strength = channels[..., 0] / 256, channels[..., 1]
    coloured = (strength > 60) & (np.asarray(alpha) > 127)
    main = np.argmax(np.bincount(channels[..., 0][coloured], minlength=256)) / 256
    near = np.abs((hues - main + 0.5) % 1 - 0.5) < _HUE_REACH
    channels[..., 0] = np.where(near & (strength > 30), int(hue * 256), channels[..., 0])
    dyed = Image.fromarray(channels, mode="HSV").convert("RGB")
    dyed.putalpha(alpha)
    return dyed
