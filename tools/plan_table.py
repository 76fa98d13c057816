"""Makes `docs/plan.md`: which machine a run or an answer fits on, as `dynllava plan` compiles it.

    python tools/plan_table.py               # makes the missing rows, each a JSON file in docs/plan
    python tools/plan_table.py --rows 1      # no more than one of them
    python tools/plan_table.py --write       # makes none, writes the document of those that are there

A row takes minutes. Its file appears only when it is done, so that a stopped run goes on where it was; delete it to
make the row again. Rows without a file are written as "not run". Exit status 1: rows are left.
"""

import argparse
import dataclasses
import json
import math
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from dynllava_jax.planning import table
from dynllava_jax.planning.machine import machine

ROOT = Path(__file__).parent.parent
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


def make(row: Row, folder: Path) -> None:
    """Runs a row and keeps what it reports, or the one line with which it is refused."""
    print(shlex.join(row.words), flush=True)
    unfinished = folder / f"{row.name}.unfinished"
    command = [sys.executable, "-m", "dynllava_jax.cli.main", *row.words[1:], f"--json={unfinished}"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    unfinished.unlink(missing_ok=True)
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1) or not unfinished.exists():
        problem = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        print(f"  status {done.returncode}: {problem}", flush=True)
        if done.returncode != 2:  # killed, or ours to mend: not a row
            return
        reports = []
    else:
        problem = None
        reports = [json.loads(line) for line in unfinished.read_text().splitlines()]
    made = {"command": row.words, "jax": version("jax"), "problem": problem, "reports": reports}
    unfinished.write_text(json.dumps(made, indent=1) + "\n")
    unfinished.rename(folder / f"{row.name}.json")


def read(row: Row, folder: Path) -> dict[str, Any] | None:
    file = folder / f"{row.name}.json"
    return json.loads(file.read_text()) if file.exists() else None


def page(folder: Path) -> str:
    """The whole document."""
    made = {row.name: (row, read(row, folder)) for row in rows()}
    found = [content for _, content in made.values() if content is not None]
    versions = " and ".join(sorted({content["jax"] for content in found})) or "no version yet"
    training = [pair for pair in made.values() if pair[0].part == "training"]
    training.sort(key=lambda pair: int(pair[0].what.removesuffix("B")))
    parts = [
        _HEAD.format(jax=versions, share=f"{len(found)} of {len(made)}"),
        "## Training\n",
        _table(_STEP, [_step(row, content) for row, content in training]),
        "What a run asks of hosts, disks and budget:\n",
        _table(_RUN, [_run(row, content) for row, content in training]),
        "## Answers\n",
        _ANSWERS,
        _table(_ANSWER, list(_pairs(made))),
        "## Commands\n",
        "\n".join(f"    {shlex.join(row.words)}" for row, _ in made.values()) + "\n",
    ]
    return "\n".join(parts)


_HEAD = f"""# What fits where

Made by `python tools/plan_table.py --write` from {{share}} calls of `dynllava plan`, which are listed at the end with
what each answered (`docs/plan/`). Each compiles the real program ahead of time (jax {{jax}}), without the flags of
`launch/xla_flags.sh`; **nothing was run on such a machine**. What no call has answered yet is "not run": the same tool
without `--write` makes it.

GiB are those of one device, of which a program may take 92 %. The least time is a bound, the largest of arithmetic at
the peak, memory traffic and network; hours suppose 40 % of the peak and {SAMPLES} samples, the paper's epoch. 34B and
70B are the shapes of Yi-34B and Llama-2-70B: no such weights were published. Seconds of compiling are wall / CPU
seconds on two cores that had other work at the same time: an idle machine needs about the CPU seconds or less; "–" was
not taken.
"""
_ANSWERS = f"""One picture and {PROMPT} prompt tokens a request, bfloat16, one GPU. "Needs" is the larger of prefill and
decode at the end of the answer. Dynamic holds as much of an answer as it is trained to keep, half; how much really
stays depends on the answers, and "all kept" is what it needs when nothing is dropped.
"""
_STEP = ("model", "machine", "mesh", "samples a device", "needs GiB", "of", "fits", "least time of a step", "set by",
         "GiB sent a step", "compiled in s")  # fmt: skip
_RUN = ("model", "machine", "checkpoint GiB", "GiB of a host while saving", "MB a step and host", "hours of an epoch",
        "chip-hours")  # fmt: skip
_ANSWER = ("model", "requests of answer", "machine", "of GiB", "dense: cache", "needs", "dynamic: cache", "needs",
           "all kept", "fits", "least ms a token, dense / dynamic", "prefill compiled in s", "decode")  # fmt: skip


