"""A file from an http(s) address, of bounded size and in bounded time."""

import http.client
import time
import urllib.error
import urllib.request

from dynllava_jax.errors import InputError

MAX_BYTES = 64 * 2**20
MAX_SECONDS = 30.0


def download(address: str) -> bytes:
    """The content at `address`.

    Raises:
        InputError: names the address and the reason: not reachable, refused, more than MAX_BYTES, or longer than
            MAX_SECONDS.
    """
    deadline = time.monotonic() + MAX_SECONDS
    chunks: list[bytes] = []
    size = 0
    try:
        request = urllib.request.Request(address, headers={"User-Agent": "dynllava_jax"})
        with urllib.request.urlopen(request, timeout=MAX_SECONDS) as response:
            while chunk := response.read1(2**16):
                chunks.append(chunk)
                size += len(chunk)
                if size > MAX_BYTES:
                    raise InputError(f"{address} is larger than {MAX_BYTES // 2**20} MiB; give a smaller image.")
                if time.monotonic() > deadline:
                    raise InputError(f"{address} did not arrive within {MAX_SECONDS:.0f} s; save it and give the file.")
            expected = response.headers.get("Content-Length", "")
    except InputError:
        raise
    except urllib.error.HTTPError as error:
        with error:
            raise InputError(f"{address} cannot be downloaded: status {error.code} {error.reason}.") from None
    except urllib.error.URLError as error:
        raise InputError(f"{address} cannot be downloaded: {error.reason}.") from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise InputError(f"{address} cannot be downloaded: {error}.") from None
    if expected.isdigit() and int(expected) != size:
        raise InputError(f"{address} broke off after {size} of {expected} bytes; try again.")
    return b"".join(chunks)
