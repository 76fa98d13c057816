"""The time of one training step beside the official PyTorch step: the same weights, samples and shapes, on one CPU.

    OFFICIAL_PYTHON tools/step_time.py official FOLDER --repository DIR     # makes weights and batch, times its step
    python tools/step_time.py ours FOLDER                                  # converts the weights, times ours

The official half runs in an environment that has the official repository's own requirements; FOLDER carries weights
and batch from one to the other. Run them one after the other on an idle machine: only the ratio means something.

B samples of S tokens, one image of 576 tokens each.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

ROWS, TEXT, IMAGE = 4, 128, 576
VOCAB = 2048
DECODER = {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 8, "num_attention_heads": 8}
TOWER = {"hidden_size": 96, "intermediate_size": 384, "num_hidden_layers": 6, "num_attention_heads": 4}
USER, ASSISTANT = (337, 495), (363, 495)
"""Ids that begin a turn, which the official code looks for."""
SPARSE = {
    "use_vision_predictor": True,
    "vision_keep_rate": 0.2,
    "use_text_predictor": True,
    "use_output_text_predictor": True,
    "output_text_keep_rate": 0.5,
    "output_text_len_for_training": 50,
    "use_instruct_predictor": False,
    "instruct_keep_rate": 0.7,
    "instruct_len_for_training": 25,
    "sparse_layer": 2,
    "d_model": 128,
    "nhead": 4,
    "dim_feedforward": 256,
    "num_layers": 2,
    "mask_loss_weight": 100.0,
}


def official_model(folder: Path, repository: Path, vocab: int, decoder: dict[str, int], tower: dict[str, int]) -> Any:
    """An official model of that size with random weights, which are left in `folder` for ours."""
    import torch
    from safetensors.torch import save_file
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

    sys.path.insert(0, str(repository))
    import llava.model.dynamic_llava_arch as arch
    from llava.model.language_model.dynamic_llava_llama import DynamicLlavaConfig, DynamicLlavaLlamaForCausalLM

    torch.manual_seed(0)
    arch.special_text = {"USER:": list(USER), "ASSISTANT:": list(ASSISTANT)}
    kept = folder / "vision_tower"
    CLIPVisionModel(CLIPVisionConfig(image_size=336, patch_size=14, **tower)).save_pretrained(kept)
    CLIPImageProcessor(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}).save_pretrained(kept)
    config = DynamicLlavaConfig(
        vocab_size=vocab,
        **decoder,
        num_key_value_heads=decoder["num_attention_heads"],
        max_position_embeddings=1024,
        pad_token_id=0,
        tie_word_embeddings=False,
        mm_vision_tower=str(kept),
        mm_hidden_size=tower["hidden_size"],
        mm_projector_type="mlp2x_gelu",
        mm_vision_select_layer=-2,
        mm_vision_select_feature="patch",
        mm_patch_merge_type="flat",
        mm_use_im_start_end=False,
        mm_use_im_patch_token=False,
        image_aspect_ratio="pad",
        tokenizer_model_max_length=1024,
        tokenizer_padding_side="right",
        use_mm_proj=True,
        sparse_config=SPARSE,
    )
    model = DynamicLlavaLlamaForCausalLM(config)
    model.get_vision_tower().load_model()
    checkpoint = folder / "checkpoint"
    checkpoint.mkdir(exist_ok=True)
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(weights, str(checkpoint / "model.safetensors"), {"format": "pt"})
    described = {**config.to_dict(), "mm_vision_tower": "./vision_tower", "model_type": "llava_llama"}
    (checkpoint / "config.json").write_text(json.dumps(described))
    return model


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
    from dynllava_jax.convert.from_torch import convert
    from dynllava_jax.data.batch import make_batch
    from dynllava_jax.data.spans import expand
    from dynllava_jax.nn.flat import flatten
    from dynllava_jax.sharding.mesh import make_mesh
    from dynllava_jax.training.state import begin
    from dynllava_jax.training.step import Trainer

    if not (folder / "jax").exists():
        convert(folder / "checkpoint", folder / "jax", vision_tower=folder / "vision_tower")
    model = load(folder / "jax")
    arrays = np.load(folder / "batch.npz")
    samples = [
        expand(ids, labels, image_tokens=IMAGE, round_ids=(USER[0], USER[1]))
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", choices=("official", "ours"))
    parser.add_argument("folder", type=Path, help="for weights and batch")
    parser.add_argument(
        "--repository", type=Path, help="a checkout of the official code (github.com/Osilly/dynamic_llava)"
    )
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2, help="of PyTorch; JAX takes all cores")
    parser.add_argument("--remat", default="none", help="ours: full, dots or none; the official step keeps everything")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    if args.which == "official":
        if args.repository is None:
            parser.error("official needs --repository")
        import torch

        torch.set_num_threads(args.threads)
        times = official(args.folder, args.repository, args.steps)
    else:
        times = ours(args.folder, args.steps, args.remat)
    print(f"{args.which}: median {median(times):.2f} s of {', '.join(f'{t:.2f}' for t in times)}")


if __name__ == "__main__":
    main()
