"""The checkpoint that the demo's training begins with: the pretrained tower, everything else from a seed."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from dynllava_jax.checkpoint import store
from dynllava_jax.checkpoint.leaves import item_of, targets
from dynllava_jax.checkpoint.load import fresh_parameters
from dynllava_jax.config.model import ModelConfig
from dynllava_jax.data.tokenizer import FILES
from dynllava_jax.demo.embedded import TOKENIZER


def write_initial(dst: Path, config: ModelConfig, tower: Mapping[str, np.ndarray], seed: int = 0) -> None:
    """Writes a model checkpoint whose tower is `tower` (parameters by path), with the demo's tokenizer.

    Raises:
        InputError: `dst` is taken or cannot be written.
    """
    rest = [target for target in targets(config) if target.path not in tower]
    values = {path: np.asarray(value) for path, value in fresh_parameters(config, rest, seed).items()} | dict(tower)
    files = {name: (TOKENIZER / name).read_bytes() for name in FILES if (TOKENIZER / name).is_file()}
    store.write(dst, config, _leaves(config, values), extras=store.Extras(files))


def _leaves(config: ModelConfig, values: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    found = [
        (leaf, values[target.path][number] if target.stacked else values[target.path])
        for target in targets(config)
        for number, leaf in enumerate(target.leaves)
    ]
    return iter(sorted(found, key=lambda each: (item_of(each[0]), each[0])))
