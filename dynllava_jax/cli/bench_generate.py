"""`dynllava bench generate`: tower, prefill, each token and memory, dynamic and dense."""

import argparse
import dataclasses
import sys
from typing import Any

from dynllava_jax.cli.output import add_json, write_json
from dynllava_jax.errors import InputError


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "generate",
        help="prefill and decoding",
        description="Generates answers of fixed length with the engine that serves users, by the model's own sparsity "
        "and dense.",
    )
    model = parser.add_mutually_exclusive_group()
    model.add_argument("--model", metavar="NAME_OR_DIR", help="demo, or a converted checkpoint")
    model.add_argument("--preset", metavar="P", help="a published model's shapes; needs --random-weights")
    model.add_argument(
        "--paper", metavar="NAME", help="table4-1k, table4-2k, table4-4k (without cache; …-cache) or table14"
    )
    parser.add_argument("--random-weights", action="store_true", help="draw them; speed does not depend on them")
    parser.add_argument("--batch", type=int, metavar="N", help="requests together (1)")
    parser.add_argument("--prompt", type=int, metavar="N", help="text tokens of each prompt (64)")
    parser.add_argument("--images", type=int, metavar="N", help="pictures of each prompt (1)")
    parser.add_argument("--new-tokens", type=int, metavar="N", help="tokens of each answer (128)")
    parser.add_argument("--dense", action="store_true", help="the dense model only")
    parser.add_argument("--no-cache", action="store_true", help="run the whole sequence at every step")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="of weights and computation (bfloat16)")
    parser.add_argument("--round", type=float, default=0.2, metavar="SECONDS", help="of one round of calls (0.2)")
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    shape, preset, cached = _what(args)
    if args.model is None and not args.random_weights:
        raise InputError(f"{preset} has no weights here; add --random-weights, or name a checkpoint with --model.")
    if args.model is not None and args.random_weights:
        raise InputError("--model brings its own weights; drop --random-weights, or name a --preset.")
    from dynllava_jax.benchmark.generation import bench_generation

    model, dtype = _model(args, preset, shape)
    records = []
    for record in bench_generation(model, dtype, shape, cached=cached, dense_only=args.dense, least=args.round):
        records.append({"model": args.model or preset, "dtype": dtype} | record)
        if args.json != "-":
            print(_line(records[-1]), flush=True)
    if args.json is not None:
        write_json(args.json, records)
    return 0


def _what(args: argparse.Namespace) -> tuple[Any, str, bool]:
    """What is generated, by which preset's shapes, and whether with a cache."""
    from dynllava_jax.benchmark.generation import PAPER, GenerationShape

    shape, preset, cached = GenerationShape(1, 64, 1, 128), args.preset or "dynamic_llava_7b", not args.no_cache
    if args.paper is not None:
        if args.paper not in PAPER:
            raise InputError(f"--paper {args.paper} is none of {', '.join(PAPER)}.")
        named = PAPER[args.paper]
        shape, preset, cached = named.shape, named.preset, named.cached and cached
    given = {"batch": args.batch, "text": args.prompt, "images": args.images, "new": args.new_tokens}
    return dataclasses.replace(shape, **{k: v for k, v in given.items() if v is not None}), preset, cached


def _model(args: argparse.Namespace, preset: str, shape: Any) -> tuple[Any, str]:
    from dynllava_jax.benchmark.subjects import random_model, with_room
    from dynllava_jax.config.presets import get_preset
    from dynllava_jax.inference.load import load

    if args.model is not None:
        engine = load(args.model, dtype=args.dtype).engine
        return engine.model, engine.dtype
    config, dtype = get_preset(preset), args.dtype or "bfloat16"
    _check_memory(config, preset, dtype)
    print(f"dynllava: {preset} with random weights: what it keeps of an answer is chance", file=sys.stderr)
    return random_model(with_room(config, shape.tokens(config)), dtype), dtype


def _check_memory(config: Any, preset: str, dtype: str) -> None:
    import jax

    from dynllava_jax.inference.load import parameter_bytes
    from dynllava_jax.inference.memory import check_fits

    check_fits(preset, parameter_bytes(config, dtype), jax.devices()[:1])


def _line(record: dict[str, Any]) -> str:
    tower = "" if record["tower_seconds"] is None else f"tower {1e3 * record['tower_seconds']:.1f} ms, "
    peak = "unknown" if record["peak_bytes"] is None else f"{record['peak_bytes'] / 2**30:.2f} GiB"
    return (
        f"{record['mode']:<8}{'cache' if record['cached'] else 'no cache':<9}batch {record['batch']}: {tower}prefill "
        f"{1e3 * record['prefill_seconds']:.1f} ms, {record['ms_per_token']:.2f} ms a token, "
        f"{record['tokens_per_second']:.1f} tokens/s; peak {peak}; kept {record['kept_image_tokens']} of "
        f"{record['image_tokens']} image tokens, {record['kept_output_share']:.0%} of the answer"
    )
