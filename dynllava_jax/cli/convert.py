"""`dynllava convert`: model checkpoints out of PyTorch weights and out of training runs."""

import argparse
import dataclasses
from typing import Any

from dynllava_jax.checkpoint.load import ShardingRule
from dynllava_jax.cli import verify_logits
from dynllava_jax.cli.local_path import local_path
from dynllava_jax.cli.output import add_json, check_name, write_json
from dynllava_jax.config.check import DTYPES
from dynllava_jax.config.presets import get_preset
from dynllava_jax.convert import export_plan, from_torch, merge, random_weights, to_torch
from dynllava_jax.progress import Progress
from dynllava_jax.sharding.mesh import make_mesh
from dynllava_jax.sharding.specs import param_shardings


def add_parser(subparsers: Any) -> None:
    """Adds `convert from-torch`, `to-torch`, `merge` and `make-random`; the parsed namespace's `run` does the work."""
    parser = subparsers.add_parser("convert", help="bring PyTorch weights in, or make a model of a training run")
    kinds = parser.add_subparsers(dest="kind", required=True)
    command = kinds.add_parser("from-torch", help="a PyTorch LLaVA or Dynamic-LLaVA folder becomes a model checkpoint")
    command.add_argument("src", metavar="SRC", help="folder (or gs://) with config.json and weights, or a hub name")
    command.add_argument("dst", metavar="DST", help="where the checkpoint goes (or gs://); must not exist yet")
    command.add_argument("--base", metavar="DIR", help="what LoRA adapters or a projector alone in SRC belong to")
    command.add_argument("--vision-tower", metavar="DIR", help="CLIP folder or hub name, where SRC lacks its tower")
    command.add_argument(
        "--prefer-tower", choices=("given", "inside"), help="which to take when --vision-tower and SRC's own differ"
    )
    command.add_argument("--dtype", choices=DTYPES, help="default: as stored")
    command.add_argument("--conv-template", default="vicuna_v1", metavar="T", help="conversation template (vicuna_v1)")
    command.add_argument(
        "--no-predictors", action="store_true", help="keep a base LLaVA dense instead of adding untrained predictors"
    )
    command.add_argument(
        "--mesh",
        metavar="AXES",
        help="write in the pieces of this mesh, such as data=1,fsdp=8: no device holds more than its shards of a layer",
    )
    verify_logits.add_options(command)
    add_json(command)
    command.set_defaults(run=run_from_torch)

    command = kinds.add_parser("to-torch", help="a model checkpoint or a training run becomes a PyTorch folder")
    command.add_argument("src", metavar="SRC", help="a model checkpoint, a work folder, or WORKDIR/checkpoints/N")
    command.add_argument("dst", metavar="DST", help="where the folder goes (or gs://); must not exist yet")
    command.add_argument(
        "--layout",
        choices=export_plan.FAMILIES,
        required=True,
        help="official: LLaVA's and Dynamic-LLaVA's own code; hf: transformers' LlavaForConditionalGeneration, dense",
    )
    command.add_argument("--dtype", choices=DTYPES, help="default: as stored")
    command.add_argument("--without-predictors", action="store_true", help="write the dense model only")
    command.add_argument(
        "--vision-tower", metavar="DIR", help="for --verify-logits, where mm_vision_tower names no folder here"
    )
    verify_logits.add_options(command)
    add_json(command)
    command.set_defaults(run=run_to_torch)

    command = kinds.add_parser("merge", help="a training run becomes a model checkpoint, LoRA adapters merged")
    command.add_argument("src", metavar="WORKDIR", help="work folder (its newest checkpoint), or WORKDIR/checkpoints/N")
    command.add_argument("dst", metavar="DST", help="where the checkpoint goes (or gs://); must not exist yet")
    command.add_argument("--dtype", choices=DTYPES, help="default: as stored, float32 for what was trained")
    add_json(command)
    command.set_defaults(run=run_merge)

    command = kinds.add_parser("make-random", help="a PyTorch folder of a preset's shapes with random weights")
    command.add_argument("dst", type=local_path, metavar="DST", help="where the folder goes; must not exist yet")
    command.add_argument("--preset", required=True, metavar="NAME", help="such as llava_1_5_7b or tiny")
    command.add_argument("--layout", choices=export_plan.FAMILIES, default="official", help="see to-torch (official)")
    command.add_argument("--dtype", choices=DTYPES, default="float16", help="of all weights (float16)")
    command.add_argument("--seed", type=int, default=0, metavar="S")
    command.add_argument("--layers", type=int, metavar="N", help="only so many decoder layers (default: the preset's)")
    add_json(command)
    command.set_defaults(run=run_make_random)


