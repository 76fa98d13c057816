"""Random models of a few kilobytes that read the demo's words and small pictures of its scenes."""

import dataclasses
from pathlib import Path

from dynllava_jax.config.model import ModelConfig
from dynllava_jax.config.presets import demo, tiny
from dynllava_jax.demo.initial import write_initial


def config() -> ModelConfig:
    """The tiny preset with the demo's vocabulary and a context that holds a description."""
    small, text = tiny(), demo()
    decoder = dataclasses.replace(small.decoder, vocab_size=text.decoder.vocab_size)
    return dataclasses.replace(small, decoder=decoder, text_prep=text.text_prep)


def write(
    folder: Path, *, image: str | None = "learned", output: str | None = "learned", rate: float = 0.4, seed: int = 0
) -> None:
    model = config()
    sparsity = dataclasses.replace(model.sparsity, image_selector=image, output_selector=output, image_keep_rate=rate)
    write_initial(folder, dataclasses.replace(model, sparsity=sparsity), {}, seed)