def _table(head: tuple[str, ...], body: list[list[str]]) -> str:
    lines = [list(head), ["---"] * len(head), *body]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _step(row: Row, content: dict[str, Any] | None) -> list[str]:
    start, columns = [row.what, row.topology], len(_STEP) - 2
    if (report := _only(content)) is None:
        return _without(start, columns, content)
    parts = math.prod(size for axis, size in report["mesh"].items() if axis != "tensor")
    start += [table.spell(report["mesh"]), f"{report['global_batch'] / parts:g}"]
    if "bytes_per_device" not in report:
        return _without(start, columns - 2, {"problem": report["problem"]})
    size, times = report["bytes_per_device"], report["roofline"]
    sent = sum(each["sent"] for each in report["collectives"])
    return [*start, _gib(size["total"]), _gib(size["limit"]), _fits(report["fits"]), f"{times['seconds']:.2f} s",
            times["bound"], _gib(sent), _compiled(report)]  # fmt: skip


def _run(row: Row, content: dict[str, Any] | None) -> list[str]:
    start = [row.what, row.topology]
    if (report := _only(content)) is None:
        return _without(start, len(_RUN) - 2, content)
    cost = report["cost"]
    read_each_step = f"{report['host_bytes_per_step'] / 1e6:.0f}"
    saved = [_gib(report["checkpoint_bytes"]), _gib(report["host_bytes_while_saving"])]
    return [*start, *saved, read_each_step, f"{cost['hours']:.1f}", f"{cost['chip_hours']:.0f}"]


def _pairs(made: dict[str, tuple[Row, dict[str, Any] | None]]) -> Iterator[list[str]]:
    """A line for the dense and the dynamic row of a shape."""
    for row, dense in made.values():
        if not row.what.endswith(", dense"):
            continue
        what = row.what.removesuffix(", dense")
        _, dynamic = made[dataclasses.replace(row, what=f"{what}, dynamic").name]
        start = [*what.split(", "), row.topology]
        if dense is None and dynamic is None:
            yield _without(start, len(_ANSWER) - 3, None)
            continue
        limit = machine(row.topology).limit
        ours, theirs = _answer(dynamic), _answer(dense)
        both = ours.get("fits"), theirs.get("fits")
        fits = {(True, True): "both", (True, False): "**dynamic only**", (False, False): "neither"}.get(both, "not run")
        held = [theirs["cache"], theirs["needs"], ours["cache"], ours["needs"], ours["all"]]
        seconds = [f"{theirs[program]}; {ours[program]}" for program in ("prefill", "decode")]
        token = f"{theirs['token']} / {ours['token']}"
        yield [*start, _gib(limit), *held, fits, token, *seconds]


def _answer(content: dict[str, Any] | None) -> dict[str, Any]:
    reports = {report["program"]: report for report in (content or {}).get("reports", ())}
    cells: dict[str, Any] = dict.fromkeys(("cache", "needs", "all", "token", "prefill", "decode"), "not run")
    if not reports:
        return cells
    usual = [reports["prefill"], reports["decode"]]
    cells["fits"] = all(report["fits"] for report in usual)
    for report in usual:
        cells[report["program"]] = _compiled(report)
    most = [_total(report) for report in usual]
    cells["needs"] = "too much" if None in most else _gib(max(size or 0 for size in most))
    cells["cache"] = _gib(held["cache"]) if (held := reports["decode"].get("state_per_device")) else "–"
    cells["token"] = f"{1000 * reports['decode']['roofline']['seconds']:.1f}" if most[1] else "–"
    whole = reports.get("decode_all_kept", reports["decode"])
    size = _total(whole)
    cells["all"] = "too much" if size is None else f"{_gib(size)}{'' if whole['fits'] else ' (too much)'}"
    return cells


def _total(report: dict[str, Any]) -> int | None:
    return report["bytes_per_device"]["total"] if "bytes_per_device" in report else None


def _only(content: dict[str, Any] | None) -> dict[str, Any] | None:
    return content["reports"][0] if content and content["reports"] else None


def _without(start: list[str], columns: int, content: dict[str, Any] | None) -> list[str]:
    """A line that holds no figures, and why."""
    return [*start, content["problem"] if content else "not run", *[""] * (columns - 1)]


def _compiled(report: dict[str, Any]) -> str:
    if "compile_seconds" not in report:
        return "–"
    cpu = report.get("compile_cpu_seconds")
    return f"{report['compile_seconds']:.0f} / {'–' if cpu is None else f'{cpu:.0f}'}"


def _fits(value: bool) -> str:
    return "yes" if value else "**no**"


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, default=ROOT / "docs" / "plan", help="of the rows (docs/plan)")
    parser.add_argument("--rows", type=int, help="make at most so many (all)")
    parser.add_argument("--write", action="store_true", help="write docs/plan.md")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    asked = {row.name: row for row in rows()}.values()
    if args.write:
        (ROOT / "docs" / "plan.md").write_text(page(args.folder), encoding="utf-8")
        return 0
    missing = [row for row in asked if read(row, args.folder) is None]
    for row in missing[: args.rows]:
        make(row, args.folder)
    return 1 if any(read(row, args.folder) is None for row in missing) else 0


if __name__ == "__main__":
    sys.exit(main())
