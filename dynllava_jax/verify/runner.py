"""Which function serves which recorded case, and the run over all of them."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax

from dynllava_jax.errors import InputError
from dynllava_jax.verify import (
    attention,
    decode,
    inputs,
    nocache,
    predictors,
    prefill,
    token_packer,
    vision,
)
from dynllava_jax.verify.cases import Case, Recording, read_recording
from dynllava_jax.verify.compare import CaseReport, compare, failed
from dynllava_jax.verify.computed import Computed
from dynllava_jax.verify.subject import Subject
from dynllava_jax.verify.tolerance import Platform

CASES: dict[str, Callable[[Subject, Case], Computed]] = {
    "01": vision.features,
    "01b": vision.pictures,
    "02": predictors.logits,
    "03": attention.policy_attention,
    "04": prefill.dense,
    "05": prefill.sparse,
    "06": decode.teacher_forced,
    "07": nocache.official_rule,
    "08": prefill.sparse,
    "08b": prefill.sparse,
    "09": decode.turns,
    "09b": decode.turns,
    "11": token_packer.token_packer,
    "13": inputs.prepare_inputs,
}
"""By the number in front of a case's name. A case that is not here is reported as unsupported."""


class Verification:
    """A recording opened for verification; iterating runs it case by case.

    Attributes:
        names: the cases that are asked for and supported, in order.
        unsupported: those that are asked for and not.
    """

    def __init__(self, folder: Path, wanted: Sequence[str] = (), *, platform: Platform = "cpu"):
        """Reads and checks the folder; nothing is converted or computed yet.

        Raises:
            InputError: no such folder or case, or no device of that platform.
        """
        self.recording: Recording = read_recording(folder)
        chosen = self.recording.choose(list(wanted))
        self.names = tuple(name for name in chosen if number(name) in CASES)
        self.unsupported = tuple(name for name in chosen if number(name) not in CASES)
        self._platform: Platform = platform
        self._device = _device(platform)

    def run(self, dump: Path | None = None) -> Iterator[tuple[str, CaseReport]]:
        """Converts the checkpoint and yields each case's report; `dump` takes what was computed as CASE.npz."""
        if dump is not None:
            dump.mkdir(parents=True, exist_ok=True)
        with _exactly(self._device):
            subject = Subject.convert(self.recording)
        for name in self.names:
            with _exactly(self._device):
                report, computed = _run(subject, self.recording.case(name), self._platform)
            if dump is not None and computed is not None:
                computed.dump(dump / f"{name}.npz")
            yield name, report


def number(name: str) -> str:
    """The "05" of "05_prefill_kv"."""
    return name.split("_")[0]


def _run(subject: Subject, case: Case, platform: Platform) -> tuple[CaseReport, Computed | None]:
    try:
        computed = CASES[number(case.name)](subject, case)
    except InputError as error:
        return failed(case, str(error), platform), None
    return compare(case, computed, platform), computed


@contextlib.contextmanager
def _exactly(device: jax.Device) -> Iterator[None]:  # pyright: ignore[reportInvalidTypeForm]
    """Parity is a statement about float32: accelerators multiply in fewer bits unless they are told not to."""
    with jax.default_device(device), jax.default_matmul_precision("highest"):
        yield


def _device(platform: Platform) -> jax.Device:  # pyright: ignore[reportInvalidTypeForm]
    try:
        return jax.devices(platform)[0]
    except RuntimeError as error:
        raise InputError(f"--platform {platform}: {str(error).splitlines()[0]}") from None
