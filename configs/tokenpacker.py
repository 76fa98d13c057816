"""Dynamic-LLaVA-7B on TokenPacker (paper table 2): 57 of 144 image tokens go beyond layer 2.

Starts from a converted LLaVA-TokenPacker-7B; both token kinds are dropped. `--config.sparsity.output_selector=None`
gives the rows "I". Keys to give: see dynamic_llava_7b.py.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict({"model": "dynamic_tokenpacker_7b"})
