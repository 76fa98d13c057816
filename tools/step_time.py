"""The time of one training step beside the official PyTorch step: the same weights, samples and shapes, on one CPU.

    OFFICIAL_PYTHON tools/step_time.py official FOLDER --repository DIR     # makes weights and batch, times its step
    python tools/step_time.py ours FOLDER                                  # converts the weights, times ours

FOLDER carries weights and batch from one to the other (see `beside_official.py`). Run them one after the other on an
idle machine: only the ratio means something.

B samples of S tokens, one image of 576 tokens each.
"""

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from beside_official import IMAGE, USER, converted, official_model, parse, parser

ROWS, TEXT = 4, 128
VOCAB = 2048
DECODER = {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 8, "num_attention_heads": 8}
TOWER = {"hidden_size": 96, "intermediate_size": 384, "num_hidden_layers": 6, "num_attention_heads": 4}


def official(folder: Path, repository: Path, steps: int) -> list[float]:
    """Makes weights and batch in `folder` and times the official step."""
    import torch

    model = official_model(folder, repository, VOCAB, DECODER, TOWER)
    model.get_vision_tower().requires_grad_(False)
    model.train()
    arrays = _batch()
    np.savez(folder / "batch.npz", **arrays)
    ids, labels, images = (torch.from_numpy(arrays[name]) for name in ("ids", "labels", "images"))
    named = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
    groups = [
        {"params": [value for name, value in named if "predictor" in name], "lr": 2e-4},
        {"params": [value for name, value in named if "predictor" not in name], "lr": 5e-6},
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)

    def step() -> None:
        mask = torch.ones_like(ids, dtype=torch.bool)
        model(input_ids=ids, attention_mask=mask, labels=labels, images=images, use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_([value for _, value in named], 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return _times(step, steps)


def ours(folder: Path, steps: int, remat: Any) -> list[float]:
    """Times our step on what `official` left in `folder`."""
    import jax
    import jax.numpy as jnp

    from dynllava_jax.checkpoint.load import load
    from dynllava_jax.config.training import InitConfig, TrainConfig
    from dynllava_jax.data.batch import make_batch
    from dynllava_jax.data.spans import expand
    from dynllava_jax.nn.flat import flatten
    from dynllava_jax.sharding.mesh import make_mesh
    from dynllava_jax.training.state import begin
    from dynllava_jax.training.step import Trainer

    model = load(converted(folder))
    arrays = np.load(folder / "batch.npz")
    samples = [
        expand(ids, labels, image_tokens=IMAGE, round_ids=USER)
        for ids, labels in zip(arrays["ids"], arrays["labels"], strict=True)
    ]
    pixels = [[image.transpose(1, 2, 0)] for image in arrays["images"]]
    batch = jax.tree.map(jnp.asarray, make_batch(samples, pixels, length=IMAGE + TEXT, slots=1, rows=ROWS))
    mesh = make_mesh("data=1", jax.devices()[:1])
    config = TrainConfig(
        model=None, init=InitConfig(checkpoint="given"), global_batch_size=ROWS, dtype="float32", remat=remat
    )
    trainer = Trainer(model.config, config, mesh, total=1000)
    state = begin(trainer.parameters, flatten(model), "float32", mesh)

    def step() -> None:
        nonlocal state
        state, metrics = trainer.step(state, batch)
        jax.block_until_ready((state, metrics))

    return _times(step, steps)


def _batch() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    ids = rng.integers(3, VOCAB - 48, (ROWS, TEXT + 1))
    ids[:, 20] = -200  # the mark of an image
    labels = ids.copy()
    labels[:, :60] = -100
    images = rng.standard_normal((ROWS, 3, 336, 336)).astype(np.float32)
    return {"ids": ids, "labels": labels, "images": images}


def _times(step: Callable[[], None], steps: int) -> list[float]:
    """Seconds of each step but the first, which compiles and warms up."""
    times = []
    for _ in range(steps + 1):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return times[1:]


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--steps", type=int, default=4)
    options.add_argument("--remat", default="none", help="ours: full, dots or none; the official step keeps everything")
    args = parse(options)
    if args.which == "official":
        times = official(args.folder, args.repository, args.steps)
    else:
        times = ours(args.folder, args.steps, args.remat)
    print(f"{args.which}: median {median(times):.2f} s of {', '.join(f'{t:.2f}' for t in times)}")


if __name__ == "__main__":
    main()
