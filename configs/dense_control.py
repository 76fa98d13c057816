"""The epoch of dynamic_llava_7b.py without sparsification: what the extra training alone is worth.

The paper compares with LLaVA-1.5 as published, which has seen one epoch less. Keys to give: see dynamic_llava_7b.py.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict({"model": "llava_1_5_7b"})
