"""Which code answers which case, and the run over a folder."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import jax

from dynllava_jax.errors import InputError
from dynllava_jax.kernels import api
from dynllava_jax.verify import (
    attention,
    decode,
    inputs,
    nocache,
    predictors,
    prefill,
    text,
    token_packer,
    training,
    vision,
)
from dynllava_jax.verify.cases import Case, Recording
from dynllava_jax.verify.compare import CaseReport, compare, failed
from dynllava_jax.verify.computed import Computed
from dynllava_jax.verify.report import Report
from dynllava_jax.verify.subject import Subject
from dynllava_jax.verify.tolerance import Platform

_LOG = logging.getLogger(__name__)

SUPPORTED: Mapping[str, Callable[[Subject, Case], Computed]] = {
    "01_vision_features": vision.features,
    "01b_image_preprocess": vision.pictures,
    "02_predictors": predictors.logits,
    "03_masked_softmax": attention.policy_attention,
    "04_dense": prefill.dense,
    "05_prefill_kv": prefill.sparse,
    "06_decode_kv": decode.teacher_forced,
    "07_decode_nocache": nocache.official_rule,
    "08_instruct_prefill": prefill.sparse,
    "08b_instruct_prefill_multiround": prefill.sparse,
    "09_multi_turn_kv": decode.turns,
    "09b_multi_turn_kv_no_instruct": decode.turns,
    "10_train": training.one_pass,
    "10b_train_instruct": training.one_pass,
    "11_tokenpacker": token_packer.packed,
    "12_optimizer_groups": training.optimizer,
    "13_prepare_inputs": inputs.prepare_inputs,
    "14_train_trajectory": training.trajectory,
    "15_preprocess_text": text.conversations,
}
"""A case that is not here is reported as unsupported, and nothing is claimed about it."""


def verify(
    recording: Recording,
    names: tuple[str, ...],
    *,
    platform: Platform = "cpu",
    attention: str | None = None,
    dump: Path | None = None,
    on_case: Callable[[str, CaseReport | None], None] = lambda name, report: None,
) -> Report:
    """Compares these cases of a recording; matrix products run in full float32 whatever the platform prefers.

    Args:
        recording: the folder.
        names: the cases asked for.
        platform: where to compute.
        attention: implementation (see `kernels.api`; None: the platform's best); what it does not serve, XLA does.
        dump: folder for what was computed, one NAME.npz per case.
        on_case: is told each case as it is done, with None for an unsupported one.

    Raises:
        InputError: no such platform here, or no such implementation; a checkpoint that cannot be converted; a file
            that cannot be read or written.
    """
    device = device_of(platform)
    if attention is not None:
        api.check_name(attention)
    report = Report({}, [])
    with jax.default_device(device), jax.default_matmul_precision("highest"):
        subject = Subject.convert(recording, attention)
        for name in names:
            if name not in SUPPORTED:
                report.unsupported.append(name)
                on_case(name, None)
                continue
            report.cases[name] = _run(subject, recording.case(name), platform, dump, recording.dtype)
            on_case(name, report.cases[name])
    return report


def _run(subject: Subject, case: Case, platform: Platform, dump: Path | None, dtype: str) -> CaseReport:
    try:
        computed = SUPPORTED[case.name](subject, case)
    except InputError as error:  # the package refuses what the official code ran: a failed case, not a bad folder
        return failed(case, f"refused: {error}", platform)
    except Exception as error:  # a recording that our code cannot read as it should: the other cases still count
        _LOG.debug("%s", case.name, exc_info=True)
        return failed(case, f"stopped with {type(error).__name__}: {error}", platform)
    if dump is not None:
        try:
            dump.mkdir(parents=True, exist_ok=True)
            computed.dump(dump / f"{case.name}.npz")
        except OSError as error:
            raise InputError(f"--dump {dump} cannot be written: {error.strerror}.") from error
    return compare(case, computed, platform, dtype)


def device_of(platform: Platform) -> jax.Device:  # pyright: ignore[reportInvalidTypeForm]
    """Where to compute. Raises InputError when there is no such device here."""
    try:
        return jax.devices(platform)[0]
    except RuntimeError:
        here = ", ".join(sorted({device.platform for device in jax.devices()}))
        raise InputError(f"--platform {platform}: JAX finds no such device here, only {here}.") from None
