"""Reports of `planning.plan` for people: a table of lines, and a picture of memory by mesh."""

from collections.abc import Iterator, Sequence
from xml.sax.saxutils import escape

from dynllava_jax.planning.plan import Report

_GIB = 2**30
_BAR, _ROW, _LEFT, _TOP = 420, 26, 250, 34
_COLOURS = {"arguments": "#4c78a8", "activations": "#e45756", "other temporaries": "#f58518", "output": "#54a24b"}


def lines(report: Report) -> Iterator[str]:
    """One report."""
    yield f"{report['program']} on {report['topology']}: mesh {spell(report['mesh'])}{_batch(report)}"
    if "problem" in report:
        yield f"  does not fit: {report['problem']}"
    if "bytes_per_device" in report:
        size = report["bytes_per_device"]
        verdict = "fits" if report["fits"] else "does not fit"
        parts = ", ".join(f"{name} {gib(size[name])}" for name in ("arguments", "temporaries", "output"))
        yield f"  memory     {gib(size['total'])} of {gib(size['limit'])} GiB a device: {verdict} ({parts})"
    if "state_per_device" in report:
        held = ", ".join(f"{name} {gib(size)}" for name, size in report["state_per_device"].items())
        yield f"  of which   {held} GiB"
    if "activations_per_device" in report:
        kept = gib(report["activations_per_device"])
        yield f"             activations kept for the backward pass up to {kept} GiB, among the temporaries"
    if "flops_by_convention" in report:
        exact, paper = (report["flops_by_convention"][name] / 1e12 for name in ("exact", "eq13"))
        passes = ", taken three times for a step" if report["program"] == "step" else ""
        yield f"  FLOPs      {exact:.4g} TFLOP exact (every matrix product), {paper:.4g} TFLOP by the paper's eq. 13"
        yield f"             (the decoder's layers{passes})"
    if "roofline" in report:
        times = report["roofline"]
        parts = ", ".join(f"{name} {_seconds(times[name])}" for name in ("compute", "memory", "network"))
        yield f"  at least   {_seconds(times['seconds'])}, set by {times['bound']} ({parts})"
    for each in report.get("collectives", ()):
        across = f", {gib(each['across_hosts'])} across hosts" if each["across_hosts"] else ""
        yield f"  {each['kind']:<20} {each['count']} times, {gib(each['sent'])} GiB sent by each device{across}"
    if "checkpoint_bytes" in report:
        saving = gib(report["host_bytes_while_saving"])
        yield f"  checkpoint {gib(report['checkpoint_bytes'])} GiB; a host holds {saving} GiB more while it is saved"
        yield f"  data       {report['host_bytes_per_step'] / 1e6:.0f} MB a step and host, decoded{_rates(report)}"
    if "cost" in report:
        cost = report["cost"]
        yield (
            f"  an epoch   of {cost['samples']} samples: {cost['steps']} steps, {cost['hours']:.1f} hours, "
            f"{cost['chip_hours']:.0f} chip-hours at {cost['mfu']:.0%} MFU (supposed)"
        )
        if cost.get("least_hours", 0.0) > cost["hours"]:
            yield f"             which no run reaches: it takes {cost['least_hours']:.1f} hours at least"
    yield f"  compiled in {report['compile_seconds']} s" if "compile_seconds" in report else ""


def ranking(reports: Sequence[Report]) -> Iterator[str]:
    """Reports of a sweep, a line each."""
    yield f"{'mesh':<28}{'remat':<8}{'GiB':>8}  {'at least':>10}  set by"
    for report in reports:
        mesh = spell(report["mesh"])
        total = gib(report["bytes_per_device"]["total"]) if "bytes_per_device" in report else "-"
        times = report.get("roofline")
        bound = f"{_seconds(times['seconds']):>10}  {times['bound']}" if times else f"{'-':>10}"
        note = "" if report["fits"] else "  does not fit"
        note += f": {report['problem']}" if "problem" in report else ""
        note += "  off-recipe batch" if report.get("off_recipe") else ""
        yield f"{mesh:<28}{report['remat']:<8}{total:>8}  {bound}{note}"


def picture(reports: Sequence[Report]) -> str:
    """Memory of a device by mesh and remat policy, as SVG; the line is the limit."""
    drawn = [report for report in reports if "bytes_per_device" in report]
    limit = max((report["bytes_per_device"]["limit"] for report in drawn), default=1)
    scale = _BAR / max([limit, *(report["bytes_per_device"]["total"] for report in drawn)])
    height = _TOP + _ROW * len(drawn) + 20
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_LEFT + _BAR + 90}" height="{height}" '
        'font-family="sans-serif" font-size="12">'
    ]
    for number, (name, colour) in enumerate(_COLOURS.items()):
        x = _LEFT + 110 * number
        parts.append(
            f'<rect x="{x}" y="8" width="12" height="12" fill="{colour}"/><text x="{x + 17}" y="18">{name}</text>'
        )
    for row, report in enumerate(drawn):
        y, x = _TOP + _ROW * row, float(_LEFT)
        label = escape(f"{spell(report['mesh'])}  {report.get('remat', report['program'])}")
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 14}" text-anchor="end">{label}</text>')
        for name, size in _parts(report).items():
            width = size * scale
            parts.append(f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="18" fill="{_COLOURS[name]}"/>')
            x += width
        parts.append(f'<text x="{x + 6:.1f}" y="{y + 14}">{gib(report["bytes_per_device"]["total"])} GiB</text>')
    edge = _LEFT + limit * scale
    parts.append(f'<path d="M{edge:.1f} {_TOP - 6}V{height - 12}" stroke="#c00"/></svg>')
    return "\n".join(parts) + "\n"


def _parts(report: Report) -> dict[str, int]:
    """Bytes of a device, as they are drawn beside each other."""
    size = report["bytes_per_device"]
    kept = min(report.get("activations_per_device", 0), size["temporaries"])
    rest = size["temporaries"] - kept
    return {"arguments": size["arguments"], "activations": kept, "other temporaries": rest, "output": size["output"]}


def _batch(report: Report) -> str:
    if "global_batch" not in report:
        return ""
    aside = f" (off-recipe: the recipe has {report['recipe_global_batch']})" if report.get("off_recipe") else ""
    return f", {report['global_batch']} samples{aside} of {report['sequence_length']} tokens"


def _rates(report: Report) -> str:
    """What a host has to have ready in a second."""
    if (rates := report.get("host_bytes_per_second")) is None:
        return ""
    least = f"{rates['at_roofline'] / 1e6:.0f} MB/s at the least time, " if "at_roofline" in rates else ""
    return f": {least}{rates['at_mfu'] / 1e6:.0f} MB/s at {rates['mfu']:.0%} MFU (supposed)"


def spell(mesh: object) -> str:
    """A mesh without the axes of size 1."""
    if not isinstance(mesh, dict):
        return str(mesh)
    return ",".join(f"{axis}={size}" for axis, size in mesh.items() if size > 1) or "one device"


def gib(size: int) -> str:
    return f"{size / _GIB:.2f}"


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{1000 * value:.2f} ms"
