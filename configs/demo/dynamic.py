"""The demo's Dynamic-LLaVA, the paper's "I|T": one epoch from the dense base.

20 % of the image tokens and half of a long answer's tokens go beyond layer 2. Samples are not sorted by length
(`data.window`): batches have one shape anyway, and most would hold no description, so that the output predictor would
learn in few steps.

Give `--config.init.checkpoint`, `--config.data.source` and
`--config.data.images`.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "model": "demo",
            "data": {"max_length": 768, "lengths": (768,), "window": 1, "workers": 0},
            "optimizer": {
                "learning_rate": 5e-4,
                "predictor_learning_rate": 1e-3,
                "weight_decay": 0.01,
                "beta2": 0.98,
                "freeze_projector": True,
            },
            "global_batch_size": 16,
            "dtype": "float32",
            "remat": "none",
            "checkpoint": {"every": 50, "keep": 1},
            "log": {"tensorboard": False},
        }
    )
