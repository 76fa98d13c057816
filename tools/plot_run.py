"""The loss curve and the keep rates of a training run as one SVG picture.

python tools/plot_run.py WORKDIR/metrics.jsonl docs/training_run.svg
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

WIDTH, HEIGHT, LEFT, GAP = 760, 190, 60, 50
COLOURS = ("#1f6fb2", "#c8553d", "#3c8d5a")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("metrics", type=Path)
    parser.add_argument("picture", type=Path)
    args = parser.parse_args()
    rows = [json.loads(line) for line in args.metrics.read_text().splitlines()]
    panels = (
        _panel(rows, 0, "cross-entropy", ("ce", "eval/loss")),
        _panel(rows, 1, "keep rates in training", ("image_keep_rate", "output_keep_rate")),
    )
    height = 2 * (HEIGHT + GAP) + 20
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH + 20}" height="{height}" font-family="sans-serif"'
    args.picture.write_text("\n".join([f'{head} font-size="12">', *panels, "</svg>"]) + "\n")


def _panel(rows: Sequence[dict[str, float]], number: int, title: str, names: Sequence[str]) -> str:
    """One diagram: lines over the steps, a scale from 0 to the largest value."""
    top = 30 + number * (HEIGHT + GAP)
    series = {name: [(row["step"], row[name]) for row in rows if row.get(name) is not None] for name in names}
    last = max(step for points in series.values() for step, _ in points)
    high = max(value for points in series.values() for _, value in points) * 1.05

    def at(step: float, value: float) -> str:
        return f"{LEFT + (WIDTH - LEFT) * step / last:.1f},{top + HEIGHT * (1 - value / high):.1f}"

    parts = [f'<rect x="{LEFT}" y="{top}" width="{WIDTH - LEFT}" height="{HEIGHT}" fill="none" stroke="#999"/>']
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = top + HEIGHT * (1 - share)
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.0f}" text-anchor="end">{high * share:.3g}</text>')
        parts.append(f'<text x="{LEFT + (WIDTH - LEFT) * share:.0f}" y="{top + HEIGHT + 15}">{last * share:.0f}</text>')
    for index, (name, points) in enumerate(series.items()):
        line = " ".join(at(step, value) for step, value in points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{COLOURS[index]}" stroke-width="1.5"/>')
        place = f'x="{LEFT + 150 + 150 * index}" y="{top - 8}" fill="{COLOURS[index]}"'
        parts.append(f"<text {place}>{name}</text>")
    parts.append(f'<text x="{LEFT}" y="{top - 8}" font-weight="bold">{title}</text>')
    return "\n".join(parts)


if __name__ == "__main__":
    main()
