"""The words for what a patch shows."""

import jax
import jax.numpy as jnp
import numpy as np

from dynllava_jax.config.presets import demo
from dynllava_jax.demo import embedded, words
from dynllava_jax.demo.catalogue import OBJECTS

CONFIG = demo()
GROUPS = words.groups(embedded.tokenizer(), 1024)


def test_a_name_is_the_mean_of_its_tokens_without_the_article() -> None:
    tokens = embedded.tokenizer().encode("living room", add_bos=False)
    (row,) = [row for row in GROUPS["name"] if row[tokens[0]] and row[tokens[1]]]
    assert set(np.flatnonzero(row)) == set(tokens)
    for rows in GROUPS.values():
        assert np.allclose(rows.sum(1), 1)
        assert len({row.tobytes() for row in rows}) == len(rows)


def test_a_patch_has_a_word_of_each_group_that_fits() -> None:
    seen = {"thing": [3, 0], "colour": [-1, -1], "size": [1, -1], "background": [-1, 2], "y": [11, 12], "x": [7, 23]}
    found = words.labels(CONFIG, {name: jnp.array([value]) for name, value in seen.items()})
    assert {name: label.tolist()[0] for name, label in found.items()} == {
        "name": [2, len(OBJECTS) + 2],
        "plural": [2, -1],
        "colour": [-1, -1],
        "size": [1, -1],
        "row": [0, 1],
        "column": [0, 2],
    }


def test_the_loss_falls_as_a_projection_nears_its_words() -> None:
    embedding = jax.random.normal(jax.random.key(0), (1024, 192))
    seen = {"thing": [3], "colour": [-1], "size": [1], "background": [-1], "y": [11], "x": [7]}
    wanted = words.labels(CONFIG, {name: jnp.array([value]) for name, value in seen.items()})
    right = sum(rows[int(wanted[name][0, 0])] for name, rows in GROUPS.items() if int(wanted[name][0, 0]) >= 0)
    near = jnp.asarray(right @ embedding)[None, None]
    far = jax.random.normal(jax.random.key(1), (1, 1, 192))
    losses = [float(words.loss(far + part * near, embedding, GROUPS, wanted)) for part in (0.0, 0.3, 1.0, 10.0)]
    assert losses == sorted(losses, reverse=True)


def test_at_scale_keeps_directions() -> None:
    embedding, projected = (3 * jax.random.normal(jax.random.key(i), (8, 16)) for i in range(2))
    factor, scaled = words.at_scale(projected[None], embedding, 0.02)
    assert np.allclose(np.linalg.norm(scaled, axis=1), 0.08, rtol=1e-5)
    assert np.isclose(np.linalg.norm(factor * projected, axis=1).mean(), 0.08, rtol=1e-5)
    assert np.allclose(
        scaled / np.linalg.norm(scaled, axis=1)[:, None] * np.linalg.norm(embedding, axis=1)[:, None],
        embedding,
        rtol=1e-4,
    )
