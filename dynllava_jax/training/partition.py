"""What is trained and what stays as it is."""

from dynllava_jax.checkpoint.adapters import is_adapter
from dynllava_jax.checkpoint.leaves import is_selector
from dynllava_jax.config.training import OptimizerConfig


def is_trained(path: str, config: OptimizerConfig) -> bool:
    """Whether a parameter has a gradient, moments and a place in the optimizer.

    The decoder's own weights rest while it is trained by low-rank adapters.
    """
    if is_adapter(path):
        return True
    if is_selector(path):
        return not config.freeze_predictors
    part = path.partition("/")[0]
    frozen = {
        "vision": config.freeze_vision,
        "projector": config.freeze_projector,
        "decoder": config.freeze_decoder or config.lora is not None,
    }
    return not frozen[part]
