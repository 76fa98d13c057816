"""Dynamic-LLaVA-7B as the paper trains it (section 4.1; official `run/train_dynamic_llava_7b.sh`).

One epoch over the image samples of LLaVA-1.5's mixture from LLaVA-1.5-7B: learning rate 5e-6, predictors 2e-4, cosine
with 3 % warmup, temperature 1 -> 0.1, keep rates 0.2 and 0.5, batch 64, at most 2048 tokens. That is what
`TrainConfig` has as defaults. The projector is trained, as in the official scripts; the paper's text freezes it:
`--config.optimizer.freeze_projector=True`.

Give `--config.init.checkpoint`, `--config.data.source` and `--config.data.images`.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict({"model": "dynamic_llava_7b"})
