"""`dynllava data`: training data made ready, and looked over before any training."""

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from dynllava_jax.cli.output import add_json, check_name, write_json
from dynllava_jax.errors import InputError
from dynllava_jax.progress import Progress

_SHOWN = 5
"""Ids that the text shows of each kind; --json has all."""


def add_parser(subparsers: Any) -> None:
    """Adds `data pack` and `data check`; the parsed namespace's `run` does the work."""
    parser = subparsers.add_parser("data", help="pack training data into shards, or check it")
    kinds = parser.add_subparsers(dest="kind", required=True)
    command = kinds.add_parser(
        "pack",
        help="conversations and pictures become a folder of shards",
        description="Writes all good samples of SRC into DST, a folder or a gs:// address. Stopped at any moment, the "
        "same command goes on where it was. Bad samples are left out, counted and named.",
    )
    _add_source(command)
    command.add_argument("dst", metavar="DST", help="where the shards go: a new folder, or one to be finished")
    command.add_argument(
        "--short-side",
        type=_whole(1),
        metavar="N",
        help="shrink larger pictures to this short side, as JPEG of quality 95, so that pixels change a little; the "
        "tower's image size is enough for it (default: pictures stay as they are)",
    )
    command.add_argument("--shard-mib", type=_whole(1), default=256, metavar="N", help="size of a shard (256)")
    command.set_defaults(run=run_pack)
    command = kinds.add_parser(
        "check",
        help="walk over a whole data set and report what is in it",
        description="Exit status 0: every sample can be used; 1: some cannot; 2: bad input.",
    )
    _add_source(command)
    command.add_argument(
        "--model", metavar="NAME_OR_DIR", help="also check token ids, labels and lengths, as this model reads them"
    )
    command.add_argument("--conv-template", metavar="T", help="conversation template (the model's own)")
    command.add_argument("--max-length", type=_whole(1), metavar="N", help="tokens of a sample at most (2048)")
    command.add_argument("--no-pictures", action="store_true", help="do not open the pictures")
    command.set_defaults(run=run_check)


def run_pack(args: argparse.Namespace) -> int:
    """Returns the exit status; bad input is raised as InputError."""
    from dynllava_jax.data.pack import describe, pack
    from dynllava_jax.data.source import open_source

    check_name("DST", args.dst)
    source = open_source(args.src, args.images, args.adapter)
    with Progress("packing", "sample") as progress:
        made = pack(
            source,  # pyright: ignore[reportArgumentType] # every source of open_source gives its pictures as files
            args.dst,
            short_side=args.short_side,
            shard_bytes=args.shard_mib * 2**20,
            workers=args.workers,
            on_start=progress.start,
            on_sample=progress.advance,
        )
    size = sum(shard.bytes for shard in made.shards)
    out = sys.stderr if args.json == "-" else sys.stdout
    print(
        f"{args.dst}: {made.samples} samples with {made.pictures} pictures in {len(made.shards)} shards, "
        f"{size / 1e9:.2f} GB",
        file=out,
    )
    if made.bad:
        print(f"  left out {made.bad} of {made.read}: {describe(made)}", file=out)
    if args.json is not None:
        facts = {"samples": made.samples, "pictures": made.pictures, "shards": len(made.shards), "bytes": size}
        write_json(args.json, [facts | {"left_out": made.left_out, "fingerprint": made.fingerprint}])
    return 0


def run_check(args: argparse.Namespace) -> int:
    """Returns the exit status; bad input is raised as InputError."""
    from dynllava_jax.data.report import check
    from dynllava_jax.data.source import open_source

    source, preparation = open_source(args.src, args.images, args.adapter), _preparation(args)
    with Progress("checking", "sample") as progress:
        progress.start(len(source), 0)
        report = check(
            source,
            preparation,
            pictures=not args.no_pictures,
            workers=args.workers,
            on_sample=progress.advance,
        )
    if args.json != "-":
        print("\n".join(_lines(args, report)))
    if args.json is not None:
        write_json(args.json, [report.as_json()])
    return 0 if report.ok else 1


def _add_source(command: argparse.ArgumentParser) -> None:
    command.add_argument("src", metavar="SRC", help="LLaVA JSON or JSONL file, folder of shards, or tfds:NAME[:SPLIT]")
    command.add_argument("--images", metavar="DIR", help="folder that image paths are relative to (that of SRC)")
    command.add_argument("--adapter", metavar="P:F", help="package:function from a TFDS example to a LLaVA sample")
    command.add_argument("--workers", type=_whole(0), default=4, metavar="N", help="processes; 0 does without (4)")
    add_json(command)


def _whole(least: int) -> Callable[[str], int]:
    def read(word: str) -> int:
        try:
            number = int(word)  # as argparse's own type=int reads it: +2 is 2
        except ValueError:
            number = least - 1
        if number < least:
            raise argparse.ArgumentTypeError(f"{word!r} is no whole number from {least} on")
        return number

    return read


def _preparation(args: argparse.Namespace) -> Any:
    """How the model reads samples; None without one."""
    if args.model is None:
        for name in ("conv_template", "max_length"):
            if getattr(args, name) is not None:
                raise InputError(f"--{name.replace('_', '-')} has no effect without --model.")
        return None
    from dynllava_jax.checkpoint.source import open_source
    from dynllava_jax.config.data import DataConfig
    from dynllava_jax.data.preparation import Preparation
    from dynllava_jax.data.templates import get_template
    from dynllava_jax.data.tokenizer import Tokenizer
    from dynllava_jax.demo import embedded

    model = open_source(embedded.CHECKPOINT if args.model == "demo" else args.model)
    config, tokenizer = model.config, Tokenizer.load(model.files)
    return Preparation(
        tokenizer=tokenizer,
        template=get_template(args.conv_template or config.text_prep.template),
        image_tokens=config.image_tokens,
        image=config.image_prep,
        max_length=args.max_length or DataConfig().max_length,
        truncate=True,
    )


def _lines(args: argparse.Namespace, report: Any) -> Iterator[str]:
    yield f"{args.src}: {report.samples} samples, {report.with_image} with an image, {report.without_image} without"
    for reason, found in report.bad.items():
        yield f"  bad: {len(found)} {reason}: {_some(f'{id} ({detail})' if detail else id for id, detail in found)}"
    for shard in report.damaged:
        yield f"  bad: shard {shard} is not what was packed; copy it again"
    if report.left_out:
        left = sum(map(len, report.left_out.values()))
        yield f"  {left} more were bad when the shards were packed ({', '.join(report.left_out)})"
    if report.repeated:
        yield f"  {len(report.repeated)} ids stand more than once: {_some(report.repeated)}"
    if report.lengths is None:
        yield "  token ids, labels and lengths were not checked; --model NAME_OR_DIR does that"
    else:
        yield f"  {len(report.cut)} are longer than --max-length and are cut; the longest has {report.longest} tokens"
        most = max(report.lengths.values()) or 1
        for edge, count in report.lengths.items():
            if count:
                label = f"≤ {edge}" if edge != "more" else "more"
                yield f"  {label:>7} tokens {count:>8} {'▇' * -(-40 * count // most)}"
    if args.no_pictures:
        yield "  pictures were not opened"
    if report.bad or report.ok:
        yield f"{report.bad_count} samples cannot be used" if report.bad else "every sample can be used"
    else:
        yield f"{len(report.damaged)} shards are not what was packed"


def _some(words: Iterable[Any]) -> str:
    words = list(map(str, words))
    return ", ".join(words[:_SHOWN]) + (f" and {len(words) - _SHOWN} more" if len(words) > _SHOWN else "")
