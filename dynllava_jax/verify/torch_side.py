"""Runs a PyTorch LLaVA on one prompt: a program of its own, for whatever Python has that model's code.

    python torch_side.py --kind hf|official [--official DIR]                     only looks whether it could run
    … --folder DIR --inputs FILE.npz --out FILE.npz --dtype D [--vision-tower DIR]

It needs neither this package nor JAX. FILE.npz holds `ids` (-200 where the image goes), `pixels` [1, 3, H, W],
`image_tokens` and `round_ids`; what is written are `logits` [T, V] and `positions` [T] of the tokens that reach the
last layer.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

IMAGE = -200


def from_transformers(args: argparse.Namespace, given: dict[str, np.ndarray]) -> tuple[Any, Any]:
    import torch
    from transformers import LlavaForConditionalGeneration

    model = LlavaForConditionalGeneration.from_pretrained(args.folder).to(getattr(torch, args.dtype)).eval()  # pyright: ignore
    image = getattr(model.config, "image_token_id", None) or model.config.image_token_index
    ids = []
    for token in given["ids"]:
        ids += [image] * int(given["image_tokens"]) if token == IMAGE else [int(token)]
    with torch.no_grad():
        out = model(input_ids=torch.tensor([ids]), pixel_values=torch.from_numpy(given["pixels"]).to(model.dtype))
    return out.logits[0], torch.arange(len(ids))


def from_official(args: argparse.Namespace, given: dict[str, np.ndarray]) -> tuple[Any, Any]:
    import torch
    from llava.model import dynamic_llava_arch  # pyright: ignore[reportMissingImports]

    sparse, config, kind = official_class(args.folder)
    dynamic_llava_arch.special_text["USER:"] = given["round_ids"].tolist()
    config.mm_vision_tower = str(Path(args.vision_tower).resolve())
    dtype = getattr(torch, args.dtype)
    model = kind.from_pretrained(args.folder, config=config, torch_dtype=dtype, attn_implementation="sdpa").eval()
    tower = model.get_vision_tower()
    tower.load_model()
    tower.to(dtype=dtype)
    seen = {}
    model.model.layers[-1].register_forward_pre_hook(
        lambda module, inputs, more: seen.update(positions=more["position_ids"]), with_kwargs=True
    )
    if sparse:
        model.model.answer_indice = None
    ids = torch.from_numpy(given["ids"].astype(np.int64))[None]
    with torch.no_grad():
        out = model(input_ids=ids, images=torch.from_numpy(given["pixels"]).to(dtype), use_cache=True)
    return out.logits[0], seen["positions"].reshape(-1)


def official_class(folder: str) -> tuple[bool, Any, Any]:
    """Whether it drops tokens, its config, and the class for it."""
    import json

    from llava.model.language_model import dynamic_llava_llama, llava_llama  # pyright: ignore[reportMissingImports]

    values = json.loads((Path(folder) / "config.json").read_text())
    if values.get("sparse_config") is None:
        return False, llava_llama.LlavaConfig(**values), llava_llama.LlavaLlamaForCausalLM
    kind = dynamic_llava_llama.DynamicLlavaLlamaForCausalLM
    return True, dynamic_llava_llama.DynamicLlavaConfig(**values), kind


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=("hf", "official"), required=True)
    parser.add_argument("--official")
    parser.add_argument("--folder")
    parser.add_argument("--vision-tower")
    parser.add_argument("--inputs")
    parser.add_argument("--out")
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args()
    try:
        import torch  # noqa: F401

        if args.kind == "official":
            sys.path.insert(0, args.official)
            import llava.model.language_model.dynamic_llava_llama  # noqa: F401  # pyright: ignore[reportMissingImports]
        else:
            from transformers import LlavaForConditionalGeneration  # noqa: F401
    except ImportError as error:
        sys.exit(f"{sys.executable} cannot import what it needs ({error})")
    if args.folder is None:
        return
    with np.load(args.inputs) as file:
        given = dict(file)
    run = from_official if args.kind == "official" else from_transformers
    logits, positions = run(args, given)
    np.savez(args.out, logits=logits.float().numpy(), positions=positions.numpy())


if __name__ == "__main__":
    main()
