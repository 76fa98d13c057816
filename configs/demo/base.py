"""The demo's dense base: the decoder learns on a pretrained tower and projector, both frozen.

At a decoder's rate the projector would forget what the pretraining gave it (docs/demo.md).

The decoder sees 115 of the 576 image tokens, another random set in every sample: a step costs a third, and what was
learned holds for all of them. `base_whole.py` then shows it all. Give `--config.init.checkpoint` (what `dynllava demo
tower` wrote) and `--config.data.source` (what `dynllava demo make` wrote).
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "model": "demo",
            "sparsity": {
                "embed_selector": "random",
                "embed_keep_rate": 0.2,
                "image_selector": None,
                "output_selector": None,
            },
            "data": {"max_length": 288, "lengths": (288,), "window": 1, "workers": 0},
            "optimizer": {"learning_rate": 1.5e-3, "weight_decay": 0.01, "beta2": 0.98, "freeze_projector": True},
            "global_batch_size": 32,
            "dtype": "float32",
            "remat": "none",
            "checkpoint": {"every": 50, "keep": 1},
            "log": {"tensorboard": False},
        }
    )
