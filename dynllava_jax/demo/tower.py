"""Pretraining of the demo's vision tower, which LLaVA finds ready-made in CLIP: it names what each patch shows.

Four linear heads read the features that the projector will read: the thing (or the background) that most of a patch
belongs to, its colour, its size, and the photograph. Most steps see small windows of crowded pictures, with the
position embeddings of just that part: attention over all patches costs far more, and scenes are mostly background. The
last steps see whole scenes.

Positions begin as sinusoids and queries equal to keys, so that attention begins by looking around each patch (after
Trockman and Kolter, "Mimetic Initialization of Self-Attention Layers", 2023): learned from nothing it takes longer.

Every step's pictures follow from the step's number. B pictures, P patches, C features, G patches a side.
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
from dynllava_jax.demo.windows import Window, draw_window
from dynllava_jax.model.vision import VisionTower

_NONE = -1
_PARTS = 3
"""A window's side is this part of a picture's."""
_LONGEST = 24.0
"""Ratio of the longest sinusoid to the shortest, which is four patches long."""
HEADS = {"thing": len(OBJECTS) + 1, "colour": len(COLOURS), "size": 2, "background": len(BACKGROUNDS)}


@dataclasses.dataclass(frozen=True)
class TowerTraining:
    """How long and how fast.

    `whole_steps` of the `steps`, the last ones, see whole pictures, a ninth of `batch_size` at a time: as many patches.
    """

    steps: int = 4200
    whole_steps: int = 450
    batch_size: int = 18
    learning_rate: float = 2e-3
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
    """The pictures of a step: windows that are all cut at the same corner, or whole scenes."""
    rng = np.random.default_rng((training.seed, step))
    grid, patch = config.vision.grid, config.vision.patch_size
    side = grid if whole else grid // _PARTS
    top, left = (int(corner) for corner in rng.integers(0, grid - side + 1, 2))
    count = max(1, training.batch_size // _PARTS**2) if whole else training.batch_size
    drawn = [_whole(rng) if whole else draw_window(rng, top * patch, left * patch, side * patch) for _ in range(count)]
    pixels = np.stack([np.asarray(one.picture, np.float32) / 255 for one in drawn])
    prep = config.image_prep
    pixels = (pixels - np.array(prep.mean, np.float32)) / np.array(prep.std, np.float32)
    labels = np.stack([_labels(one, patch) for one in drawn])
    return Batch(pixels, {name: labels[..., head] for head, name in enumerate(HEADS)}, (top, left))


def _whole(rng: np.random.Generator) -> Window:
    # Crowded scenes teach more a step.
    while len((scene := draw(rng, "train")).placements) < 3:
        pass
    return Window(*render(scene), scene.background, scene.placements)


def _labels(window: Window, patch: int) -> Int[np.ndarray, "P heads"]:
    described = [(0, _NONE, _NONE, BACKGROUNDS.index(window.background))]
    for one in window.things:
        colour = _NONE if one.colour is None else COLOURS.index(one.colour)
        described.append((1 + OBJECTS.index(one.thing), colour, int(one.size == "large"), _NONE))
    owner = np.argmax(patch_shares(window.mask, patch), axis=0)
    return np.array(described, np.int32)[owner]


def tower_of(state: TowerState) -> dict[str, np.ndarray]:
    """The tower's parameters by path, `vision/…` as in the whole model."""
    return {f"vision/{path}": np.asarray(value) for path, value in state.params["tower"].items()}


def _program(config: ModelConfig, training: TowerTraining) -> tuple[Any, TowerState]:
    graph, start = nnx.split(VisionTower(nnx.Rngs(params=jax.random.key(training.seed)), config))
    flat = nnx.to_flat_state(start)
    paths = {"/".join(map(str, path)): (path, param) for path, param in flat}
    side = SIDE // _PARTS
    part = dataclasses.replace(
        config,
        vision=dataclasses.replace(config.vision, image_size=side),
        image_prep=dataclasses.replace(config.image_prep, resize=side, crop=side),
    )
    part_graph = nnx.split(jax.eval_shape(lambda: VisionTower(nnx.Rngs(params=jax.random.key(0)), part)))[0]
    width = config.vision.hidden_size
    keys = jax.random.split(jax.random.key(training.seed + 1), len(HEADS))
    heads = {name: 0.02 * jax.random.normal(key, (width, HEADS[name])) for name, key in zip(HEADS, keys, strict=True)}
    tower = _looking_around({name: param.get_value() for name, (_, param) in paths.items()}, config.vision.grid)
    params = {"tower": tower, "heads": heads}
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
        return nnx.merge(graph if whole else part_graph, nnx.from_flat_state(leaves))(pixels).features

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


def _cut(embedding: Float[Array, "T C"], grid: int, corner: Any) -> Float[Array, "t C"]:
    patches = embedding[1:].reshape(grid, grid, -1)
    part = jax.lax.dynamic_slice(patches, (*corner, 0), (grid // _PARTS, grid // _PARTS, patches.shape[-1]))
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
