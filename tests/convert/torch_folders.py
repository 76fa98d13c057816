"""PyTorch checkpoint folders for tests: copies of the goldens with something changed, and tiny llava-hf models."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 (safetensors' numpy reader needs it for bfloat16)
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests import golden_files

Tensors = dict[str, np.ndarray]


def golden(name: str, to: Path) -> Path:
    """A copy of one of the golden folders, with the tower beside it where the config looks for it."""
    folder = to / name
    shutil.copytree(golden_files.ROOT / name, folder)
    return folder


def tensors_of(folder: Path) -> Tensors:
    return load_file(folder / "model.safetensors")


def change_tensors(folder: Path, change: Callable[[Tensors], None]) -> None:
    tensors = tensors_of(folder)
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def change_config(folder: Path, **values: Any) -> None:
    """Sets keys of config.json; None removes one."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | values
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def llava_hf(folder: Path, *, tied: bool = False, rope: dict[str, Any] | None = None, vocab: int = 96) -> Tensors:
    """Saves a tiny random `LlavaForConditionalGeneration` with the installed transformers; returns its weights."""
    torch = pytest.importorskip("torch")
    import transformers

    torch.manual_seed(0)
    vision = transformers.CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, image_size=28, patch_size=14
    )
    text = transformers.LlamaConfig(
        vocab_size=vocab,
        hidden_size=40,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=12,
        rope_parameters=rope or {"rope_type": "default", "rope_theta": 5000.0},
        tie_word_embeddings=tied,
    )
    config = transformers.LlavaConfig(
        vision_config=vision, text_config=text, tie_word_embeddings=tied, image_token_index=vocab - 1
    )
    model = transformers.LlavaForConditionalGeneration(config)
    model.save_pretrained(folder)
    return {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}
