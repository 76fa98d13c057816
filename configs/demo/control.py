"""The dense control: the epoch of `dynamic.py` without sparsification, from the same base.

Give `--config.init.checkpoint`, `--config.data.source` and
`--config.data.images`.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "model": "demo",
            "sparsity": {"image_selector": None, "output_selector": None},
            "data": {"max_length": 768, "lengths": (768,), "window": 1, "workers": 0},
            "optimizer": {"learning_rate": 5e-4, "weight_decay": 0.01, "beta2": 0.98, "freeze_projector": True},
            "global_batch_size": 16,
            "dtype": "float32",
            "remat": "none",
            "checkpoint": {"every": 50, "keep": 1},
            "log": {"tensorboard": False},
        }
    )
