"""Pretraining of the demo's vision tower, which LLaVA finds ready-made in CLIP: it names what each patch shows.

Four linear heads read the features that the projector will read: the thing (or the background) that most of a patch
belongs to, its colour, its size, and the photograph. Most steps see a quarter of the picture, with the position
embeddings of just that quarter, because attention over all patches costs four times as much; the last steps see all.

Every step's scenes follow from the step's number. B pictures, P patches, C features.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int

from dynllava_jax.config.model import ModelConfig
from dynllava_jax.demo.catalogue import BACKGROUNDS, COLOURS, OBJECTS
from dynllava_jax.demo.render import SIDE, patch_shares, render
from dynllava_jax.demo.scenes import draw
from dynllava_jax.model.vision import VisionTower

_NONE = -1
HEADS = {"thing": len(OBJECTS) + 1, "colour": len(COLOURS), "size": 2, "background": len(BACKGROUNDS)}


@dataclasses.dataclass(frozen=True)
class TowerTraining:
    """How long and how fast.

    `whole_steps` of the `steps`, the last ones, see whole pictures, a quarter of `batch_size` at a time.
    """

    steps: int = 1500
    whole_steps: int = 100
    batch_size: int = 16
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    seed: int = 0
    save_every: int = 200


class Batch(NamedTuple):
    """Normalised pixels, and a label per patch for each of HEADS (_NONE: no such thing there)."""

    pixels: Float[np.ndarray, "B Y X 3"]
    labels: dict[str, Int[np.ndarray, "B P"]]
    corner: tuple[int, int]


class TowerState(NamedTuple):
    """Parameters of tower and heads, and the optimizer's state."""

    params: dict[str, Any]
    optimizer: Any
    step: int


def train(
    config: ModelConfig, training: TowerTraining, folder: Path, report: Callable[[int, dict[str, float]], None]
) -> TowerState:
    """Trains, or goes on where `folder` was saved.

    Args:
        config: of the whole model; its tower is trained.
        training: steps and rates.
        folder: where the state is saved every `save_every` steps.
        report: is told the step and each head's loss and accuracy.
    """
    step_fn, state = _program(config, training)
    state = _restore(folder, state)
    while state.step < training.steps:
        whole = state.step >= training.steps - training.whole_steps
        params, optimizer, metrics = step_fn(state.params, state.optimizer, batch(state.step, config, training, whole))
        state = TowerState(params, optimizer, state.step + 1)
        if state.step % 50 == 0:
            report(state.step, {name: float(value) for name, value in metrics.items()})
        if state.step % training.save_every == 0 or state.step == training.steps:
            _save(folder, state)
    return state


