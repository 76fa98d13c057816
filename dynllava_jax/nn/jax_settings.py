"""What of JAX's configuration this package's numbers depend on."""

from typing import Any

import jax
from jaxtyping import Array, Integer, Key

from dynllava_jax.errors import InputError

_REFUSED = {
    "jax_enable_x64": (True, "64-bit numbers"),
    "jax_numpy_rank_promotion": ("raise", "no broadcasting between ranks"),
    "jax_numpy_dtype_promotion": ("strict", "no mixed dtypes"),
    "jax_threefry_partitionable": (False, "other random numbers, which a run that goes on would not draw again"),
}
"""Options, the value of each that changes what is computed or stops it half-way, and what that value asks for."""


def check_jax_settings() -> None:
    """Called before anything is computed; all other options may be set as one likes.

    Raises:
        InputError: an option of JAX is set to what the models are not made for.
    """
    for name, (refused, meaning) in _REFUSED.items():
        if getattr(jax.config, name) == refused:
            value = int(refused) if isinstance(refused, bool) else refused
            raise InputError(
                f"JAX is set to {name.upper()}={value} ({meaning}), which this package does not support: leave it out "
                f"of the environment, or set it otherwise with jax.config.update({name!r}, …)."
            )


def default_device() -> Any:
    """The device that `jax.default_device` names, itself or by its platform; where it does not, JAX's first."""
    named = jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]
    return jax.devices(named)[0] if named is None or isinstance(named, str) else named


def random_key(seed: Integer[Array, ""] | int) -> Key[Array, ""]:
    """Threefry, whatever `JAX_DEFAULT_PRNG_IMPL` says.

    With `rbg` and `unsafe_rbg` what one row of a `vmap` draws depends on the other rows: a sample would draw otherwise
    alone than in a batch, and a run that goes on elsewhere would not be the same run.
    """
    return jax.random.key(seed, impl="threefry2x32")
