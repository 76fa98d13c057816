"""What all of `dynllava bench` tells in the same way: the machine, and each record as soon as it is there."""

import argparse
import contextlib
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from dynllava_jax.cli.output import write_json
from dynllava_jax.errors import InputError


def add_round(parser: argparse.ArgumentParser, of: str) -> None:
    """Adds `--round`; `of` says what of."""
    parser.add_argument("--round", type=float, default=0.2, metavar="SECONDS", help=f"of one round of {of} (0.2)")


def check_round(seconds: float) -> None:
    """Raises InputError for what is no time to wait for. With 0 a round is one call."""
    if not 0 <= seconds < math.inf:
        raise InputError(f"--round must be a number of seconds, 0 or more, not {seconds}.")


def measured_machine(dtype: str, least: float) -> Any:
    """Measures the device in the dtype that is benchmarked, and says what it can do."""
    from dynllava_jax.benchmark.timing import machine

    found = machine(dtype, least=least)
    print(
        f"dynllava: {found.kind}: matrix product {found.flops / 1e12:.3g} TFLOP/s in {dtype}, copy "
        f"{found.bandwidth / 1e9:.0f} GB/s",
        file=sys.stderr,
    )
    return found


@contextlib.contextmanager
def enough_memory(less: str) -> Iterator[None]:
    """Raises InputError where the device has too little for what is measured; `less` says of what to ask for less."""
    try:
        yield
    except RuntimeError as error:  # JAX's, which has no kind of its own for it
        if "out of memory" not in str(error).lower() and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        told = " ".join(str(error).split())
        raise InputError(f"The device has too little memory ({told}); ask for less with {less}.") from error


def tell(where: str | None, records: Iterable[dict[str, Any]], line: Callable[[dict[str, Any]], str]) -> None:
    """Prints them one by one, as JSON alone where `where` is "-"; a FILE holds all so far, whatever ends the rest."""
    done: list[dict[str, Any]] = []
    for record in records:
        done.append(record)
        if where == "-":
            write_json(where, [record])
            continue
        print(line(record), flush=True)
        if where is not None:
            write_json(where, done)


def memory(record: dict[str, Any]) -> str:
    """The peak in words, which only grows: what needed less than something before it, such as making the weights."""
    peak = record["peak_bytes"]
    if peak is None:
        return "peak unknown"
    most = " at most" if peak == record["peak_bytes_before"] else ""
    return f"peak{most} {peak / 2**30:.2f} GiB"
