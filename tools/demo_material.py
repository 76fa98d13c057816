"""Reduces the demo's pictures from the packages that they come in.

    python tools/demo_material.py --emoji EMOJI --wallpapers WALLPAPERS --scikit-image SKIMAGE --scikit-learn SKLEARN

EMOJI is npm's `@lobehub/fluent-emoji-3d` 1.1.0 unpacked, WALLPAPERS Debian's `lomiri-wallpapers-16.04` 20.04.0-2,
SKIMAGE and SKLEARN the wheels of scikit-image 0.26.0 and scikit-learn 1.9.1. Objects become 112 pixels wide,
backgrounds 400 pixels high. Authors and licences: dynllava_jax/demo/material/LICENCES.md.
"""

import argparse
from pathlib import Path

from PIL import Image, ImageOps

from dynllava_jax.demo.catalogue import BACKGROUNDS, MATERIAL, OBJECTS

_WALLPAPERS, _SKIMAGE, _SKLEARN = "usr/share/backgrounds", "skimage/data", "sklearn/datasets/images"
SOURCES = {
    "meadow": ("wallpapers", f"{_WALLPAPERS}/aitzgorri_by_Aitzol_Berasategi.jpg"),
    "stream": ("wallpapers", f"{_WALLPAPERS}/life_by_Aitzol_Berasategi.jpg"),
    "mountains": ("wallpapers", f"{_WALLPAPERS}/picosdeeuropa_by_Aitzol_Berasategi.jpg"),
    "brushes": ("wallpapers", f"{_WALLPAPERS}/Picture_1A_by_freespace.jpg"),
    "dandelions": ("wallpapers", f"{_WALLPAPERS}/seeding_by_Clements_Engelhardt.jpg"),
    "sunset": ("wallpapers", f"{_WALLPAPERS}/sunset_by_Aitzol_Berasategi.jpg"),
    "pattern": ("wallpapers", f"{_WALLPAPERS}/umang_by_Abhishek_Mudgal.jpg"),
    "room": ("wallpapers", f"{_WALLPAPERS}/Wine_by_Jakkub_Mede.jpg"),
    "gravel": ("scikit_image", f"{_SKIMAGE}/gravel.png"),
    "bricks": ("scikit_image", f"{_SKIMAGE}/brick.png"),
    "stars": ("scikit_image", f"{_SKIMAGE}/hubble_deep_field.jpg"),
    "temple": ("scikit_learn", f"{_SKLEARN}/china.jpg"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name in ("--emoji", "--wallpapers", "--scikit-image", "--scikit-learn"):
        parser.add_argument(name, type=Path, required=True)
    folders = vars(parser.parse_args())
    for folder in ("objects", "backgrounds"):
        (MATERIAL / folder).mkdir(parents=True, exist_ok=True)
    for thing in OBJECTS:
        picture = Image.open(folders["emoji"] / "assets" / f"{thing.code}.webp").convert("RGBA")
        picture = picture.crop(picture.getbbox())
        picture.thumbnail((112, 112), Image.Resampling.LANCZOS)
        picture.save(MATERIAL / "objects" / f"{thing.name}.webp", quality=85, alpha_quality=90)
    for background in BACKGROUNDS:
        package, path = SOURCES[background.name]
        picture = ImageOps.exif_transpose(Image.open(folders[package] / path)).convert("RGB")
        width, height = picture.size
        scale = 400 / min(width, height)
        picture = picture.resize((round(width * scale), round(height * scale)), Image.Resampling.LANCZOS)
        picture.save(MATERIAL / "backgrounds" / f"{background.name}.jpg", quality=82)


if __name__ == "__main__":
    main()
