"""Which programs XLA is told something about."""

import jax
import pytest

from dynllava_jax.sharding.xla_options import xla_options


class Device:
    def __init__(self, platform: str):
        self.platform = platform


@pytest.mark.parametrize("device", [None, Device("cpu"), Device("tpu")])
def test_other_devices_than_gpus_are_told_nothing(device: Device | None) -> None:
    assert xla_options(device, "float32") is None
    assert xla_options(device, "float32", keeps_products=True) is None
    told = xla_options(device, "bfloat16")
    assert (told is not None) == (device is not None and device.platform == "cpu")


def test_every_option_is_one_that_xla_knows() -> None:
    options = xla_options(Device("gpu"), "bfloat16", keeps_products=True)
    assert options
    program = jax.jit(lambda x: x + 1).lower(1.0)
    program.compile(compiler_options=options)
    with pytest.raises(jax.errors.JaxRuntimeError, match="xla_gpu_no_such_option"):
        program.compile(compiler_options={"xla_gpu_no_such_option": True})


def test_products_that_are_kept_have_an_option_of_their_own() -> None:
    """Whoever keeps none, such as generation, reads weights in their stack, which takes what is off otherwise."""
    general = xla_options(Device("gpu"), "bfloat16")
    kept = xla_options(Device("gpu"), "bfloat16", keeps_products=True)
    assert general is not None
    assert kept == general | {"xla_gpu_enable_dynamic_slice_fusion": False}
    assert "xla_gpu_enable_dynamic_slice_fusion" not in general
