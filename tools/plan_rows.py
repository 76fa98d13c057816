"""The rows of `docs/plan.md`: calls of `dynllava plan`, each with a file for what it answered."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SAMPLES = 656_000
"""Of the paper's epoch (section 4.1)."""
PROMPT = 768
"""Tokens of a prompt with one image, 576 of them its own."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One call of `dynllava plan`.

    Attributes:
        part: heading that it stands under.
        what: its first cell.
        config: file of configs/.
        topology: as the option.
        more: further options.
    """

    part: str
    what: str
    config: str
    topology: str
    more: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Of its file."""
        return "_".join([self.part, self.what, self.topology]).replace(" ", "-").replace(":", "-").replace(",", "")

    @property
    def words(self) -> tuple[str, ...]:
        """The command without what only tells where the result goes."""
        return ("dynllava", "plan", f"--config=configs/{self.config}", f"--topology={self.topology}", *self.more)


def rows() -> Iterator[Row]:
    """All of them, those that most people ask for first."""
    yield from _training("7B", "a100:1x8", "h100:1x8", "v5e-64")
    yield from _training("13B", "a100:1x8")
    yield from _answers("7B", 64, 2048, "a100:1x1")
    yield from _training("7B", "v5p-32")
    yield from _training("13B", "h100:1x8", "v5p-32")
    yield from _answers("13B", 64, 2048, "h200:1x1")
    for size in ("7B", "13B"):
        for answer in (4096, 2048):
            yield from _answers(size, 8, answer, "a100:1x1")
            yield from _answers(size, 64, answer, "h200:1x1")
            yield from _answers(size, 64, answer, "a100:1x1")
            yield from _answers(size, 1, answer, "a100:1x1")
    for size in ("7B", "13B"):
        yield from _training(size, "v6e-64", "v5e-64")
        yield from _training(size, "v5e-256", mesh=("--mesh=fsdp=-1,tensor=4",))
    for size in ("34B", "70B"):
        yield from _training(size, "h100:4x8", "v5p-128")


def _training(size: str, *topologies: str, mesh: tuple[str, ...] = ()) -> Iterator[Row]:
    """The paper's recipe; 34B and 70B are shapes, trained as the 7B model is."""
    config = f"dynamic_llava_{size.lower()}.py" if size in ("7B", "13B") else "dynamic_llava_7b.py"
    more = () if config.endswith(f"{size.lower()}.py") else (f"--config.model=dynamic_llava_{size.lower()}",)
    more += ("--config.device_batch_size=None",) if size == "13B" else ()
    for topology in topologies:
        yield Row("training", size, config, topology, (*more, *mesh, f"--samples={SAMPLES}"))


def _answers(size: str, count: int, answer: int, topology: str) -> Iterator[Row]:
    """Dense and dynamic."""
    for kind, more in (("dense", ("--dense",)), ("dynamic", ())):
        what = f"{size}, {count} of {answer // 1024}K, {kind}"
        shape = ("--mesh=data=1", f"--generate={count},{PROMPT},{answer}", *more)
        yield Row("generation", what, f"dynamic_llava_{size.lower()}.py", topology, shape)


def read(row: Row, folder: Path) -> dict[str, Any] | None:
    file = folder / f"{row.name}.json"
    return json.loads(file.read_text()) if file.exists() else None
