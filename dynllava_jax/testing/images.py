"""Pictures made from a seed."""

import numpy as np
from PIL import Image


def synthetic_image(seed: int = 0, width: int = 96, height: int = 64) -> Image.Image:
    """A smooth coloured pattern with a few rectangles: enough for patches to differ. RGB."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    waves = rng.uniform(0.02, 0.2, (3, 2))
    phases = rng.uniform(0, 2 * np.pi, 3)
    pixels = np.stack([np.sin(a * x + b * y + c) for (a, b), c in zip(waves, phases, strict=True)], axis=-1)
    pixels = ((pixels + 1) * 127.5).astype(np.uint8)
    for _ in range(4):
        left, top = rng.integers(0, width), rng.integers(0, height)
        pixels[top : top + height // 4, left : left + width // 4] = rng.integers(0, 256, 3)
    return Image.fromarray(pixels)
