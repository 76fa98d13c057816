"""What times an official program and ours beside one another: an official model, and who is to be timed.

`step_time.py` and `answer_time.py` have an official half, which runs in an environment with the official repository's
own requirements and leaves random weights in a folder, and one of ours, which converts them.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

IMAGE = 576
"""Tokens of a picture."""
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


def converted(folder: Path) -> Path:
    """Where our half finds what `official_model` left in `folder`, as a checkpoint of ours."""
    from dynllava_jax.convert.from_torch import convert

    if not (folder / "jax").exists():
        convert(folder / "checkpoint", folder / "jax", vision_tower=folder / "vision_tower")
    return folder / "jax"


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options that both programs have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", choices=("official", "ours"))
    parser.add_argument("folder", type=Path, help="for weights and what is asked of them")
    parser.add_argument(
        "--repository", type=Path, help="a checkout of the official code (github.com/Osilly/dynamic_llava)"
    )
    parser.add_argument("--threads", type=int, default=2, help="of PyTorch; JAX takes all cores")
    return parser


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The options given; the folder is there, and PyTorch has its threads."""
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    if args.which == "official":
        if args.repository is None:
            parser.error("official needs --repository")
        import torch

        torch.set_num_threads(args.threads)
    return args
