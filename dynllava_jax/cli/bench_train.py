"""`dynllava bench train`: one training step and its share of what the devices could do."""

import argparse
import dataclasses
from typing import Any

from dynllava_jax.cli.output import add_json, write_json


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
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from dynllava_jax.benchmark.step import bench_step
    from dynllava_jax.config.experiment import read_experiment
    from dynllava_jax.config.training import TrainConfig
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
    config = dataclasses.replace(config, **{key: value for key, value in given.items() if value is not None})
    model = preset_model(config)
    record = {"model": config.model, "dtype": config.dtype, "remat": config.remat, "mesh": config.mesh}
    record |= bench_step(model, config, length=args.length, images=args.images, steps=args.steps)
    if args.json is not None:
        write_json(args.json, [record])
    if args.json != "-":
        print(_line(record))
    return 0


def _line(record: dict[str, Any]) -> str:
    mfu = "MFU unknown here" if record["mfu"] is None else f"MFU {record['mfu']:.1%}"
    peak = "unknown" if record["peak_bytes"] is None else f"{record['peak_bytes'] / 2**30:.2f} GiB"
    return (
        f"{record['model']}: {record['batch']} samples of {record['length']} tokens on {record['devices']} device(s) "
        f"in {record['step_seconds']:.3f} s; {record['tokens_per_second']:.0f} tokens/s, "
        f"{record['tflops_per_device']:.2f} TFLOP/s a device, {mfu}; peak {peak}"
    )
