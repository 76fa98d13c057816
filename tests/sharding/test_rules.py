import dataclasses

import pytest

from dynllava_jax.errors import InputError
from dynllava_jax.sharding.rules import RULES, Rule


def test_parameters_and_activations_differ_where_samples_take_the_axis():
    assert RULES.parameter(("embed", "mlp")) == (("fsdp",), ("tensor",))
    assert RULES.activation(("batch", "seq", "embed")) == (("data", "fsdp"), (), ())
    assert RULES.activation((None, "batch", "kv_heads", None, None)) == ((), ("data", "fsdp"), ("tensor",), (), ())


def test_collision_is_an_error():
    with pytest.raises(InputError, match="put the mesh axis tensor on two dimensions"):
        RULES.parameter(("heads", "mlp"))
    spread = dataclasses.replace(RULES, seq=Rule(activation=("fsdp",)))
    with pytest.raises(InputError, match="mesh axis fsdp"):
        spread.activation(("batch", "seq", "embed"))


def test_unknown_axis_is_an_error():
    with pytest.raises(InputError, match="'head' has no sharding rule; known are batch"):
        RULES.parameter(("embed", "head"))
