"""How every test runs: on eight simulated CPU devices, at full precision, with one compile cache for all workers."""

import gc
import os
import signal
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

# jax reads these when it is imported, so they stand before anything that imports it. dynllava_jax itself must not be
# imported here: the shape checker instruments only modules that are imported after it.
os.environ.update(JAX_PLATFORMS="cpu", JAX_NUM_CPU_DEVICES="8", JAX_DEFAULT_MATMUL_PRECISION="highest")
# As `cli.cpu_threads` sets it: with fewer threads, two programs that run on all eight at a time wait for each other.
os.environ.setdefault("NPROC", "32")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent.parent / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
# Test programs run once on a handful of numbers: most of the time went into optimising their machine code, and into
# cutting it up for more threads than there are.
_FLAGS = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    "--xla_cpu_parallel_codegen_split_count=1"
)
if version("jaxlib").startswith("0.10."):  # later ones have no other emitters, and abort at a flag they do not know
    _FLAGS += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("XLA_FLAGS", _FLAGS)

# Tracing makes so many objects that the collector went through all that live every few seconds.
gc.set_threshold(20_000, 20, 20)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a shell's background jobs
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A soak is slow too, so that `-m 'not slow'` leaves both out."""
    for item in items:
        if item.get_closest_marker("soak"):
            item.add_marker(pytest.mark.slow)


_MAPS = Path("/proc/self/maps")
_MOST_MAPS = 20_000


@pytest.fixture(scope="module", autouse=True)
def few_programs_in_memory() -> Iterator[None]:
    """Forgets compiled programs when there are many.

    Each lies in several memory maps, of which Linux gives a process 65,530; one that needs another dies of it.
    """
    yield
    if _MAPS.exists() and len(_MAPS.read_bytes().splitlines()) > _MOST_MAPS:
        import jax  # only after the variables above

        jax.clear_caches()
        gc.unfreeze()
    gc.collect()
    gc.freeze()  # what a module leaves behind, mostly JAX's caches, is not gone through again: that took two minutes


@pytest.fixture
def unchecked() -> Iterator[None]:
    """As a user calls it: pytest checks every annotation, nobody else does."""
    import jaxtyping

    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
