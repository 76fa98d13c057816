"""Dynamic-LLaVA-13B: the recipe of the 7B model, 4 samples at a time on each device.

Official `run/train_dynamic_llava_13b.sh`: 8 GPUs x 4 samples x 2 accumulated. Keys to give: see dynamic_llava_7b.py.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict({"model": "dynamic_llava_13b", "device_batch_size": 4})
