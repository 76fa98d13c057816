"""The same prompt through a PyTorch folder and through the checkpoint made from it, or the other way round.

The PyTorch side is a process of its own (`torch_side`), so that one of the two models is in memory at a time and the
official code runs in the Python that it wants. T tokens that reach the last layer, V vocabulary.
"""

import dataclasses
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from dynllava_jax.checkpoint.load import load
from dynllava_jax.checkpoint.paths import AnyPath, as_path
from dynllava_jax.checkpoint.source import open_source
from dynllava_jax.config.model import ModelConfig
from dynllava_jax.convert import tower
from dynllava_jax.convert.export_plan import Family, chosen, recorded
from dynllava_jax.convert.hub import locate
from dynllava_jax.convert.read_torch import read_json
from dynllava_jax.convert.table import OFFICIAL
from dynllava_jax.convert.torch_source import TorchSource, has_tokenizer, open_torch
from dynllava_jax.data import spans
from dynllava_jax.data.batch import make_batch
from dynllava_jax.data.prompt import IMAGE_TOKEN
from dynllava_jax.data.tokenizer import Tokenizer
from dynllava_jax.errors import InputError
from dynllava_jax.inference.buckets import Buckets
from dynllava_jax.inference.load import without_untrained
from dynllava_jax.inference.prefill import PrefillPlan, prefill
from dynllava_jax.inference.prepare import Preparer
from dynllava_jax.inference.request import Request
from dynllava_jax.model.probe import Probe
from dynllava_jax.verify.prefill import positions_after
from dynllava_jax.verify.tolerance import LOGITS

Kind = Literal["official", "hf", "text"]
"""The official code, transformers' LLaVA, or transformers' language model, which sees no picture."""

_PROGRAM = Path(__file__).with_name("torch_side.py")


