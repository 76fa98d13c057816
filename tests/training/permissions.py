"""A folder that cannot be written, for root too."""

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

_VERSION = 0x20080522
"""Of the kernel's structures, `_LINUX_CAPABILITY_VERSION_3`."""
_DAC_OVERRIDE = 1 << 1
"""What lets root write where the permissions do not, see capabilities(7)."""


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Nothing can be made or removed in a folder; root is like others in this thread alone, and stays its owner."""
    mode = folder.stat().st_mode
    with _like_others() if os.geteuid() == 0 else contextlib.nullcontext():
        folder.chmod(0o555)
        try:
            yield
        finally:
            folder.chmod(mode)


@contextlib.contextmanager
def _like_others() -> Iterator[None]:
    libc = ctypes.CDLL(None)
    header = (ctypes.c_uint32 * 2)(_VERSION, 0)
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; then the same of the higher 32 bits
    assert libc.capget(header, sets) == 0
    before = sets[0]
    sets[0] = before & ~_DAC_OVERRIDE
    assert libc.capset(header, sets) == 0
    try:
        yield
    finally:
        sets[0] = before
        assert libc.capset(header, sets) == 0