def run_from_torch(args: argparse.Namespace) -> int:
    """Returns the exit status; bad input is raised as InputError."""
    check_name("DST", args.dst)
    sharding = None if args.mesh is None else _sharding(args.mesh)
    verify_logits.prepare(args)
    with Progress("converting", "B", scaled=True) as progress:
        report = from_torch.convert(
            args.src,
            args.dst,
            vision_tower=args.vision_tower,
            prefer_tower=args.prefer_tower,
            dtype=args.dtype,
            template=args.conv_template,
            predictors=not args.no_predictors,
            base=args.base,
            sharding=sharding,
            on_start=progress.start,
            on_item=progress.advance,
        )
    logits = verify_logits.run(args, args.src, args.dst) if args.verify_logits else None
    return _tell(args, report, _from_torch_text(report), logits)


def _sharding(spec: str) -> ShardingRule:
    mesh = make_mesh(spec)
    return lambda model: param_shardings(model, mesh, model.config)


def run_to_torch(args: argparse.Namespace) -> int:
    """Returns the exit status; bad input is raised as InputError."""
    verify_logits.prepare(args)
    with Progress("exporting", "B", scaled=True) as progress:
        report = to_torch.export(
            args.src,
            args.dst,
            layout=args.layout,
            dtype=args.dtype,
            without_predictors=args.without_predictors,
            on_start=progress.start,
            on_tensor=progress.advance,
        )
    logits = verify_logits.run(args, args.dst, args.src) if args.verify_logits else None
    return _tell(args, report, _to_torch_text(report), logits)


def run_make_random(args: argparse.Namespace) -> int:
    """Returns the exit status; bad input is raised as InputError."""
    config = get_preset(args.preset)
    if args.layers is not None:
        config = dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, num_layers=args.layers))
    with Progress("writing", "B", scaled=True) as progress:
        report = random_weights.make_random(
            config,
            args.dst,
            layout=args.layout,
            dtype=args.dtype,
            seed=args.seed,
            on_start=progress.start,
            on_tensor=progress.advance,
        )
    return _tell(
        args, report, f"{report.dst}: {report.nbytes / 1e9:.2f} GB in {report.seconds:.1f} s of random weights"
    )


def run_merge(args: argparse.Namespace) -> int:
    """Returns the exit status; bad input is raised as InputError."""
    check_name("DST", args.dst)
    with Progress("merging", " values", scaled=True) as progress:
        report = merge.merge(args.src, args.dst, dtype=args.dtype, on_start=progress.start, on_part=progress.advance)
    return _tell(args, report, _merge_text(report))


def _tell(args: argparse.Namespace, report: Any, text: str, logits: verify_logits.Outcome | None = None) -> int:
    """Returns the exit status: 1 where logits were compared and are too far apart."""
    if args.json is None:
        print(text if logits is None else f"{text}\n  {logits}")
    else:
        more = {} if logits is None else {"logits": {**dataclasses.asdict(logits), "ok": logits.ok}}
        write_json(args.json, [{**dataclasses.asdict(report), **more}])
    return 0 if logits is None or logits.ok else 1


def _from_torch_text(report: from_torch.Report) -> str:
    dtypes = ", ".join(f"{count} {name}" for name, count in sorted(report.dtypes.items()))
    lines = [
        f"{report.dst}: {report.nbytes / 1e9:.2f} GB in {report.seconds:.1f} s from a checkpoint of the "
        f"{report.layout} layout",
        f"  {report.tensors} tensors used, {report.carried} carried for export, {report.dropped} left out ({dtypes})",
        *(f"  note: {note}" for note in report.notes),
    ]
    return "\n".join(lines)


def _to_torch_text(report: to_torch.Report) -> str:
    lines = [
        f"{report.dst}: {report.nbytes / 1e9:.2f} GB in {report.seconds:.1f} s in the {report.layout} layout",
        f"  {report.tensors} tensors written, {report.left_out} left out",
        *(f"  note: {note}" for note in report.notes),
    ]
    return "\n".join(lines)


def _merge_text(report: merge.Report) -> str:
    adapters = f", adapters of {report.adapters} kernels merged" if report.adapters else ""
    return (
        f"{report.dst}: {report.nbytes / 1e9:.2f} GB in {report.seconds:.1f} s from step {report.step} of a training "
        f"run ({report.src})\n  {report.leaves} tensors, {report.carried} carried for export{adapters}"
    )
