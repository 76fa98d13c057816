"""The checkpoint that the demo's training begins with: what its tower's pretraining learned, and a decoder that learned
nothing yet.

Its attention begins by looking for its like, and by handing on what it finds there (after Trockman and Kolter, "Mimetic
Initialization of Self-Attention Layers", 2023): a word finds the patches that the projector has put close to it.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from dynllava_jax.checkpoint import store
from dynllava_jax.checkpoint.leaves import item_of, targets
from dynllava_jax.checkpoint.load import fresh_parameters
from dynllava_jax.config.model import ModelConfig
from dynllava_jax.data.tokenizer import FILES
from dynllava_jax.demo.embedded import TOKENIZER

_SHARPNESS = 0.9
_HANDED_ON = 0.2
"""Scales of the orthogonal maps for queries and keys, and for values: tried on the first hundreds of steps."""


def write_initial(dst: Path, config: ModelConfig, learned: Mapping[str, np.ndarray], seed: int = 0) -> None:
    """Writes a model checkpoint with these parameters (by path) and the demo's tokenizer; `seed` decides the others.

    Raises:
        InputError: `dst` is taken or cannot be written.
    """
    known = _looking_for_its_like(config, seed) | dict(learned)
    rest = [target for target in targets(config) if target.path not in known]
    values = {path: np.asarray(value) for path, value in fresh_parameters(config, rest, seed).items()} | known
    files = {name: (TOKENIZER / name).read_bytes() for name in FILES if (TOKENIZER / name).is_file()}
    store.write(dst, config, _leaves(config, values), extras=store.Extras(files))


def _looking_for_its_like(config: ModelConfig, seed: int) -> dict[str, np.ndarray]:
    """One orthogonal map for the keys and for all queries of their group; one for values, undone on the way out."""
    decoder, rng = config.decoder, np.random.default_rng(seed)
    shape = (decoder.hidden_size, decoder.num_kv_heads, decoder.head_dim)
    values = {}
    for target in targets(config):
        if not target.path.endswith("/attention/key/kernel") or not target.path.startswith("decoder/"):
            continue
        layers = len(target.leaves)
        key, value = (
            np.stack([np.linalg.qr(rng.normal(size=(shape[0], shape[1] * shape[2])))[0] for _ in range(layers)])
            for _ in range(2)
        )
        every = {"key": key * _SHARPNESS, "value": value * _HANDED_ON}
        for name, kernel in (("query", every["key"]), ("out", every["value"])):
            heads = kernel.reshape(layers, *shape).repeat(decoder.num_heads // decoder.num_kv_heads, axis=2)
            every[name] = heads.reshape(layers, shape[0], -1)
        every["out"] = every["out"].transpose(0, 2, 1)
        values |= {target.path.replace("/key/", f"/{name}/"): x.astype(np.float32) for name, x in every.items()}
    return values


def _leaves(config: ModelConfig, values: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    found = [
        (leaf, values[target.path][number] if target.stacked else values[target.path])
        for target in targets(config)
        for number, leaf in enumerate(target.leaves)
    ]
    return iter(sorted(found, key=lambda each: (item_of(each[0]), each[0])))
