"""Pretraining of the demo's vision tower, which LLaVA finds ready-made in CLIP: it names what each patch shows.

Linear heads read the features that the projector will read: the thing (or the background) that most of a patch belongs
to, its colour, its size, the photograph, and where the patch lies: without that last one the tower forgets it, and
nobody could ask for the left or the right. The projector and the decoder's word embeddings learn beside it (`words`).

Positions begin as sinusoids and queries equal to keys, so that attention begins by looking around each patch (after
Trockman and Kolter, "Mimetic Initialization of Self-Attention Layers", 2023): learned from nothing it takes longer.

B pictures, P patches, T = 1 + P tokens, C features, D decoder features, V vocabulary, K classes of a head,
G patches a side; t tokens of a window, which is a part of the whole grid.
"""

import contextlib
import dataclasses
import functools
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int

from dynllava_jax.checkpoint.leaves import targets
from dynllava_jax.checkpoint.load import fresh_parameters
from dynllava_jax.config.model import ModelConfig
from dynllava_jax.demo import coordinates, embedded, patches, words
from dynllava_jax.demo.patches import PARTS, Batch
from dynllava_jax.demo.render import SIDE
from dynllava_jax.errors import InputError
from dynllava_jax.model.projector import make_projector
from dynllava_jax.model.vision import VisionTower

_STATE = "tower.npz"
_LONGEST = 24.0
"""Ratio of the longest sinusoid to the shortest, which is four patches long."""


@dataclasses.dataclass(frozen=True)
class TowerTraining:
    """How long and how fast.

    `whole_steps` of the `steps`, the last ones, see whole pictures, a ninth of `batch_size` at a time: as many patches.
    """

    steps: int = 3600
    whole_steps: int = 400
    batch_size: int = 18
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    seed: int = 0
    save_every: int = 200


class TowerState(NamedTuple):
    """Parameters of tower, projector, words and heads, and the optimizer's state."""

    params: dict[str, Any]
    optimizer: Any
    step: int


def train(
    config: ModelConfig, training: TowerTraining, folder: Path, report: Callable[[int, dict[str, float]], None]
) -> TowerState:
    """Trains, or goes on where `folder` was saved.

    Args:
        config: of the whole model; its tower, projector and word embeddings are trained.
        training: steps and rates.
        folder: where the state is saved every `save_every` steps.
        report: is told the step and each head's loss and accuracy.

    Raises:
        InputError: the state in `folder` is damaged, or cannot be written.
    """
    step_fn, state = _program(config, training)
    state = _restore(folder, state)
    while state.step < training.steps:
        params, optimizer, metrics = step_fn(state.params, state.optimizer, _batch(config, training, state.step))
        state = TowerState(params, optimizer, state.step + 1)
        if state.step % 50 == 0:
            report(state.step, {name: float(value) for name, value in metrics.items()})
        if state.step % training.save_every == 0 or state.step == training.steps:
            _save(folder, state)
    return state


def saved_steps(folder: Path) -> tuple[int | None, int]:
    """Steps of the state that `train` saved there, and when (nanoseconds); None where there is none."""
    file = folder / _STATE
    if not file.is_file():
        return None, 0
    with _opened(file) as saved:
        return int(saved["step"]), file.stat().st_mtime_ns


def learned(config: ModelConfig, training: TowerTraining, state: TowerState) -> dict[str, np.ndarray]:
    """What was trained, by path in the whole model."""
    params = state.params
    shown = patches.batch(config, training.seed, 0, 1, whole=True)
    projected = _project(config)(params["projector"], _see(config)(params["tower"], shown))
    factor, embedding = words.at_scale(projected, params["words"], coordinates.SIZE)
    last = max(path.rpartition("/")[0] for path in params["projector"])
    projector = {
        path: value * factor if path.startswith(last) else value for path, value in params["projector"].items()
    }
    parts = {"vision": params["tower"], "projector": projector}
    found = {f"{part}/{path}": value for part, values in parts.items() for path, value in values.items()}
    found |= {"decoder/embedding": embedding}
    return {path: np.asarray(value) for path, value in found.items()}


