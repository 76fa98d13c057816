"""LLaVA-1.5's second stage: projector and decoder learn from the whole 665K mixture, samples without image included.

LLaVA-1.5-7B's published settings (official `scripts/v1_5/finetune.sh`); 13B with `--config.model=llava_1_5_13b`.
Start from the first stage's last checkpoint. Keys to give: see dynamic_llava_7b.py.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "model": "llava_1_5_7b",
            # Not the first stage's, which its checkpoint would pass on.
            "template": "vicuna_v1",
            "image_aspect": "pad",
            "data": {"require_image": False},
            "optimizer": {"learning_rate": 2e-5},
            "global_batch_size": 128,
        }
    )
