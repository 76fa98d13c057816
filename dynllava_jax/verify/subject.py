"""What is verified: the converted model behind the package's own generation functions.

Nothing here computes; it converts, compiles and calls. B batch, S sequence, N images, T tokens, H W pixels,
V vocabulary.
"""

import dataclasses
import functools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from dynllava_jax.checkpoint.leaves import abstract_model
from dynllava_jax.checkpoint.load import load
from dynllava_jax.config.hf_sparse import sparsity_from_hf
from dynllava_jax.config.model import ModelConfig
from dynllava_jax.config.source import Source
from dynllava_jax.config.sparsity import SparsityConfig
from dynllava_jax.convert.from_torch import convert
from dynllava_jax.convert.read_torch import TorchWeights
from dynllava_jax.data.batch import Batch, make_batch
from dynllava_jax.data.spans import Sample, expand
from dynllava_jax.inference.buckets import Buckets
from dynllava_jax.inference.cache import Cache
from dynllava_jax.inference.engine import Engine
from dynllava_jax.inference.extend import ExtendOutput, ExtendPlan, extend
from dynllava_jax.inference.prefill import PrefillOutput, PrefillPlan, prefill
from dynllava_jax.inference.run import Prepared, asked_of
from dynllava_jax.inference.sampling import Greedy
from dynllava_jax.kernels import api
from dynllava_jax.model.dynllava import DynamicLlava
from dynllava_jax.model.probe import EVERYTHING
from dynllava_jax.nn.flat import flatten
from dynllava_jax.nn.jax_settings import check_jax_settings
from dynllava_jax.sparsify.policy import KeepPolicy, Threshold
from dynllava_jax.verify.cases import Case, Recording

_BY_THRESHOLD = Threshold()


