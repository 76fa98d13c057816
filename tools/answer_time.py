"""The time of an answer beside the official one: the same weights, picture and prompt, on one CPU.

    OFFICIAL_PYTHON tools/answer_time.py official FOLDER --repository DIR   # makes weights and prompt, times its answer
    python tools/answer_time.py ours FOLDER                                # converts the weights, times ours

FOLDER carries weights and prompt from one to the other (see `beside_official.py`). A picture and `TEXT` tokens are
asked, one request alone; the first answer of each is not counted.
"""

import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from beside_official import IMAGE, USER, converted, official_model, parse, parser

VOCAB, TEXT = 32000, 64
DECODER = {"hidden_size": 2048, "intermediate_size": 5504, "num_hidden_layers": 16, "num_attention_heads": 16}
TOWER = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}

Times = list[tuple[float, float]]
"""Of each answer: seconds to its first token, and of each further one."""


def official(folder: Path, repository: Path, dtype: str, tokens: int, answers: int) -> Times:
    """Makes weights and prompt in `folder` and times the official answer."""
    import torch

    model = official_model(folder, repository, VOCAB, DECODER, TOWER).eval().to(getattr(torch, dtype))
    rng = np.random.default_rng(0)
    ids = rng.integers(3, VOCAB, (1, TEXT + 1))
    ids[:, 20] = -200  # the mark of an image
    pixels = rng.standard_normal((1, 3, 336, 336)).astype(np.float32)
    np.savez(folder / "prompt.npz", ids=ids, pixels=pixels)
    given = torch.from_numpy(ids)
    images = torch.from_numpy(pixels).to(model.dtype)

    def seconds(count: int) -> float:
        options: dict[str, Any] = {"do_sample": False, "max_new_tokens": count, "eos_token_id": VOCAB}  # no id ends it
        start = time.perf_counter()
        with torch.inference_mode():
            model.generate(given, images=images, use_cache=True, **options)
        return time.perf_counter() - start

    times = []
    for _ in range(answers + 1):
        first, whole = seconds(1), seconds(tokens)
        times.append((first, (whole - first) / (tokens - 1)))
    return times[1:]


def ours(folder: Path, dtype: str, tokens: int, answers: int, *, exact: bool) -> Times:
    """Times our answer to what `official` left in `folder`; `exact`: nothing is padded."""
    import jax.numpy as jnp

    from dynllava_jax.benchmark.generation import exact_buckets
    from dynllava_jax.benchmark.shapes import GenerationShape
    from dynllava_jax.checkpoint.load import load
    from dynllava_jax.data.spans import expand
    from dynllava_jax.inference.buckets import Buckets
    from dynllava_jax.inference.engine import Engine
    from dynllava_jax.inference.run import Prepared, Run
    from dynllava_jax.inference.sampling import GREEDY

    model = load(converted(folder), dtype=jnp.dtype(dtype))
    shape = GenerationShape(batch=1, text=TEXT, images=1, new=tokens)
    buckets = exact_buckets(model.config, shape, cached=True) if exact else Buckets()
    engine = Engine(model, buckets=buckets, dtype=dtype)
    arrays = np.load(folder / "prompt.npz")
    sample = expand(arrays["ids"][0], None, image_tokens=IMAGE, round_ids=USER)
    prepared = Prepared(sample, [arrays["pixels"][0].transpose(1, 2, 0)], tokens, GREEDY, 0)
    times = []
    for _ in range(answers + 1):
        run = Run.open(engine, [prepared], engine.config.sparsity)
        while not run.finished:
            run.advance()
        times.append((run.seconds["prefill"], run.seconds["decode"] / (tokens - 1)))
    return times[1:]


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    options.add_argument("--tokens", type=int, default=33, help="of an answer, 2 at least")
    options.add_argument("--answers", type=int, default=3, help="that are timed")
    options.add_argument("--exact", action="store_true", help="ours: shapes of this prompt alone, nothing is padded")
    args = parse(options)
    if args.which == "official":
        times = official(args.folder, args.repository, args.dtype, args.tokens, args.answers)
    else:
        times = ours(args.folder, args.dtype, args.tokens, args.answers, exact=args.exact)
    first, each = (median(column) for column in zip(*times, strict=True))
    print(f"{args.which}, {args.dtype}: first token {first:.2f} s, then {1e3 * each:.0f} ms a token; {times}")


if __name__ == "__main__":
    main()
