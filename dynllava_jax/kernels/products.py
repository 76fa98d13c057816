"""The door to fused products: a decoder layer's, for one new token of each sample (see `products_triton`)."""

from collections.abc import Mapping

from dynllava_jax.errors import InputError
from dynllava_jax.kernels.products_triton import Kept as Kept
from dynllava_jax.kernels.products_triton import Products as Products
from dynllava_jax.kernels.products_triton import Stream as Stream

_FUSED: Mapping[str, Products] = {"triton": Products(), "triton-interpret": Products(interpret=True)}


def fused_products(name: str | None) -> Products | None:
    """The kernels of that name; None for None, which leaves each product to XLA.

    Raises:
        InputError: there are none of that name.
    """
    if name is not None and name not in _FUSED:
        raise InputError(f"products has no implementation {name!r}; there are {', '.join(_FUSED)}.")
    return None if name is None else _FUSED[name]
