"""Several simulated devices of a CPU get threads to wait for each other in."""

import os
import re

_THREADS = 4
"""Of XLA's pool, for each device."""
_FLAG = re.compile(r"--xla_force_host_platform_device_count=(\d+)")


def give_cpu_threads() -> None:
    """Sets the size of XLA's pool before JAX is imported, where the user has not.

    A device holds one of the threads while it waits in a collective, and by default there are as many as cores: with
    more devices than that they wait for each other until XLA ends the process.
    """
    counts = [os.environ.get("JAX_NUM_CPU_DEVICES", ""), *_FLAG.findall(os.environ.get("XLA_FLAGS", ""))]
    devices = max((int(count) for count in counts if count.isdecimal()), default=1)
    if devices > 1:
        os.environ.setdefault("NPROC", str(max(_THREADS * devices, os.cpu_count() or 1)))