def _batch(config: ModelConfig, training: TowerTraining, step: int) -> Batch:
    whole = step >= training.steps - training.whole_steps
    count = max(1, training.batch_size // PARTS**2) if whole else training.batch_size
    return patches.batch(config, training.seed, step, count, whole=whole)


@functools.cache
def _program(config: ModelConfig, training: TowerTraining) -> tuple[Any, TowerState]:
    see, project = _see(config), _project(config)
    vocabulary = words.groups(embedded.tokenizer(), config.decoder.vocab_size)
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, training.learning_rate, min(100, training.steps // 10), training.steps
    )
    rule = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.98, weight_decay=training.weight_decay)
    )

    def loss(params: dict[str, Any], batch: Batch) -> tuple[Array, dict[str, Array]]:
        seen = see(params["tower"], batch)
        labels = {name: jnp.asarray(label) for name, label in batch.labels.items()}
        found = {name: _judge(seen @ head, labels[name], name == "thing") for name, head in params["heads"].items()}
        losses = {f"{name}_loss": each[0] for name, each in found.items()}
        losses["words_loss"] = words.loss(
            project(params["projector"], seen), params["words"], vocabulary, words.labels(config, labels)
        )
        return sum(losses.values(), jnp.zeros(())), losses | {f"{name}_right": each[1] for name, each in found.items()}

    @jax.jit
    def step(params: dict[str, Any], optimizer: Any, batch: Batch) -> tuple[dict[str, Any], Any, dict[str, Array]]:
        gradient, metrics = jax.grad(loss, has_aux=True)(params, batch)
        updates, optimizer = rule.update(gradient, optimizer, params)
        return optax.apply_updates(params, updates), optimizer, metrics  # pyright: ignore[reportReturnType]

    params = _start(config, training.seed)
    return step, TowerState(params, rule.init(params), 0)


def _start(config: ModelConfig, seed: int) -> dict[str, Any]:
    def part(name: str) -> dict[str, Array]:
        wanted = [target for target in targets(config) if target.path.startswith(f"{name}/")]
        return {path.removeprefix(f"{name}/"): x for path, x in fresh_parameters(config, wanted, seed).items()}

    heads = patches.heads(config)
    key, *keys = jax.random.split(jax.random.key(seed + 1), 1 + len(heads))
    return {
        "tower": _looking_around(part("vision"), config.vision.grid),
        "projector": part("projector"),
        "words": jax.random.normal(key, (config.decoder.vocab_size, config.decoder.hidden_size)),
        "heads": {
            name: 0.02 * jax.random.normal(key, (config.vision.hidden_size, answers))
            for key, (name, answers) in zip(keys, heads.items(), strict=True)
        },
    }


def _see(config: ModelConfig) -> Callable[[dict[str, Array], Batch], Float[Array, "B P C"]]:
    """The tower as a function of its parameters by path; a window has the position embeddings of its part."""
    side = SIDE // PARTS
    part = dataclasses.replace(
        config,
        vision=dataclasses.replace(config.vision, image_size=side),
        image_prep=dataclasses.replace(config.image_prep, resize=side, crop=side),
    )
    whole = _functional(lambda rngs: VisionTower(rngs, config))
    window = _functional(lambda rngs: VisionTower(rngs, part))

    def see(tower: dict[str, Array], batch: Batch) -> Array:
        pixels = jnp.asarray(batch.pixels)
        if pixels.shape[1] == SIDE:
            return whole(tower, pixels).features
        cut = jax.vmap(lambda corner: _cut(tower["position_embedding"], config.vision.grid, corner))
        return window(tower | {"position_embedding": cut(jnp.asarray(batch.corners))}, pixels).features

    return see


def _project(config: ModelConfig) -> Callable[[dict[str, Array], Float[Array, "B P C"]], Float[Array, "B P D"]]:
    return _functional(lambda rngs: make_projector(rngs, config))


