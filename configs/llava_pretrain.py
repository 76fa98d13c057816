"""LLaVA-1.5's first stage: a new projector learns from image captions (official `scripts/v1_5/pretrain.sh`).

LLaVA-1.5-7B's published settings on the 558K captions; 13B with `--config.model=llava_1_5_13b`. Give
`--config.init.checkpoint`, whose projector is made anew, `--config.data.source` and `--config.data.images`.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "model": "llava_1_5_7b",
            "template": "plain",
            "image_aspect": "crop",  # the official script leaves its flag at "square", CLIP's own preprocessing
            "init": {"fresh": ("projector",)},
            "optimizer": {"learning_rate": 1e-3, "freeze_decoder": True},
            "global_batch_size": 256,
        }
    )
