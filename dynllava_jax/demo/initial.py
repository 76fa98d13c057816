"""The checkpoint that the demo's training begins with: what its tower's pretraining learned, and a decoder that learned
nothing yet.

Its attention begins by looking for its like, and by handing on what it finds there (after Trockman and Kolter, "Mimetic
Initialization of Self-Attention Layers", 2023); the first two layers behind the selection of image tokens look things
up (`lookup`).
"""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from dynllava_jax.checkpoint import store
from dynllava_jax.checkpoint.leaves import item_of, targets
from dynllava_jax.checkpoint.load import fresh_parameters
from dynllava_jax.config.model import ModelConfig
from dynllava_jax.data.tokenizer import FILES
from dynllava_jax.demo import coordinates, embedded, words
from dynllava_jax.demo.lookup import gather, look_up

_SHARPNESS = 0.9
_HANDED_ON = 0.3
"""Scales of the orthogonal maps for queries and keys, and for values: tried on the first hundreds of steps."""
_EMBEDDING = "decoder/embedding"


def write_initial(dst: Path, config: ModelConfig, learned: Mapping[str, np.ndarray], seed: int = 0) -> None:
    """Writes a model checkpoint with the demo's tokenizer.

    Args:
        dst: the new folder.
        config: of the whole model.
        learned: tower, projector and word embeddings, by path in the whole model; empty: nothing is looked up.
        seed: decides everything else.

    Raises:
        InputError: `dst` is taken or cannot be written, or the decoder's attention is too small for the lookups.
    """
    known = dict(learned) | _looking_for_its_like(config, seed)
    if learned:
        known = _with_lookups(known, config, seed)
    rest = [target for target in targets(config) if target.path not in known]
    values = {path: np.asarray(value) for path, value in fresh_parameters(config, rest, seed).items()} | known
    files = {name: (embedded.TOKENIZER / name).read_bytes() for name in FILES if (embedded.TOKENIZER / name).is_file()}
    store.write(dst, config, _leaves(config, values), extras=store.Extras(files))


def _with_lookups(known: dict[str, np.ndarray], config: ModelConfig, seed: int) -> dict[str, np.ndarray]:
    """With words and patches laid out anew, and the first layers behind the selection looking up and gathering."""
    tokenizer = embedded.tokenizer()
    groups = words.groups(tokenizer, config.decoder.vocab_size)
    laid_out = coordinates.lay_out(known[_EMBEDDING], groups, seed)
    last = max(path.rpartition("/")[0] for path in known if path.startswith("projector/"))
    found = {f"{last}/{name}": known[f"{last}/{name}"] @ laid_out.frame.patch for name in ("kernel", "bias")}
    found[_EMBEDDING] = coordinates.embedding(laid_out, tokenizer.encode("", add_bos=True)[0])
    found["decoder/head/kernel"] = coordinates.head(laid_out)
    paths = {name: f"decoder/deep/attention/{name}/kernel" for name in ("query", "key", "value", "out")}
    found |= {path: known[path].copy() for path in paths.values()}
    for layer, change in enumerate((partial(look_up, seed=seed), gather)):
        kernels = change(config.decoder, laid_out, {name: known[path][layer] for name, path in paths.items()})
        for name, kernel in kernels.items():
            found[paths[name]][layer] = kernel
    return known | {path: value.astype(np.float32) for path, value in found.items()}


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
