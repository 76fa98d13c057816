"""The door to attention: who is asked, in which order, and what is said."""

import contextlib
import logging

import jax
import jax.numpy as jnp
import pytest

from dynllava_jax.errors import InputError
from dynllava_jax.kernels import api
from dynllava_jax.kernels.target import target
from dynllava_jax.nn.constrain import OneDevice, constraints

X = jnp.ones((1, 1, 4, 8))


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"no implementation 'cuda'.*xla"):
        api.attention(X, X, X, implementation="cuda")


@pytest.mark.parametrize(
    ("wanted", "platform", "served"),
    [
        (None, "cpu", True),
        ("xla", "tpu", True),
        ("triton-interpret", "cpu", True),
        ("triton", "gpu", True),
        (("triton", "xla"), "cpu", True),
        (("tpu", "triton"), "gpu", True),
        ("triton", "tpu", False),
        (("tpu", "triton"), "cpu", False),
    ],
)
def test_what_no_platform_has_is_known_beforehand(wanted: api.Implementation, platform: str, served: bool) -> None:
    with contextlib.nullcontext() if served else pytest.raises(InputError, match=f"and this is a {platform}; name ano"):
        api.check_implementation(wanted, platform)


def test_the_next_one_is_tried_and_the_log_says_why_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def small_only(*args: object, **options: object) -> None:
        raise NotImplementedError("head dimension 8 is not a multiple of 64")

    monkeypatch.setattr(api, "_ATTENTION", {"fancy": small_only, **api._ATTENTION})
    api._say_once.cache_clear()
    with caplog.at_level(logging.INFO, logger=api.__name__):
        for _ in range(2):
            api.attention(X, X, X, implementation=("fancy", "xla"))
    assert [record.getMessage() for record in caplog.records] == [
        "attention runs as xla (not fancy: head dimension 8 is not a multiple of 64)"
    ]
    with pytest.raises(InputError, match="multiple of 64"):
        api.attention(X, X, X, implementation="fancy")


def test_none_takes_what_chosen_says() -> None:
    assert api.chosen("cpu") == dict.fromkeys(("attention", "policy_attention", "cached_attention"), ("xla",))


def test_one_device_may_be_another_than_the_default() -> None:
    class Gpu:
        platform, device_kind = "gpu", "NVIDIA H100 80GB HBM3"

    assert target().platform == "cpu"
    with constraints(OneDevice(Gpu())):
        assert target() == ("gpu", "NVIDIA H100 80GB HBM3")
    with constraints(OneDevice(jax.devices()[3])):
        assert target().platform == "cpu"


def test_a_name_may_be_given_for_every_operation() -> None:
    assert api._ATTENTION.keys() == api._POLICY.keys() == api._CACHED.keys()
