"""`dynllava bench train`: one training step and its share of what the devices could do, by data sheet and measured."""

import argparse
import dataclasses
from collections.abc import Iterator
from typing import Any

from dynllava_jax.cli.bench_records import add_round, check_round, enough_memory, measured_machine, memory, tell
from dynllava_jax.cli.output import add_json


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "train",
        help="one training step",
        description="Times the optimizer step of a recipe on random weights and full rows.",
    )
    parser.add_argument("--config", metavar="FILE", help="a file of configs/, or your own (the 7B recipe)")
    parser.add_argument("--preset", metavar="P", help="the model (the config's)")
    parser.add_argument("--batch", type=int, metavar="N", help="samples of a step, over all devices (the config's)")
    parser.add_argument("--length", type=int, default=2048, metavar="N", help="tokens of a sample (2048)")
    parser.add_argument("--images", type=int, default=1, metavar="N", help="pictures of a sample (1)")
    parser.add_argument("--steps", type=int, default=5, metavar="N", help="that are timed (5)")
    parser.add_argument("--mesh", metavar="AXES", help="such as fsdp=8 (the config's)")
    parser.add_argument("--remat", choices=("full", "dots", "none"), help="(the config's)")
    parser.add_argument("--attention", metavar="NAME", help="implementation (the config's)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="of the computation (the config's)")
    parser.add_argument("--lora", type=int, metavar="RANK", help="train adapters, the decoder's weights stand (no)")
    add_round(parser, "measuring the machine")
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    check_round(args.round)
    tell(args.json, _measure(args), line)
    return 0


def _measure(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    from dynllava_jax.benchmark.attention import check_names
    from dynllava_jax.benchmark.step import StepShape, bench_step, check_steps
    from dynllava_jax.config.experiment import read_experiment
    from dynllava_jax.config.training import LoraConfig, TrainConfig
    from dynllava_jax.sharding.mesh import make_mesh
    from dynllava_jax.training.setup import preset_model

    config = TrainConfig() if args.config is None else read_experiment(args.config)
    given = {
        "model": args.preset,
        "global_batch_size": args.batch,
        "mesh": args.mesh,
        "remat": args.remat,
        "attention": args.attention,
        "dtype": args.dtype,
    }
    if args.lora is not None:
        given["optimizer"] = dataclasses.replace(config.optimizer, lora=LoraConfig(rank=args.lora))
    config = dataclasses.replace(config, **{key: value for key, value in given.items() if value is not None})
    model, shape = preset_model(config), StepShape(args.length, args.images)
    # What does not fit is said before the machine is measured.
    shape.text(model)
    check_steps(args.steps)
    check_names([] if config.attention is None else [config.attention])
    make_mesh(config.mesh)
    machine = measured_machine(config.dtype, args.round)
    about = {"model": config.model, "dtype": config.dtype, "remat": config.remat, "mesh": config.mesh}
    about["attention"] = config.attention
    about["lora"] = None if config.optimizer.lora is None else config.optimizer.lora.rank
    with enough_memory("--batch, --length or --preset, or remat=full, or spread it by --mesh"):
        record = bench_step(model, config, shape, machine, steps=args.steps)
    yield about | record | machine.record()


def line(record: dict[str, Any]) -> str:
    """One record as it is printed."""
    sheet = "data sheet unknown"
    if record["mfu"] is not None:
        sheet = f"MFU {record['mfu']:.1%} of the data sheet's {record['data_sheet_tflops']:.0f} TFLOP/s"
    lora = "" if record["lora"] is None else f", adapters of rank {record['lora']}"
    return (
        f"{record['model']}{lora}: {record['batch']} samples of {record['length']} tokens on {record['devices']} "
        f"device(s) in {record['step_seconds']:.3f} s; {record['tokens_per_second']:.0f} tokens/s, "
        f"{record['tflops_per_device']:.2f} TFLOP/s a device: {sheet}, {record['share_of_matmul']:.1%} of the "
        f"{record['matmul_tflops']:.1f} measured; {memory(record)}"
    )
