"""What the kernels serve; whatever else is asked goes to XLA."""

import jax.numpy as jnp

_DTYPES = ("float32", "bfloat16")
_LARGEST_HEAD = 128


def check(dtype: jnp.dtype, head_dim: int) -> None:
    """Raises NotImplementedError for a dtype or head dimension that no kernel serves."""
    if dtype.name not in _DTYPES:
        raise NotImplementedError(f"it serves {' and '.join(_DTYPES)}, not {dtype.name}")
    if head_dim > _LARGEST_HEAD:
        raise NotImplementedError(f"head dimension {head_dim} is above {_LARGEST_HEAD}")
