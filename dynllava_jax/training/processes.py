"""What the processes of a run have to agree on; nothing happens where there is only one."""

import jax
import numpy as np
from jax.experimental import multihost_utils

from dynllava_jax.errors import InputError


def is_first() -> bool:
    return jax.process_index() == 0


def same(value: int) -> int:
    """The first process's value, on every process. Collective."""
    return value if jax.process_count() == 1 else int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def raise_together(error: BaseException | None) -> None:
    """Raises on every process if any has an error, so that none waits for one that is gone. Collective.

    Raises:
        InputError: another process failed.
        BaseException: `error` itself.
    """
    if jax.process_count() > 1:
        failed = np.flatnonzero(multihost_utils.process_allgather(np.int32(error is not None)))
        if error is None and len(failed):
            raise InputError(f"Process {failed[0]} failed; its own message says why.")
    if error is not None:
        raise error
