"""Pictures of coloured shapes with questions and descriptions, as LLaVA JSON: data to try training on.

    python tools/make_scenes.py FOLDER --samples 800

Writes FOLDER/scenes.json and FOLDER/images; the same seed gives the same files.
"""

import argparse
import itertools
import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

COLOURS = {"red": (200, 40, 40), "green": (40, 160, 60), "blue": (40, 70, 200), "white": (240, 240, 240)}
SHAPES = ("square", "circle", "triangle")
PLACES = tuple(itertools.product(("top", "bottom"), ("left", "right")))
SIDE = 336


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--samples", type=int, default=800)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.samples < 1 or args.seed < 0:
        parser.error("--samples must be 1 or more, and --seed 0 or more")
    (args.folder / "images").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(args.seed)
    records = [_sample(args.folder, number, rng) for number in range(args.samples)]
    (args.folder / "scenes.json").write_text(json.dumps(records, indent=0))


def _sample(folder: Path, number: int, rng: np.random.Generator) -> dict[str, object]:
    background = rng.integers(90, 150, 3)
    image = Image.new("RGB", (SIDE, SIDE), tuple(int(value) for value in background))
    draw = ImageDraw.Draw(image)
    places = [PLACES[i] for i in sorted(rng.choice(len(PLACES), rng.integers(2, 5), replace=False))]
    things = []
    for row, column in places:
        colour, shape = str(rng.choice(list(COLOURS))), str(rng.choice(SHAPES))
        x, y = (SIDE // 4 * (3 if word in ("right", "bottom") else 1) for word in (column, row))
        _draw(draw, shape, COLOURS[colour], x + int(rng.integers(-20, 20)), y + int(rng.integers(-20, 20)))
        things.append((row, column, colour, shape))
    name = f"{number:06d}.png"
    image.save(folder / "images" / name)
    question, answer = _describe(things) if number % 2 else _ask(things, rng)
    turns = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]
    return {"id": f"scene-{number:06d}", "image": name, "conversations": turns}


def _draw(draw: ImageDraw.ImageDraw, shape: str, colour: tuple[int, int, int], x: int, y: int) -> None:
    box = (x - 45, y - 45, x + 45, y + 45)
    if shape == "square":
        draw.rectangle(box, fill=colour)
    elif shape == "circle":
        draw.ellipse(box, fill=colour)
    else:
        draw.polygon([(x, y - 45), (x - 45, y + 45), (x + 45, y + 45)], fill=colour)


def _describe(things: list[tuple[str, str, str, str]]) -> tuple[str, str]:
    parts = [f"In the {row} {column} there is a {colour} {shape}." for row, column, colour, shape in things]
    last = f"Together these are {len(things)} things, and the first of them is {things[0][2]}."
    return "Describe the picture.", " ".join(["The picture shows several things.", *parts, last])


def _ask(things: list[tuple[str, str, str, str]], rng: np.random.Generator) -> tuple[str, str]:
    row, column, colour, shape = things[rng.integers(len(things))]
    return f"What is in the {row} {column}?", f"a {colour} {shape}"


if __name__ == "__main__":
    main()
