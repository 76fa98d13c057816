"""`dynllava convert … --verify-logits`: the PyTorch model and ours asked the same thing."""

import argparse
from pathlib import Path

from dynllava_jax.checkpoint.paths import is_remote
from dynllava_jax.cli.local_path import local_path
from dynllava_jax.convert.hub import locate
from dynllava_jax.data.image import load_image
from dynllava_jax.demo.pictures import sample
from dynllava_jax.errors import InputError
from dynllava_jax.verify import logits
from dynllava_jax.verify.logits import Outcome, TorchSide
from dynllava_jax.verify.tolerance import LOGITS

_SAMPLE = "sample:cat"


def add_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("comparing the two models")
    group.add_argument(
        "--verify-logits", action="store_true", help="run both on one picture and print the worst difference"
    )
    group.add_argument(
        "--official-repo", type=local_path, metavar="DIR", help="checkout of the official code, for its layout"
    )
    group.add_argument("--torch-python", metavar="EXE", help="Python that has PyTorch and that code (this one)")
    group.add_argument("--verify-image", metavar="SOURCE", help=f"file, URL or sample:NAME ({_SAMPLE})")
    group.add_argument("--verify-question", metavar="TEXT", help="about it (the sample's own)")
    group.add_argument("--verify-dtype", choices=tuple(LOGITS), help="both compute in it (that of --dtype, or float32)")


_OPTIONS = ("official_repo", "torch_python", "verify_image", "verify_question", "verify_dtype")


def prepare(args: argparse.Namespace) -> None:
    """Raises InputError, before any work, when the comparison could not be made, or its options have no meaning."""
    if not args.verify_logits:
        # Of to-torch, the tower is an option of the comparison, too.
        for name in (*_OPTIONS, "vision_tower") if args.kind == "to-torch" else _OPTIONS:
            if getattr(args, name) is not None:
                raise InputError(f"--{name.replace('_', '-')} has no meaning without --verify-logits.")
        return
    torch = {"SRC": args.src} if args.kind == "from-torch" else {"DST": args.dst}
    torch |= {"--vision-tower": args.vision_tower, "--base": getattr(args, "base", None)}
    for name, where in torch.items():
        if where is not None and is_remote(where):
            raise InputError(f"--verify-logits: PyTorch reads from local disks only; take a folder here for {name}.")
    load_image(_asked(args)[0])
    if args.kind == "to-torch":
        logits.check_target(args.src, args.dst, args.layout, _side(args))
    else:
        logits.check_source(args.src, _side(args))


def run(args: argparse.Namespace, torch: str, checkpoint: str) -> Outcome:
    """Compares a PyTorch folder with a checkpoint of ours."""
    return logits.compare(torch, checkpoint, _side(args), *_asked(args))


def _asked(args: argparse.Namespace) -> tuple[str | Path, str]:
    """The picture and the question."""
    image, question = args.verify_image or _SAMPLE, args.verify_question
    if image.startswith("sample:"):
        picture = sample(image.removeprefix("sample:"))
        return picture.path, question or picture.question
    return image, question or "Describe the picture."


def _side(args: argparse.Namespace) -> TorchSide:
    default, tower, base = TorchSide(), args.vision_tower, getattr(args, "base", None)
    return TorchSide(
        official=args.official_repo,
        python=args.torch_python or default.python,
        vision_tower=None if tower is None else Path(str(locate(tower))),
        base=None if base is None else Path(str(locate(base))),
        dtype=args.verify_dtype or args.dtype or default.dtype,
    )
