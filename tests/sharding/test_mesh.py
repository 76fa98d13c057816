import jax
import pytest

from dynllava_jax.errors import InputError
from dynllava_jax.sharding.mesh import make_mesh


@pytest.mark.parametrize(
    ("spec", "shape"),
    [
        ("data=2,tensor=4", (2, 1, 4)),
        (" data = 2 , tensor = 4 ", (2, 1, 4)),
        ({"fsdp": -1}, (1, 8, 1)),
        ("data=2,fsdp=-1,tensor=2", (2, 2, 2)),
        ("tensor=4", (1, 1, 4)),
        ("", (1, 1, 1)),
    ],
)
def test_sizes(spec, shape):
    assert tuple(make_mesh(spec).shape.values()) == shape
    assert make_mesh(spec).axis_names == ("data", "fsdp", "tensor")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("data=4,tensor=4", r"data=4,tensor=4 needs 16 devices, but there are 8"),
        ("tensr=4", r"'tensr' is unknown; did you mean tensor\?"),
        ("pipeline=4,q=1", r"'pipeline' is unknown"),
        ("data=-1,fsdp=-1", r"Only one mesh axis may be -1, not data and fsdp"),
        ("data=3,fsdp=-1", r"3 does not divide the 8 devices"),
        ("data=0", r"data must be 1 or more"),
        ("data=two", r"'data=two' is not AXIS=SIZE"),
        ("data", r"'data' is not AXIS=SIZE"),
        ("data=2,data=4", r"names the axis data twice"),
    ],
)
def test_refused(spec, message):
    with pytest.raises(InputError, match=message):
        make_mesh(spec)


def test_devices_are_the_callers():
    devices = jax.devices()[4:6]
    assert make_mesh("tensor=-1", devices).devices.flatten().tolist() == devices
