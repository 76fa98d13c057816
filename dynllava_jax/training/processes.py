"""What the processes of a run have to agree on; nothing happens where there is only one."""

import re
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from dynllava_jax.errors import InputError

AUTO = "auto"


def join(where: str = AUTO) -> None:
    """Makes this process one of several; before anything else touches a device.

    Args:
        where: `HOST:PORT,COUNT,NUMBER`, or AUTO: what Slurm, a TPU pod or Open MPI tells.

    Raises:
        InputError: it is written otherwise, no cluster says anything, or the first process cannot be reached.
    """
    arguments: dict[str, Any] = {}
    if where != AUTO:
        if (match := re.fullmatch(r"([^,]+:\d+),(\d+),(\d+)", where)) is None or int(match[3]) >= int(match[2]):
            raise InputError(
                f"--distributed {where} is not HOST:PORT,COUNT,NUMBER, such as 10.0.0.1:1234,2,0 and …,2,1."
            )
        address, count, number = match.groups()
        arguments = {"coordinator_address": address, "num_processes": int(count), "process_id": int(number)}
    # On a CPU two dispatched programs run at the same time, and their collectives wait for each other for ever.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    try:
        jax.distributed.initialize(**arguments)
    except (ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--distributed finds no other processes ({reason}); give HOST:PORT,COUNT,NUMBER.") from error


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
