"""Which programs XLA is told something about."""

import jax
import pytest

from dynllava_jax.sharding.xla_options import training_options, xla_options


class Device:
    def __init__(self, platform: str):
        self.platform = platform


@pytest.mark.parametrize("device", [None, Device("cpu"), Device("tpu")])
def test_other_devices_than_gpus_are_told_nothing(device: Device | None) -> None:
    assert xla_options(device) is None
    assert training_options(device) is None


def test_every_option_is_one_that_xla_knows() -> None:
    options = training_options(Device("gpu"))
    assert options
    program = jax.jit(lambda x: x + 1).lower(1.0)
    program.compile(compiler_options=options)
    with pytest.raises(jax.errors.JaxRuntimeError, match="xla_gpu_no_such_option"):
        program.compile(compiler_options={"xla_gpu_no_such_option": True})


def test_training_is_told_more_and_generation_is_not() -> None:
    """Generation reads weights in their stack, which takes what training must not have."""
    general, training = xla_options(Device("gpu")), training_options(Device("gpu"))
    assert general is not None
    assert training is not None
    assert training == general | {"xla_gpu_enable_dynamic_slice_fusion": False}
    assert "xla_gpu_enable_dynamic_slice_fusion" not in general
