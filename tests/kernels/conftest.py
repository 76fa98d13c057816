"""Small tiles and chunks, so that short sequences have several."""

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module")
def small_tiles() -> Iterator[None]:
    from dynllava_jax.kernels import tuning  # only after the shape checker is in place

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuning, "CHUNK", 32)
        patch.setattr(tuning, "_TPU_SIDE", {2: 128, 4: 128})
        yield
