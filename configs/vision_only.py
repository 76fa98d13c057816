"""Dynamic-LLaVA-7B that drops image tokens only (the paper's rows "I"). Keys to give: see dynamic_llava_7b.py."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict({"model": "dynamic_llava_7b", "sparsity": {"output_selector": None}})