def _functional(make: Callable[[nnx.Rngs], Any]) -> Callable[[dict[str, Array], Array], Any]:
    """A module as a function of its parameters by path and of its input."""
    graph, state = nnx.split(jax.eval_shape(lambda: make(nnx.Rngs(params=jax.random.key(0)))))
    paths = {"/".join(map(str, path)): (path, param) for path, param in nnx.to_flat_state(state)}

    def call(params: dict[str, Array], x: Array) -> Any:
        leaves = [(path, param.replace(params[name])) for name, (path, param) in paths.items()]
        return nnx.merge(graph, nnx.from_flat_state(leaves))(x)

    return call


def _looking_around(tower: dict[str, Array], grid: int) -> dict[str, Array]:
    """The same tower with positions as sinusoids of y and x, and in each layer one orthogonal map for query and key."""
    classes, positions = jnp.split(tower["position_embedding"], [1])
    waves = _LONGEST ** -jnp.linspace(0, 1, positions.shape[1] // 4, endpoint=False) * jnp.pi / 2
    angles = jnp.stack(jnp.mgrid[:grid, :grid], -1).reshape(-1, 2, 1) * waves
    sinusoids = 0.5 * jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1).reshape(positions.shape)
    query = jnp.linalg.qr(tower["layers/attention/query/kernel"])[0]
    return tower | {
        "position_embedding": jnp.concatenate([classes, sinusoids]),
        "layers/attention/query/kernel": query,
        "layers/attention/key/kernel": jnp.copy(query),
    }


def _judge(
    logits: Float[Array, "B P K"], labels: Int[Array, "B P"], first_apart: bool
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Mean loss and share of right patches among those with a label; with `first_apart`, label 0 (the background)
    counts for half of the loss, however many patches it has, and not at all in the share.
    """
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(labels, 0))
    right = jnp.argmax(logits, -1) == labels
    if not first_apart:
        return _mean(losses, labels >= 0), _mean(right, labels >= 0)
    return (_mean(losses, labels > 0) + _mean(losses, labels == 0)) / 2, _mean(right, labels > 0)


def _mean(values: Array, where: Array) -> Array:
    return jnp.sum(values * where) / jnp.maximum(jnp.sum(where), 1)


def _cut(embedding: Float[Array, "T C"], grid: int, corner: Int[Array, "2"]) -> Float[Array, "t C"]:
    whole = embedding[1:].reshape(grid, grid, -1)
    part = jax.lax.dynamic_slice(whole, (*corner, 0), (grid // PARTS, grid // PARTS, whole.shape[-1]))
    return jnp.concatenate([embedding[:1], part.reshape(-1, whole.shape[-1])])


def _save(folder: Path, state: TowerState) -> None:
    leaves = jax.tree.leaves((state.params, state.optimizer))
    partial = folder / "tower.tmp.npz"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(partial, *map(np.asarray, leaves), step=state.step)
        partial.rename(folder / _STATE)
    except OSError as error:
        raise InputError(
            f"{folder / _STATE} could not be written: {error.strerror or error}; see to it that there is room, then "
            "the same command goes on."
        ) from error


def _restore(folder: Path, state: TowerState) -> TowerState:
    file = folder / _STATE
    if not file.is_file():
        return state
    like, structure = jax.tree.flatten((state.params, state.optimizer))
    with _opened(file) as saved:
        leaves = [saved[f"arr_{i}"] for i in range(len(saved.files) - 1)]
        step = int(saved["step"])
        if [leaf.shape for leaf in leaves] != [np.shape(leaf) for leaf in like]:
            raise ValueError("it holds another model")
    params, optimizer = jax.tree.unflatten(structure, map(jnp.asarray, leaves))
    return TowerState(params, optimizer, step)


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        with np.load(file) as saved:
            yield saved
    except (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile) as error:
        raise InputError(f"{file} is damaged: {error}; remove it, and the training begins anew.") from error
