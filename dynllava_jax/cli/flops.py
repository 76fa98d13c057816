"""`dynllava flops`: what a prompt and its answer cost, counted without weights."""

import argparse
import dataclasses
from typing import Any

from dynllava_jax.cli.output import add_json, write_json
from dynllava_jax.errors import InputError


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "flops",
        help="what a prompt costs, counted without weights",
        description="Counts FLOPs and cache bytes under every convention in use: `exact` counts each matrix product of "
        "the decoder's layers (two operations for a multiply-add), `eq13` is the paper's equation 13, `fastv` counts "
        "multiply-adds and two of the MLP's three matrices. The paper's tables are `image tokens` under eq13. Text of "
        "the prompt is counted whole, also where a model drops some of an instruction. A cache holds numbers of two "
        "bytes, and the whole answer; its last token comes into it only when the conversation goes on.",
    )
    model = parser.add_mutually_exclusive_group()
    model.add_argument("--preset", metavar="P", help="a published model's shapes (dynamic_llava_7b)")
    model.add_argument("--model", metavar="DIR", help="a converted checkpoint; only its config is read")
    parser.add_argument("--images", type=int, default=1, metavar="N", help="pictures of the prompt (1)")
    parser.add_argument("--text-tokens", type=int, default=64, metavar="N", help="other tokens of the prompt (64)")
    parser.add_argument("--new-tokens", type=int, default=1000, metavar="N", help="tokens of the answer (1000)")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="prompts, for the cache's bytes (1)")
    parser.add_argument("--image-tokens", type=int, metavar="N", help="image tokens in all (the model's own)")
    parser.add_argument("--kept-tokens", type=int, metavar="N", help="how many of them are kept (the model's own)")
    parser.add_argument("--sparse-layer", type=int, metavar="L", help="layers that see all of them (the model's own)")
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    report = count(args)
    if args.json is not None:
        write_json(args.json, [report])
        return 0
    _print(report)
    return 0


def count(args: argparse.Namespace) -> dict[str, Any]:
    """Everything that is printed; FLOPs of one prompt, bytes of the batch."""
    from dynllava_jax.analysis import prompt_flops as counts

    for name, least in (("images", 0), ("text_tokens", 0), ("new_tokens", 0), ("batch", 1)):
        if getattr(args, name) < least:
            raise InputError(f"--{name.replace('_', '-')} must be {least} or more, not {getattr(args, name)}.")
    config = _config(args)
    decoder, text, new = config.decoder, args.text_tokens, args.new_tokens
    seen = _selection(args, counts.selection(config, args.images), decoder.num_layers)
    pair = {"dense": seen.dense(), "dynamic": seen}

    def both(cost: Any) -> dict[str, float]:
        values = {name: cost(selection) for name, selection in pair.items()}
        return values | {"saved": 1 - values["dynamic"] / values["dense"] if values["dense"] else 0.0}

    def prefill(tokens: int) -> dict[str, Any]:
        return {
            name: both(lambda s, name=name: counts.prefill(decoder, s, tokens, name)) for name in counts.CONVENTIONS
        }

    def generation(cached: bool) -> dict[str, float]:
        return both(lambda s: counts.generation(decoder, s, text, new, cached=cached))

    return {
        "model": args.preset or str(args.model or "dynamic_llava_7b"),
        "image_tokens": seen.tokens,
        "kept_tokens": seen.kept,
        "sparse_layer": seen.layers,
        "output_keep_rate": seen.output_rate,
        "text_tokens": text,
        "new_tokens": new,
        "batch": args.batch,
        "flops": {
            "image_tokens": prefill(0),
            "prompt": prefill(text),
            "generation_with_cache": generation(True),
            "generation_without_cache": generation(False),
            "beside_the_decoder": {
                name: cost.forward
                for name, cost in counts.beside_the_decoder(config, args.images, seen.tokens + text).items()
            },
        },
        "cache_bytes": {
            "prompt": both(lambda s: args.batch * counts.cache_bytes(decoder, s, text, 0)),
            "answer": both(lambda s: args.batch * counts.cache_bytes(decoder, _text_only(s), 0, new)),
            "all": both(lambda s: args.batch * counts.cache_bytes(decoder, s, text, new)),
        },
    }


def _text_only(seen: Any) -> Any:
    return dataclasses.replace(seen, tokens=0, kept=0)


def _config(args: argparse.Namespace) -> Any:
    from dynllava_jax.checkpoint.paths import as_path, reachable
    from dynllava_jax.checkpoint.source import open_source
    from dynllava_jax.config.presets import get_preset

    if args.model is None:
        return get_preset("dynamic_llava_7b" if args.preset is None else args.preset)
    if not reachable(as_path(args.model, "--model")).is_dir():
        raise InputError(f"--model {args.model} is no folder; give a converted checkpoint, or --preset.")
    return open_source(args.model).config


def _selection(args: argparse.Namespace, seen: Any, num_layers: int) -> Any:
    tokens = seen.tokens if args.image_tokens is None else args.image_tokens
    # A model that drops none of its own drops none of another number either.
    kept = (tokens if seen.kept == seen.tokens else seen.kept) if args.kept_tokens is None else args.kept_tokens
    layers = seen.layers if args.sparse_layer is None else args.sparse_layer
    if tokens < 0:
        raise InputError(f"--image-tokens must be 0 or more, not {tokens}.")
    if args.kept_tokens is None and kept > tokens:
        raise InputError(f"--image-tokens {tokens} are fewer than the {kept} that this model keeps; add --kept-tokens.")
    if not 0 <= kept <= tokens:
        raise InputError(f"--kept-tokens must lie in 0 … {tokens}, the image tokens that there are, not {kept}.")
    if not 1 <= layers < num_layers:
        raise InputError(f"--sparse-layer must lie in 1 … {num_layers - 1}, not {layers}.")
    return dataclasses.replace(seen, tokens=tokens, kept=kept, layers=layers)


def _print(report: dict[str, Any]) -> None:
    flops, cache = report["flops"], report["cache_bytes"]
    print(
        f"{report['model']}: {report['image_tokens']} image tokens, {report['kept_tokens']} kept after layer "
        f"{report['sparse_layer']}; {report['text_tokens']} text tokens, {report['new_tokens']} new ones"
    )
    print(f"{'':<28}{'dense':>12}{'dynamic':>12}{'saved':>9}")
    for title, part in (("image tokens", "image_tokens"), ("prompt", "prompt")):
        for convention, values in flops[part].items():
            unit = "TMAC" if convention == "fastv" else "TFLOP"
            _row(f"{title}, {convention} ({unit})", values, 1e12)
    _row("with cache (TFLOP)", flops["generation_with_cache"], 1e12)
    _row("without cache (TFLOP)", flops["generation_without_cache"], 1e12)
    for part, values in cache.items():
        _row(f"cache, {part} (MiB)", values, 2**20)
    beside = ", ".join(
        f"{name.replace('_', ' ')} {value / 1e12:.3g}" for name, value in flops["beside_the_decoder"].items()
    )
    print(f"not counted above (TFLOP): {beside}")


def _row(title: str, values: dict[str, float], unit: int | float) -> None:
    print(f"{title:<28}{values['dense'] / unit:>12.2f}{values['dynamic'] / unit:>12.2f}{values['saved']:>9.1%}")
