"""Runs a PyTorch LLaVA on one prompt: a program of its own, for whatever Python has that model's code.

    python torch_side.py --kind hf|official|text [--official DIR]                only looks whether it could run
    … --folder DIR --inputs FILE.npz --out FILE.npz --dtype D [--vision-tower DIR] [--base DIR --merged-dtype D]

It needs neither this package nor JAX. FILE.npz holds `ids` (-200 where the image goes), `pixels` [M, 3, H, W],
`image_tokens` and `round_ids`; what is written are `logits` [T, V] and `positions` [T] of the tokens that reach the
last layer. `text` is a language model alone. With a base, the folder holds a part of a model: the base is loaded, the
part laid over it, and what was merged rounded to the dtype that the base is stored in.
"""

import argparse
import json
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


def from_text(args: argparse.Namespace, given: dict[str, np.ndarray]) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(args.folder).to(getattr(torch, args.dtype)).eval()
    with torch.no_grad():
        out = model(input_ids=torch.from_numpy(given["ids"].astype(np.int64))[None])
    return out.logits[0], torch.arange(len(given["ids"]))


def from_official(args: argparse.Namespace, given: dict[str, np.ndarray]) -> tuple[Any, Any]:
    import torch
    from llava.model import dynamic_llava_arch  # pyright: ignore[reportMissingImports]

    sparse, config, kind = official_class(args.folder)
    dynamic_llava_arch.special_text["USER:"] = given["round_ids"].tolist()
    config.mm_vision_tower = str(Path(args.vision_tower).resolve())
    dtype = getattr(torch, args.dtype)
    weights = args.base or args.folder
    model = kind.from_pretrained(weights, config=config, torch_dtype=dtype, attn_implementation="sdpa").eval()
    if args.base:
        lay_over(model, Path(args.folder), getattr(torch, args.merged_dtype))
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
    from llava.model.language_model import dynamic_llava_llama, llava_llama  # pyright: ignore[reportMissingImports]

    values = json.loads((Path(folder) / "config.json").read_text())
    if values.get("sparse_config") is None:
        return False, llava_llama.LlavaConfig(**values), llava_llama.LlavaLlamaForCausalLM
    kind = dynamic_llava_llama.DynamicLlavaLlamaForCausalLM
    return True, dynamic_llava_llama.DynamicLlavaConfig(**values), kind


def lay_over(model: Any, folder: Path, merged: Any) -> None:
    """Puts the tensors and LoRA adapters of a folder into a model of their base."""
    import torch

    state = model.state_dict()
    with torch.no_grad():
        for part in ("non_lora_trainables", "mm_projector"):
            for name, tensor in tensors(folder, part).items():
                state[plain_name(name)].copy_(tensor)
        adapters = tensors(folder, "adapter_model")
        for name in [name for name in adapters if ".lora_A." in name]:
            config = json.loads((folder / "adapter_config.json").read_text())
            rank = config["r"] ** 0.5 if config.get("use_rslora") else config["r"]
            low, high = adapters[name].float(), adapters[name.replace(".lora_A.", ".lora_B.")].float()
            weight = state[plain_name(name.split(".lora_A.")[0] + ".weight")]
            weight.copy_((weight.float() + config["lora_alpha"] / rank * (high @ low)).to(merged))


def tensors(folder: Path, part: str) -> dict[str, Any]:
    """Those of one file, if it is there."""
    import torch

    if (folder / f"{part}.bin").is_file():
        return torch.load(folder / f"{part}.bin", map_location="cpu", weights_only=True)
    if (folder / f"{part}.safetensors").is_file():
        from safetensors.torch import load_file

        return load_file(folder / f"{part}.safetensors")
    return {}


def plain_name(name: str) -> str:
    """A tensor's name without what peft puts in front."""
    name = name[len("base_model.") :] if name.startswith("base_model.") else name
    return name[len("model.") :] if name.startswith(("model.model.", "model.lm_head.")) else name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=("hf", "official", "text"), required=True)
    parser.add_argument("--official")
    parser.add_argument("--folder")
    parser.add_argument("--vision-tower")
    parser.add_argument("--base")
    parser.add_argument("--merged-dtype")
    parser.add_argument("--inputs")
    parser.add_argument("--out")
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args()
    try:
        import torch  # noqa: F401

        if args.kind == "official":
            sys.path.insert(0, args.official)
            import llava.model.language_model.dynamic_llava_llama  # noqa: F401  # pyright: ignore[reportMissingImports]
        elif args.kind == "hf":
            from transformers import LlavaForConditionalGeneration  # noqa: F401
        else:
            from transformers import AutoModelForCausalLM  # noqa: F401
    except ImportError as error:
        sys.exit(f"{sys.executable} cannot import what it needs ({error})")
    if args.folder is None:
        return
    with np.load(args.inputs) as file:
        given = dict(file)
    run = {"hf": from_transformers, "official": from_official, "text": from_text}
    logits, positions = run[args.kind](args, given)
    np.savez(args.out, logits=logits.float().numpy(), positions=positions.numpy())


if __name__ == "__main__":
    main()