@dataclasses.dataclass(frozen=True)
class TorchSide:
    """How the PyTorch model is run.

    Attributes:
        official: a checkout of the official code, which the official layout needs.
        python: the interpreter that has its packages.
        vision_tower: folder of the tower, for the official code, which reads it from one.
        base: folder of the model that adapters or a projector alone belong to.
        dtype: in which both sides compute.
    """

    official: Path | None = None
    python: str = sys.executable
    vision_tower: Path | None = None
    base: Path | None = None
    dtype: str = "float32"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How far the two are apart.

    Attributes:
        worst: largest difference of a logit over all tokens that both models kept.
        tolerance: what the dtype allows it to be.
        tokens: how many tokens were compared; apart: how many only one of the two kept.
        dtype: in which both computed.
    """

    worst: float
    tolerance: float
    tokens: int
    apart: int
    dtype: str

    @property
    def ok(self) -> bool:
        """In float32 both must keep the same tokens; halves round scores that are nearly equal apart."""
        return self.worst <= self.tolerance and (self.apart == 0 or (self.dtype != "float32" and self.tokens > 0))

    def __str__(self) -> str:
        kept = f"; {self.apart} tokens are kept by one side only" if self.apart else ""
        return (
            f"logits of {self.tokens} tokens in {self.dtype}: worst difference {self.worst:.2e}, allowed "
            f"{self.tolerance:.2e}: {'ok' if self.ok else 'FAIL'}{kept}"
        )


def kind_of(torch: Path | str, base: Path | None = None) -> Kind:
    """Whose code runs that folder or hub name. Raises InputError for adapters of a llava-hf model."""
    return _kind(open_torch(locate(torch), base, []))


def _kind(source: TorchSource) -> Kind:
    if source.base is not None and source.layout is not OFFICIAL:
        raise InputError(f"--verify-logits: {source.folder} is a part of a llava-hf model, which no code here runs.")
    return "text" if source.bare else "official" if source.layout is OFFICIAL else "hf"


def check_source(torch: Path | str, side: TorchSide) -> None:
    """Before a conversion of that folder or hub name: raises InputError where `compare` would."""
    source = open_torch(locate(torch), side.base, [])
    kind = _kind(source)
    _call(side, kind)
    if source.tokenizer is None:
        raise InputError(_no_tokenizer(source.folder))
    _tower(source.folder, source.config, kind, side)


def check_target(checkpoint: Path | str, torch: Path | str, family: Family, side: TorchSide) -> None:
    """Before an export of that checkpoint to the folder `torch`: raises InputError where `compare` would."""
    _call(side, family)
    opened = open_source(checkpoint)
    if not has_tokenizer(opened.files):
        raise InputError(_no_tokenizer(checkpoint))
    if family == "official" and not chosen(family, recorded(opened.facts)).apart:  # one that is apart goes along
        _tower(as_path(torch), read_json(opened.files / "config.json"), family, side)


def _no_tokenizer(where: Any) -> str:
    return f"--verify-logits: {where} has no tokenizer to ask with; copy the model's tokenizer files into its folder."


def _tower(folder: AnyPath, config: Mapping[str, Any], kind: Kind, side: TorchSide) -> AnyPath | None:
    """Where the official code finds its tower; None for other code, which needs none."""
    if kind != "official":
        return None
    found = side.vision_tower or tower.beside(folder, config)
    if found is None:
        raise InputError(
            f"--verify-logits: the official code reads its tower from a folder, and mm_vision_tower of {folder} names "
            "none here; give it with --vision-tower."
        )
    return found


def compare(torch: Path | str, checkpoint: Path | str, side: TorchSide, image: Any, question: str) -> Outcome:
    """Runs both on one picture and one question.

    Args:
        torch: folder of a PyTorch model, or a name on the hub.
        checkpoint: the same model as ours.
        side: how the first is run.
        image: see `data.image.load_image`; a language model alone is asked without it.
        question: about it.

    Raises:
        InputError: the PyTorch side did not run, with its last words; a checkpoint without a tokenizer.
    """
    opened, source = open_source(checkpoint), open_torch(locate(torch), side.base, [])
    config = without_untrained(opened)
    if source.config.get("sparse_config") is None:  # written without its predictors, or llava-hf, which has none
        config = dataclasses.replace(config, sparsity=config.sparsity.dense())
    prepared = Preparer(config, Tokenizer.load(opened.files), Buckets())(
        Request(question, [] if source.bare else [image], 1)
    )
    asked = prepared.sample, prepared.pixels
    theirs, their_positions = _theirs(source, side, config, *asked)
    ours, our_positions = _ours(checkpoint, config, side.dtype, *asked)
    both, left, right = np.intersect1d(our_positions, their_positions, return_indices=True)
    # An exported vocabulary may have rows more.
    reference = theirs[right, : ours.shape[1]].astype(np.float64)
    error = np.abs(ours[left] - reference)
    return Outcome(
        worst=float(np.max(error, initial=0.0)) if np.all(np.isfinite(error)) else float("inf"),
        tolerance=LOGITS[side.dtype] * max(1.0, float(np.max(np.abs(reference), initial=0.0))),
        tokens=len(both),
        apart=len(np.setxor1d(our_positions, their_positions)),
        dtype=side.dtype,
    )


def _theirs(
    source: TorchSource, side: TorchSide, config: ModelConfig, sample: spans.Sample, pixels: Sequence[np.ndarray]
) -> tuple[Float[np.ndarray, "T V"], Int[np.ndarray, " T"]]:
    kind = _kind(source)
    more = ["--folder", str(source.folder), "--dtype", side.dtype]
    if (folder := _tower(source.folder, source.config, kind, side)) is not None:
        more += ["--vision-tower", str(folder)]
        if side.base is not None:
            stored = source.weights.infos[f"{OFFICIAL.decoder}embed_tokens.weight"].dtype.name
            more += ["--base", str(side.base), "--merged-dtype", stored]
    ids = sample.tokens[sample.kind != spans.Kind.IMAGE]
    if pixels:
        ids = np.insert(ids, sample.image_starts[0], IMAGE_TOKEN)
    with tempfile.TemporaryDirectory(prefix="dynllava-logits-") as scratch:
        inputs, out = Path(scratch) / "inputs.npz", Path(scratch) / "out.npz"
        np.savez(
            inputs,
            ids=ids,
            pixels=np.array([x.transpose(2, 0, 1) for x in pixels], np.float32),
            image_tokens=np.array(sample.image_tokens),
            round_ids=np.array(config.text_prep.round_ids),
        )
        _call(side, kind, *more, "--inputs", str(inputs), "--out", str(out))
        with np.load(out) as file:
            return file["logits"], file["positions"]


def _call(side: TorchSide, kind: Kind, *more: str) -> None:
    argv = [side.python, str(_PROGRAM), "--kind", kind]
    if kind == "official":
        if side.official is None:
            raise InputError(
                "--verify-logits of the official layout runs the official code: give its checkout with "
                "--official-repo, and with --torch-python the Python that has its packages."
            )
        if not (side.official / "llava").is_dir():
            raise InputError(f"--official-repo {side.official} is no checkout of Dynamic-LLaVA: no folder llava in it.")
        argv += ["--official", str(side.official.resolve())]
    try:
        done = subprocess.run([*argv, *more], capture_output=True, text=True, errors="replace", check=False)
    except OSError as error:
        raise InputError(f"--torch-python {side.python} cannot be run: {error.strerror}.") from error
    if done.returncode:
        words = done.stderr.strip().splitlines() or [f"it ended with status {done.returncode}"]
        raise InputError(f"--verify-logits: the PyTorch side did not run: {words[-1][:300]}.")


def _ours(
    checkpoint: Path | str, config: ModelConfig, dtype: str, sample: spans.Sample, pixels: Sequence[np.ndarray]
) -> tuple[Float[np.ndarray, "T V"], Int[np.ndarray, " T"]]:
    batch = make_batch([sample], [pixels], length=sample.length, slots=len(pixels), rows=1)
    plan = PrefillPlan(config.sparsity, sample.length, probe=Probe(logits=True), dtype=dtype)
    with jax.default_matmul_precision("highest"):
        model = load(checkpoint, config, dtype=jnp.dtype(dtype))
        keys = jax.random.split(jax.random.key(0), 1)
        out = jax.jit(prefill, static_argnames=("plan",))(model, batch, keys, plan=plan)
    kept = int(out.selection.lengths[0])
    return np.asarray(out.logits)[0, :kept], positions_after(batch, out)[0]