def batch(step: int, config: ModelConfig, training: TowerTraining, whole: bool) -> Batch:
    """The pictures of a step; all of them are cut at the same corner, unless they are whole."""
    rng = np.random.default_rng((training.seed, step))
    grid, patch = config.vision.grid, config.vision.patch_size
    side = grid if whole else grid // 2
    top, left = (int(corner) for corner in rng.integers(0, grid - side + 1, 2))
    count = max(1, training.batch_size // 4) if whole else training.batch_size
    pixels = np.empty((count, side * patch, side * patch, 3), np.float32)
    labels = {name: np.full((count, side, side), _NONE, np.int32) for name in HEADS}
    window = (slice(top, top + side), slice(left, left + side))
    for row in range(count):
        # Crowded scenes teach more a step.
        while len((scene := draw(rng, "train")).placements) < 3:
            pass
        picture, mask = render(scene)
        seen = np.asarray(picture, np.float32)[top * patch :, left * patch :]
        pixels[row] = seen[: side * patch, : side * patch] / 255
        owner = np.argmax(patch_shares(mask, patch), axis=0).reshape(grid, grid)[window]
        described = [(0, _NONE, _NONE, BACKGROUNDS.index(scene.background))]
        for one in scene.placements:
            colour = _NONE if one.colour is None else COLOURS.index(one.colour)
            described.append((1 + OBJECTS.index(one.thing), colour, int(one.size == "large"), _NONE))
        for head, values in zip(HEADS, np.array(described).T, strict=True):
            labels[head][row] = values[owner]
    prep = config.image_prep
    pixels = (pixels - np.array(prep.mean, np.float32)) / np.array(prep.std, np.float32)
    return Batch(pixels, {name: value.reshape(len(value), -1) for name, value in labels.items()}, (top, left))


def tower_of(state: TowerState) -> dict[str, np.ndarray]:
    """The tower's parameters by path, `vision/…` as in the whole model."""
    return {f"vision/{path}": np.asarray(value) for path, value in state.params["tower"].items()}


def _program(config: ModelConfig, training: TowerTraining) -> tuple[Any, TowerState]:
    graph, start = nnx.split(VisionTower(nnx.Rngs(params=jax.random.key(training.seed)), config))
    flat = nnx.to_flat_state(start)
    paths = {"/".join(map(str, path)): (path, param) for path, param in flat}
    half = dataclasses.replace(
        config,
        vision=dataclasses.replace(config.vision, image_size=SIDE // 2),
        image_prep=dataclasses.replace(config.image_prep, resize=SIDE // 2, crop=SIDE // 2),
    )
    half_graph = nnx.split(jax.eval_shape(lambda: VisionTower(nnx.Rngs(params=jax.random.key(0)), half)))[0]
    width = config.vision.hidden_size
    keys = jax.random.split(jax.random.key(training.seed + 1), len(HEADS))
    heads = {name: 0.02 * jax.random.normal(key, (width, HEADS[name])) for name, key in zip(HEADS, keys, strict=True)}
    params = {"tower": {name: param.get_value() for name, (_, param) in paths.items()}, "heads": heads}
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, training.learning_rate, min(100, training.steps // 10), training.steps
    )
    rule = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.98, weight_decay=training.weight_decay)
    )

    def features(tower: dict[str, Array], pixels: Array, corner: Any) -> Array:
        whole = pixels.shape[1] == SIDE
        if not whole:
            tower = tower | {"position_embedding": _cut(tower["position_embedding"], config.vision.grid, corner)}
        leaves = [(path, param.replace(tower[name])) for name, (path, param) in paths.items()]
        return nnx.merge(graph if whole else half_graph, nnx.from_flat_state(leaves))(pixels).features

    def loss(params: dict[str, Any], batch: Batch) -> tuple[Array, dict[str, Array]]:
        seen = features(params["tower"], jnp.asarray(batch.pixels), batch.corner)
        found = {
            name: _judge(seen @ params["heads"][name], jnp.asarray(batch.labels[name]), name == "thing")
            for name in HEADS
        }
        losses = {f"{name}_loss": each[0] for name, each in found.items()}
        return sum(losses.values(), jnp.zeros(())), losses | {f"{name}_right": each[1] for name, each in found.items()}

    @jax.jit
    def step(params: dict[str, Any], optimizer: Any, batch: Batch) -> tuple[dict[str, Any], Any, dict[str, Array]]:
        gradient, metrics = jax.grad(loss, has_aux=True)(params, batch)
        updates, optimizer = rule.update(gradient, optimizer, params)
        return optax.apply_updates(params, updates), optimizer, metrics  # pyright: ignore[reportReturnType]

    return step, TowerState(params, rule.init(params), 0)


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


def _cut(embedding: Float[Array, "T C"], grid: int, corner: Any) -> Float[Array, "t C"]:
    patches = embedding[1:].reshape(grid, grid, -1)
    part = jax.lax.dynamic_slice(patches, (*corner, 0), (grid // 2, grid // 2, patches.shape[-1]))
    return jnp.concatenate([embedding[:1], part.reshape(-1, patches.shape[-1])])


def _save(folder: Path, state: TowerState) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    leaves = jax.tree.leaves((state.params, state.optimizer))
    partial = folder / "tower.tmp.npz"
    np.savez(partial, *map(np.asarray, leaves), step=state.step)
    partial.rename(folder / "tower.npz")


def _restore(folder: Path, state: TowerState) -> TowerState:
    file = folder / "tower.npz"
    if not file.is_file():
        return state
    with np.load(file) as saved:
        leaves = [jnp.asarray(saved[f"arr_{i}"]) for i in range(len(saved.files) - 1)]
        step = int(saved["step"])
    params, optimizer = jax.tree.unflatten(jax.tree.structure((state.params, state.optimizer)), leaves)
    return TowerState(params, optimizer, step)
