"""Diagrams by matplotlib, which only these need."""

from pathlib import Path
from typing import TYPE_CHECKING

from dynllava_jax.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = (".svg", ".png", ".pdf")
COLOURS = ("#1f6fb2", "#c8553d", "#3c8d5a", "#8a5fb0", "#b8860b", "#555555")


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure of so many inches.

    Raises:
        InputError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError("Diagrams need matplotlib; run: pip install 'dynllava_jax[show]'.") from None
    return Figure(figsize=(width, height), layout="constrained")


def save(figure: "Figure", file: Path) -> None:
    """Writes a new figure in the format that the name ends in: drawn from the same numbers, it has the same bytes.

    Raises:
        InputError: the file cannot be written.
    """
    import matplotlib as mpl

    # Laid out once: each drawing would move the axes a little further. Ids and a date would make every file a new one.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    metadata = {"Date": None} if file.suffix == ".svg" else None
    try:
        with mpl.rc_context({"svg.hashsalt": "dynllava_jax", "svg.fonttype": "none"}):
            figure.savefig(file, metadata=metadata, dpi=110)
    except OSError as error:
        raise InputError(f"{file} cannot be written: {error.strerror or error}.") from error
