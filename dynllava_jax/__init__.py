"""Dynamic-LLaVA in JAX/Flax: vision-language models that drop the image tokens and the text they do not need.

    import dynllava_jax as dl
    model = dl.load("demo")
    model.generate("photo.jpg", "What is this?").text

Names are loaded when they are used: importing the package imports neither JAX nor torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dynllava_jax.config.model import ModelConfig
    from dynllava_jax.config.presets import get_preset
    from dynllava_jax.config.sparsity import SparsityConfig
    from dynllava_jax.errors import InputError
    from dynllava_jax.inference.assistant import Assistant
    from dynllava_jax.inference.buckets import Buckets
    from dynllava_jax.inference.load import load
    from dynllava_jax.inference.request import Answer, Request
    from dynllava_jax.inference.sampling import Greedy, Temperature, TopK, TopP

__version__ = "0.1.0"

_HOMES = {
    "Answer": "inference.request",
    "Assistant": "inference.assistant",
    "Buckets": "inference.buckets",
    "Greedy": "inference.sampling",
    "InputError": "errors",
    "ModelConfig": "config.model",
    "Request": "inference.request",
    "SparsityConfig": "config.sparsity",
    "Temperature": "inference.sampling",
    "TopK": "inference.sampling",
    "TopP": "inference.sampling",
    "get_preset": "config.presets",
    "load": "inference.load",
}

__all__ = [  # noqa: RUF022 (the order of a reader's interest)
    "load",
    "Assistant",
    "Request",
    "Answer",
    "Greedy",
    "Temperature",
    "TopK",
    "TopP",
    "Buckets",
    "ModelConfig",
    "SparsityConfig",
    "get_preset",
    "InputError",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
