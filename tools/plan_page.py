"""The document that the rows of `plan_rows` make: what fits where."""

import dataclasses
import math
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dynllava_jax.config.presets import get_preset
from dynllava_jax.config.training import OptimizerConfig, TrainConfig
from dynllava_jax.planning import table
from dynllava_jax.planning.machine import machine
from dynllava_jax.planning.operations import step_operations
from tools.plan_rows import PROMPT, SAMPLES, Row, read, rows

BATCH = TrainConfig().global_batch_size
"""Of the paper's recipe, which `TrainConfig` has as defaults."""
COMPILING = 180
"""Seconds of two idle cores that no program should take to compile."""


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
        _STATE,
        _table(_RUN, [_run(row, content) for row, content in training]),
        "## Answers\n",
        _ANSWERS,
        _table(_ANSWER, list(_pairs(made))),
        "## Compiling\n",
        _compiling(made),
        "## Commands\n",
        "\n".join(f"    {shlex.join(row.words)}" for row, _ in made.values()) + "\n",
    ]
    return "\n".join(parts)


_HEAD = f"""# What fits where

Made by `python tools/plan_table.py --write` from {{share}} calls of `dynllava plan`, which are listed at the end with
what each answered (`docs/plan/`). Each compiles the real program ahead of time (jax {{jax}}), without the flags of
`launch/xla_flags.sh`; **nothing was run on such a machine**. What no call has answered yet is "not run": the same tool
without `--write` makes it.

GiB are those of one device, of which a program may take 92 %: as much as `dynllava` lets JAX take of a GPU, unless
XLA_CLIENT_MEM_FRACTION says otherwise. An A100's memory is the data sheet's, of which CUDA gives about a hundredth
less. The least time is a bound, the largest of arithmetic at the peak, memory traffic and network; hours suppose 40 %
of the peak and {SAMPLES} samples, the paper's epoch. 34B and 70B are the shapes of Yi-34B and Llama-2-70B: no such
weights were published. Seconds of compiling are wall / CPU seconds on two cores that had other work at the same time:
an idle machine needs about the CPU seconds or less; "–" was not taken.

The batch of a step is the recipe's, {BATCH} samples over all devices, unless its row says off-recipe.
"""
_STATE = """Parameters, moments and temporaries are parts of "needs". Activations kept for the backward pass are among
the temporaries: up to what stands in brackets, where a row tells.

What a run asks of hosts, disks and budget. PFLOP of a step are exact (every matrix product, as MFU has it) and by the
paper's equation 13 (the decoder's layers, three forward passes: it does not define training). What a host has to have
ready is counted decoded, float32 pixels and ids: its share of a step, and of a second at the step's least time and at
40 % of the peak; from disk come the pictures' compressed files, whose size a plan does not know. Where 40 % takes fewer
hours than the least time does, no run reaches it.
"""
_ANSWERS = f"""One picture and {PROMPT} prompt tokens a request, bfloat16, one GPU. "Needs" is the larger of prefill and
decode at the end of the answer. Dense is a model without predictors, as LLaVA is; `dynllava generate --dense` of one
that has them holds theirs too, 0.03 GiB at most. Dynamic holds as much of an answer as it is trained to keep, half; how
much really stays depends on the answers, and "all kept" is what it needs when nothing is dropped. The least time of a
token is that of reading the weights and what the caches hold at the end of the answer, once.
"""
_BOUND = f"""The bound for each program is {COMPILING // 60} minutes on two idle cores. These had other work at the same
time, so that a program keeps it whose wall seconds or CPU seconds do:
"""
_STEP = ("model", "machine", "mesh", "samples a device", "needs GiB", "of", "fits",
         "parameters / moments / temporaries", "least time of a step", "set by", "GiB sent a step",
         "compiled in s")  # fmt: skip
_RUN = ("model", "machine", "PFLOP a step, exact / eq. 13", "checkpoint GiB", "GiB of a host while saving",
        "MB a step and host", "MB/s, least time / 40 %", "hours of an epoch, least time / 40 %",
        "chip-hours at 40 %")  # fmt: skip
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
    off = "" if (batch := report["global_batch"]) == BATCH else f" (off-recipe: batch {batch})"
    start += [table.spell(report["mesh"]), f"{batch / parts:g}{off}"]
    if "bytes_per_device" not in report:
        return _without(start, columns - 2, {"problem": report["problem"]})
    size, times = report["bytes_per_device"], report["roofline"]
    sent = sum(each["sent"] for each in report["collectives"])
    return [*start, _gib(size["total"]), _gib(size["limit"]), _fits(report["fits"]), _parts(report),
            f"{times['seconds']:.2f} s", times["bound"], _gib(sent), _compiled(report)]  # fmt: skip


def _parts(report: dict[str, Any]) -> str:
    """What the memory of a step goes to."""
    held, kept = report["state_per_device"], report.get("activations_per_device")
    sizes = held["parameters"], held["moments"], report["bytes_per_device"]["temporaries"]
    return " / ".join(map(_gib, sizes)) + ("" if kept is None else f" ({_gib(kept)})")


def _run(row: Row, content: dict[str, Any] | None) -> list[str]:
    start = [row.what, row.topology]
    if (report := _only(content)) is None:
        return _without(start, len(_RUN) - 2, content)
    cost, data = report["cost"], report["host_bytes_per_step"] / 1e6
    preset = get_preset(f"dynamic_llava_{row.what.lower()}")
    shape = {"rows": report["global_batch"], "length": report["sequence_length"], "images": 1}
    operations = report["flops_per_step"], step_operations(preset, OptimizerConfig(), **shape).eq13
    least = report["roofline"]["seconds"] * cost["steps"] / 3600 if "roofline" in report else None
    hours = [least, cost["hours"]]
    rates = [each and data * cost["steps"] / (3600 * each) for each in hours]
    return [
        *start,
        " / ".join(f"{each / 1e15:.2f}" for each in operations),
        _gib(report["checkpoint_bytes"]),
        _gib(report["host_bytes_while_saving"]),
        f"{data:.0f}",
        " / ".join("–" if each is None else f"{each:.0f}" for each in rates),
        " / ".join("–" if each is None else f"{each:.1f}" for each in hours),
        f"{cost['chip_hours']:.0f}",
    ]


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
        both = (ours.get("fits"), theirs.get("fits"))
        words: dict[Any, str] = {(True, True): "both", (True, False): "**dynamic only**", (False, False): "neither"}
        fits = words.get(both, "not run")
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


def _compiling(made: dict[str, tuple[Row, dict[str, Any] | None]]) -> str:
    """Which programs keep the bound on two idle cores, as far as seconds of busy ones can tell."""
    count, slow = 0, []
    for row, content in made.values():
        for report in (content or {}).get("reports", ()):
            if "compile_seconds" in report:
                count += 1
                seconds = report["compile_seconds"]
                if min(seconds, report.get("compile_cpu_seconds", seconds)) > COMPILING:
                    slow.append(f"{row.what} on {row.topology}, {report['program']} ({_compiled(report)})")
    found = f"{count - len(slow)} of {count} programs keep it" + (f"; above it: {'; '.join(slow)}" if slow else "")
    return _BOUND + found + ".\n"


def _fits(value: bool) -> str:
    return "yes" if value else "**no**"


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f}"
