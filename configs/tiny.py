"""A model of a few hundred kilobytes, to see a whole run in a minute on a CPU; the tests' config.

Give `--config.data.source`, `--config.data.images` and `--config.init.checkpoint`, or `--config.init.tokenizer` to
begin with random weights: a tokenizer of 512 ids at most, such as that of `tests/goldens/mha/checkpoint`.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "model": "tiny",
            "data": {"max_length": 256, "workers": 0, "window": 4},
            "optimizer": {"learning_rate": 1e-3, "predictor_learning_rate": 1e-3},
            "loss": {"min_answer_tokens": 8, "chunk": 64},
            "global_batch_size": 8,
            "dtype": "float32",
            "remat": "none",
            "checkpoint": {"every": 10},
            "eval": {"samples": 8},
            "log": {"health_every": 5, "tensorboard": False},
        }
    )
