"""Where arrays stand is settled once: neither a cut answer nor growth nor a mesh compiles a program again."""

import dataclasses
from collections.abc import Iterator

import jax
import numpy as np
import pytest

import dynllava_jax as dl
from dynllava_jax.inference.buckets import Buckets, Shape
from dynllava_jax.inference.decode import DecodeState
from dynllava_jax.inference.engine import Engine
from dynllava_jax.inference.run import Prepared, Run
from dynllava_jax.sharding.mesh import make_mesh
from dynllava_jax.sharding.specs import param_shardings
from dynllava_jax.testing import tiny_assistant, tiny_config, tiny_model
from tests.inference.random_batches import prompt

CONFIG = tiny_config()
BUCKETS = Buckets(rows=(2,), images=(1,), length=(64,), answer=(256,), instruction=(32,), segment=64)
SHAPE = Shape(rows=2, images=1, length=64, deep_length=64, answer=256)


@pytest.fixture(
    scope="module", params=[None, pytest.param("data=2,tensor=2", marks=pytest.mark.slow)], ids=["device", "mesh"]
)
def engine(request: pytest.FixtureRequest) -> Engine:
    """As `dynllava_jax.load` makes it: the weights are bound to their devices."""
    model = tiny_model()
    if request.param is None:
        return Engine(jax.device_put(model, jax.devices()[0]), buckets=BUCKETS)
    mesh = make_mesh(request.param)
    return Engine(jax.device_put(model, param_shardings(model, mesh, CONFIG)), buckets=BUCKETS, mesh=mesh)


@pytest.fixture
def compiled() -> Iterator[list[str]]:
    events: list[str] = []

    def listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            events.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield events
    jax.monitoring.unregister_event_duration_listener(listen)


def prompts() -> list[Prepared]:
    rng = np.random.default_rng(0)
    return [prompt(rng, text, 1, budget=256) for text in (20, 40)]


def test_nothing_is_compiled_after_the_warmup(engine: Engine, compiled: list[str]) -> None:
    engine.compile(SHAPE, CONFIG.sparsity)
    assert compiled
    compiled.clear()
    run = Run.open(engine, prompts(), CONFIG.sparsity)
    assert run.shape == SHAPE
    run.advance()
    run.cut({0: 5})
    while not run.finished:
        run.advance()
    assert run.cache is not None
    assert len(run.cache.deep.blocks) > 1
    assert len(run.tokens[0]) == 5
    assert not compiled


def test_nothing_reaches_the_devices_unasked(engine: Engine) -> None:
    """As those see it who look for transfers with `JAX_TRANSFER_GUARD`; what is compiled brings constants along."""
    engine.compile(SHAPE, CONFIG.sparsity)
    with jax.transfer_guard("disallow"):
        run = Run.open(engine, prompts(), CONFIG.sparsity)
        run.advance()
        run.cut({0: 5})
        while not run.finished:
            run.advance()


def test_grown_blocks_are_split_as_the_first(engine: Engine) -> None:
    """Keys and values alike: a block that stood whole on every device would cost as many times its bytes."""
    capacities = SHAPE.deep_capacities(CONFIG.sparsity.output_keep_rate)
    assert len(capacities) > 1
    state, _ = engine.open(*engine._nothing(SHAPE), SHAPE, CONFIG.sparsity)
    grown = engine._make_room(_full(engine, state), SHAPE, CONFIG.sparsity).cache.deep
    assert grown.capacity == capacities[1]
    for part in grown.blocks[1]:
        assert part.sharding == grown.blocks[0].key.sharding


def _full(engine: Engine, state: DecodeState) -> DecodeState:
    """The same state as if the first row had filled its deep cache."""
    deep = state.cache.deep
    length = engine.place(np.array([deep.capacity, 1], np.int32))
    cache = dataclasses.replace(state.cache, deep=dataclasses.replace(deep, length=length))
    return dataclasses.replace(state, cache=cache, done=engine.place(np.zeros(2, bool)))


def test_a_mesh_of_others_in_context_is_refused() -> None:
    """JAX would trace each program for its devices, and fail in the midst of one."""
    assistant = tiny_assistant()
    for devices in (2, 8):
        with (
            jax.set_mesh(jax.make_mesh((devices,), ("x",))),
            pytest.raises(dl.InputError, match=f"jax.set_mesh is in force with the mesh x={devices}, which is not the"),
        ):
            assistant.generate(None, "What is it?", max_new_tokens=2)
    with jax.set_mesh(jax.make_mesh((2,), ("x",))), pytest.raises(dl.InputError, match="leave it before the model is"):
        dl.load()


def test_the_own_mesh_may_be_in_context() -> None:
    mesh = make_mesh("tensor=2")
    with jax.set_mesh(mesh):
        answer = dl.load(mesh=mesh).generate(None, "What is it?", max_new_tokens=2)
    assert answer.token_ids == dl.load().generate(None, "What is it?", max_new_tokens=2).token_ids


def test_a_device_beside_a_mesh_of_others_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    mesh, others = make_mesh("tensor=2"), jax.devices()[2:]
    monkeypatch.setattr(jax, "devices", lambda platform=None: others)
    with pytest.raises(dl.InputError, match="The mesh lies on devices of kind cpu, not tpu; leave device out"):
        dl.load(mesh=mesh, device="tpu")
