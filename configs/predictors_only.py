"""The two predictors learn, all else is frozen and takes no optimizer memory. Keys: see dynamic_llava_7b.py."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict({"model": "dynamic_llava_7b", "optimizer": {"freeze_projector": True, "freeze_decoder": True}})