class Subject:
    """A recording's checkpoint as our model, and the compiled functions that the cases call.

    Prefill and extend are probed for everything: they also show what lies between their input and their result.
    """

    def __init__(self, recording: Recording, model: DynamicLlava, attention: str | None = None):
        """`attention` names an implementation (see `kernels.api`); what it does not serve, XLA does."""
        self.recording = recording
        self.model = model
        self.attention = attention
        self.implementation: api.Implementation = None if attention is None else (attention, "xla")
        self.keys = _keys
        self._prefill = jax.jit(prefill, static_argnames=("plan",))
        self._extend = jax.jit(extend, static_argnames=("plan",))

    @staticmethod
    def convert(recording: Recording, attention: str | None = None) -> "Subject":
        """Converts the recording's PyTorch checkpoint and loads the result.

        Raises:
            InputError: whatever the converter and the loader refuse, and JAX's settings.
        """
        check_jax_settings()
        with tempfile.TemporaryDirectory(prefix="dynllava-verify-") as scratch:
            path = Path(scratch) / "model"
            convert(recording.checkpoint, path, vision_tower=recording.vision_tower)
            return Subject(recording, load(path), attention)

    @property
    def config(self) -> ModelConfig:
        return self.model.config

    @functools.cached_property
    def tensors(self) -> frozenset[str]:
        """The names of all tensors in the recording's checkpoint."""
        return frozenset(TorchWeights(self.recording.checkpoint).infos)

    def parameters(self, config: ModelConfig) -> tuple[DynamicLlava, dict[str, Array]]:
        """The weights under another sparsification: an abstract model, and every parameter's value by path."""
        abstract = abstract_model(config)
        values = flatten(self.model)
        return abstract, {path: values[path] for path in flatten(abstract)}

    def sparsity(self, case: Case) -> SparsityConfig:
        """What the case drops; without a record of it, what the checkpoint's config says.

        Raises:
            InputError: it was recorded with another `sparse_layer` than the checkpoint's.
        """
        if case.sparse_config is None:
            return self.config.sparsity
        source = Source(case.sparse_config, f"{case.name}.json: effective_sparse_config")
        source.only("sparse_layer", self.config.sparsity.sparse_layer, "the checkpoint has this one")
        return sparsity_from_hf(source)

    def sample(
        self, ids: Int[np.ndarray, " S"], labels: Int[np.ndarray, " S"] | None = None, max_length: int | None = None
    ) -> Sample:
        """Token ids with -200 for an image, as a sample with one slot per image token."""
        return expand(
            ids,
            labels,
            image_tokens=self.config.image_tokens,
            round_ids=self.recording.round_ids,
            max_length=max_length,
        )

    def batch(self, samples: Sequence[Sample], images: Sequence[Sequence[np.ndarray]], room: int = 0) -> Batch:
        """Right-padded to the longest sample, with `room` for an answer."""
        length = max(sample.length for sample in samples) + room
        slots = max(len(own) for own in images)
        return make_batch(samples, images, length=length, slots=slots, rows=len(samples))

    def prompts(self, ids: Int[np.ndarray, "B S"], images: Float[np.ndarray, "N H W 3"], room: int = 0) -> Batch:
        """Prompts of equal length with one image each, the first B of the images."""
        return self.batch([self.sample(row) for row in ids], [[image] for image in images[: len(ids)]], room)

    def training_batch(self, case: Case) -> tuple[Batch, list[Sample]]:
        """The right-padded samples with labels that a training case fed, one image each."""
        mask = case.inputs["attention_mask"].astype(bool)
        rows = zip(case.inputs["input_ids"], case.inputs["labels"], mask, strict=True)
        samples = [self.sample(ids[real], labels[real]) for ids, labels, real in rows]
        batch = self.batch(samples, [[image] for image in case.images()])
        return jax.tree.map(jnp.asarray, batch), samples

    def prefill(
        self, batch: Batch, sparsity: SparsityConfig, room: int = 0, keep_policy: KeepPolicy = _BY_THRESHOLD
    ) -> PrefillOutput:
        """The prompt's pass; its caches have `room` for further tokens."""
        rows, length = batch.tokens.shape
        plan = PrefillPlan(
            sparsity=sparsity,
            deep_length=length,
            shallow_capacity=length + room,
            deep_capacity=length + room,
            keep_policy=keep_policy,
            probe=EVERYTHING,
            attention=self.implementation,
        )
        return self._prefill(self.model, batch, _keys(rows), plan=plan)

    def extend(
        self, tokens: Int[np.ndarray, "B T"], cache: Cache, sparsity: SparsityConfig, judge: Any = "output"
    ) -> ExtendOutput:
        """The pass of T new tokens in every row on a cache that has room for them."""
        rows, count = tokens.shape
        plan = ExtendPlan(sparsity=sparsity, judge=judge, probe=EVERYTHING, attention=self.implementation)
        return self._extend(self.model, tokens, np.full(rows, count, np.int32), cache, _keys(rows), plan=plan)

    def greedy(
        self, ids: Int[np.ndarray, "1 S"], image: Float[np.ndarray, "H W 3"], sparsity: SparsityConfig, count: int
    ) -> tuple[Int[np.ndarray, "1 T"], Float[np.ndarray, "1 T V"]]:
        """`count` tokens as the engine generates them for users (padded shapes, no stop), and their logits."""
        engine = Engine(self.model, buckets=Buckets(), attention=self.implementation, collect_logits=True)
        prepared = Prepared(self.sample(ids[0]), [image], count, Greedy(), 0)
        config = dataclasses.replace(self.config, sparsity=sparsity)
        shape = engine.buckets.shape(config, [prepared.sample.length], [1], count)
        batch = make_batch([prepared.sample], [[image]], length=shape.length, slots=shape.images, rows=shape.rows)
        state, opened = engine.open(batch, asked_of([prepared], shape.rows), shape, sparsity)
        tokens, logits = [np.asarray(state.token)[:1, None]], [np.asarray(opened.logits)[:1, None]]
        while not np.all(state.done):
            state, out = engine.advance(state, shape, sparsity)
            tokens.append(np.asarray(out.tokens)[:1, : int(out.steps)])
            logits.append(np.asarray(out.logits)[:1, : int(out.steps)])
        return np.concatenate(tokens, axis=1), np.concatenate(logits, axis=1)


def _keys(rows: int) -> Key[Array, " B"]:
    """Any keys: no official selector draws."""
    return jax.random.split(jax.random.key(0), rows)
