"""`dynllava show`: pictures of what the model keeps, and of a training run."""

import argparse
import io
from pathlib import Path
from typing import Any

from dynllava_jax.cli.generate import asked
from dynllava_jax.cli.local_path import local_path
from dynllava_jax.cli.model_options import add_answer_options, add_model_options, answer_options, load_model
from dynllava_jax.cli.output import check_file, write_file
from dynllava_jax.cli.pictures import read_pictures, warn_of_foreign

_PICTURES = (".png", ".jpg", ".jpeg", ".webp")


def add_parser(subparsers: Any) -> None:
    """Adds `show kept` and `show curves`; the parsed namespace's `run` does the work."""
    parser = subparsers.add_parser("show", help="pictures of what was kept, and of a training run")
    kinds = parser.add_subparsers(dest="kind", metavar="WHAT", required=True, parser_class=type(parser))
    kept = kinds.add_parser(
        "kept",
        help="which patches and which tokens of the answer were kept",
        description="Writes one picture: what the tower saw, the patches kept, the keep scores as a heat map, and the "
        "answer with the tokens greyed that the deep layers did not store.",
    )
    kept.add_argument("--image", action="append", metavar="SOURCE", help="file, URL or sample:NAME; may be repeated")
    kept.add_argument("--question", metavar="TEXT", help="<image> marks where each picture stands")
    kept.add_argument(
        "--out", type=local_path, default=Path("kept.png"), metavar="FILE", help="PNG, JPEG or WebP (kept.png)"
    )
    add_model_options(kept)
    add_answer_options(kept)
    kept.set_defaults(run=run_kept)
    curves = kinds.add_parser(
        "curves", help="the curves of a training run", description="Plots loss, keep rates and speed of every step."
    )
    curves.add_argument("workdir", metavar="WORKDIR", help="of `dynllava train`, here or gs://…")
    curves.add_argument(
        "--out", type=local_path, metavar="FILE", help="SVG, PNG or PDF (WORKDIR/curves.svg; ./curves.svg for gs://…)"
    )
    curves.set_defaults(run=run_curves)


def run_kept(args: argparse.Namespace) -> int:
    """Returns the exit status; bad input is raised as InputError."""
    from PIL import Image

    from dynllava_jax.viz.overlay import draw_kept

    check_file("--out", args.out, _PICTURES)
    images, question = asked(args)
    options = answer_options(args)
    pictures = read_pictures(images)
    assistant = load_model(args)
    explanation = assistant.explain(pictures, question, dense=args.dense, **options)
    warn_of_foreign(assistant, images)
    content = io.BytesIO()
    draw_kept(explanation, question).save(content, Image.registered_extensions()[args.out.suffix.lower()])
    write_file("--out", args.out, content.getvalue())
    print(args.out)
    return 0


def run_curves(args: argparse.Namespace) -> int:
    """Returns the exit status; bad input is raised as InputError."""
    from dynllava_jax.checkpoint.paths import as_path, reachable
    from dynllava_jax.viz.curves import draw_curves, read_metrics
    from dynllava_jax.viz.figure import FORMATS, save

    workdir = as_path(args.workdir, "WORKDIR")
    file = (workdir if isinstance(workdir, Path) else Path()) / "curves.svg" if args.out is None else args.out
    records = read_metrics(reachable(workdir))
    check_file("--out", file, FORMATS)
    save(draw_curves(records), file)
    print(file)
    return 0
