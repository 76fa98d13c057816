"""`dynllava bench generate`: tower, prefill, each token and memory, dynamic and dense."""

import argparse
import dataclasses
import sys
from collections.abc import Iterator
from typing import Any

from dynllava_jax.cli.bench_records import add_round, check_round, enough_memory, measured_machine, memory, tell
from dynllava_jax.cli.output import add_json
from dynllava_jax.errors import InputError


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "generate",
        help="prefill and decoding",
        description="Generates answers of fixed length with the engine that serves users, by the model's own sparsity "
        "and dense. FLOPs are those of `dynllava flops`, exact, of the decoder's layers; the least time of a token is "
        "that of reading the weights and what is kept of the cache, at the speed of a copy measured here (without a "
        "cache: of the arithmetic, at that of a matrix product).",
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
    parser.add_argument("--products", metavar="NAME", help="triton: fused kernels for each token's products (XLA's)")
    add_round(parser, "calls")
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from dynllava_jax.kernels.products import fused_products

    check_round(args.round)
    what = _what(args)
    if args.model is None and not args.random_weights:
        raise InputError(f"{what[1]} has no weights here; add --random-weights, or name a checkpoint with --model.")
    if args.model is not None and args.random_weights:
        raise InputError("--model brings its own weights; drop --random-weights, or name a --preset.")
    if args.products is not None and not what[2]:
        raise InputError("--products is for decoding with a cache; leave it out where there is none.")
    fused_products(args.products)
    tell(args.json, _measure(args, *what), line)
    return 0


def _measure(args: argparse.Namespace, shape: Any, preset: str, cached: bool) -> Iterator[dict[str, Any]]:
    from dynllava_jax.benchmark.generation import bench_generation

    model, dtype = _model(args, preset, shape)
    _check_room(args.model, model.config, shape, cached)
    machine = measured_machine(dtype, args.round)
    options = {"cached": cached, "dense_only": args.dense, "products": args.products, "least": args.round}
    with enough_memory("--batch, --prompt, --images or --new-tokens"):
        for record in bench_generation(model, dtype, shape, machine, **options):
            yield {"model": args.model or preset, "dtype": dtype, "products": args.products} | record | machine.record()


def _what(args: argparse.Namespace) -> tuple[Any, str, bool]:
    """What is generated, by which preset's shapes, and whether with a cache."""
    from dynllava_jax.benchmark.shapes import PAPER, GenerationShape

    shape, cached = GenerationShape(1, 64, 1, 128), not args.no_cache
    preset = "dynamic_llava_7b" if args.preset is None else args.preset
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


def _check_room(name: str | None, config: Any, shape: Any, cached: bool) -> None:
    """Random weights are made with a context that is long enough."""
    context, prompt = config.decoder.context, shape.prompt(config)
    # Without a cache the prompt's pass has slots for the whole answer.
    most = max(prompt, shape.new) if cached else shape.tokens(config)
    if most > context:
        raise InputError(
            f"{prompt} prompt tokens and {shape.new} of the answer do not fit {name}, whose context is {context}; "
            f"ask for fewer with --prompt, --images or --new-tokens."
        )


def _check_memory(config: Any, preset: str, dtype: str) -> None:
    import jax

    from dynllava_jax.inference.load import parameter_bytes
    from dynllava_jax.inference.memory import check_fits

    instead = "use bfloat16 for --dtype, or a smaller --preset"
    check_fits(preset, parameter_bytes(config, dtype), jax.devices()[:1], instead=instead)


def line(record: dict[str, Any]) -> str:
    """One record as it is printed."""
    if record["mode"] == "dynamic_to_dense":
        return (
            f"dynamic to dense: prefill {record['prefill_time_ratio']:.3f} of the time for "
            f"{record['prefill_flops_ratio']:.3f} of the FLOPs, {record['prefill_time_over_flops']:.2f} times that; "
            f"a token {record['token_time_ratio']:.3f} of the time"
        )
    return (
        f"{record['mode']:<8}{'cache' if record['cached'] else 'no cache':<9}batch {record['batch']}: "
        f"{_part(record, 'tower')}{_part(record, 'prefill')}first token {1e3 * record['first_token_seconds']:.1f} ms, "
        f"{record['ms_per_token']:.2f} ms a token (at least {record['least_ms_per_token']:.2f} ms: "
        f"{record['share_of_roofline']:.1%} of the roofline), {record['tokens_per_second']:.1f} tokens/s; "
        f"{memory(record)}; kept {record['kept_image_tokens']} of {record['image_tokens']} image tokens, "
        f"{record['kept_output_share']:.0%} of the answer"
    )


def _part(record: dict[str, Any], name: str) -> str:
    if record[f"{name}_seconds"] is None:
        return ""
    return (
        f"{name} {1e3 * record[f'{name}_seconds']:.1f} ms ({record[f'{name}_tflops']:.2f} TFLOP/s, "
        f"{record[f'{name}_share_of_matmul']:.1%} of matmul), "
    )
