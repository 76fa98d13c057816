"""Options that choose and place a model, and those that shape an answer: of `generate`, `chat`, `show` and `eval`."""

import argparse
from typing import Any

from dynllava_jax.config.check import DTYPES
from dynllava_jax.errors import InputError


def add_model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="demo", metavar="NAME_OR_DIR", help="demo, or a converted checkpoint (demo)")
    parser.add_argument("--keep-rate", type=float, metavar="R", help="share of image tokens kept (the model's own)")
    parser.add_argument("--output-keep", choices=("on", "off"), default="on", help="may generated tokens be dropped")
    parser.add_argument(
        "--selector", metavar="NAME", help="image selector: random, stride, pool, fastv, package.module:Class"
    )
    parser.add_argument("--dense", action="store_true", help="the decoder drops nothing")
    parser.add_argument("--dtype", choices=DTYPES, help="of weights and computation (as stored)")
    parser.add_argument("--device", metavar="D", help="cpu, gpu or tpu (JAX's default)")
    parser.add_argument("--mesh", metavar="AXES", help="spread over devices, such as data=1,tensor=4")
    parser.add_argument("--conv-template", metavar="T", help="conversation template (the model's own)")


def add_answer_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--max-new-tokens", type=int, metavar="N", help="answer tokens at most (512, or what fits)")
    parser.add_argument("--temperature", type=float, metavar="T", help="draw at this temperature (greedy)")
    parser.add_argument("--top-p", type=float, metavar="P", help="draw among the likeliest that reach P together")
    parser.add_argument("--top-k", type=int, metavar="K", help="draw among the K likeliest")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the drawing (0)")


def load_model(args: argparse.Namespace, **more: Any) -> Any:
    """The assistant that the options describe, with `more` for `load`."""
    from dynllava_jax.inference.load import load

    for option in ("keep_rate", "selector"):
        if args.dense and getattr(args, option) is not None:
            raise InputError(f"--dense drops nothing, so --{option.replace('_', '-')} would have no effect; drop one.")
    return load(
        args.model,
        mesh=args.mesh,
        device=args.device,
        dtype=args.dtype,
        keep_rate=args.keep_rate,
        output_keep=args.output_keep == "on",
        template=args.conv_template,
        selector=args.selector,
        **more,
    )


def answer_options(args: argparse.Namespace) -> dict[str, Any]:
    """What the answer options ask for, judged before a model is loaded."""
    from dynllava_jax.inference.request import check_wishes

    asked = (args.max_new_tokens, sampler(args.temperature, args.top_p, args.top_k), args.seed)
    check_wishes(*asked)
    return dict(zip(("max_new_tokens", "sampler", "seed"), asked, strict=True))


def sampler(temperature: float | None, top_p: float | None, top_k: int | None) -> Any:
    """The sampler that these numbers describe; temperature 0 is greedy, as everywhere."""
    from dynllava_jax.inference.sampling import GREEDY, Temperature, TopK, TopP

    if temperature is not None and temperature < 0:
        raise InputError(f"--temperature must be 0 (greedy) or more, not {temperature}.")
    if temperature == 0 or (temperature is None and top_p is None and top_k is None):
        return GREEDY
    heat = 1.0 if temperature is None else temperature
    if top_p is not None:
        return TopP(top_p, heat, top_k)
    return Temperature(heat) if top_k is None else TopK(top_k, heat)
