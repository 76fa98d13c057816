"""Cases 01 and 01b: pictures to pixels, pixels to tower features, features to decoder inputs.

N images, P patches, C tower features, D decoder features.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from dynllava_jax.data.image import load_image, preprocess
from dynllava_jax.verify.cases import Case
from dynllava_jax.verify.computed import Computed
from dynllava_jax.verify.subject import Subject


def features(subject: Subject, case: Case) -> Computed:
    """01_vision_features: `model.vision` and what `model.image_tokens` hands to the decoder."""
    pixels = case.images()
    present = np.ones((len(pixels), 1), bool)
    seen = jax.jit(lambda model, pixels: model.vision(pixels, hidden=True))(subject.model, pixels)
    tokens = jax.jit(lambda model, *inputs: model.image_tokens(*inputs, jnp.dtype("float32")))(
        subject.model, pixels[:, None], present, subject.keys(len(pixels))
    )
    assert seen.hidden is not None
    found = Computed()
    for index, hidden in enumerate(seen.hidden):
        found.put(f"clip_hidden_{index}", hidden)
    found.put("selected_features", seen.features)
    found.put("projected", tokens.features[:, 0])
    for index in range(len(seen.hidden), subject.config.vision.num_layers + 1):
        found.skip(f"clip_hidden_{index}", "nobody reads this tower layer, so it is neither loaded nor run")
    return found


def pictures(subject: Subject, case: Case) -> Computed:
    """01b_image_preprocess: `data.image.preprocess`, padded to a square and plain."""
    found = Computed()
    for name, picture in case.inputs.items():
        for label, aspect in (("pad", "pad"), ("plain", "crop")):
            target = f"{name.removesuffix('_rgb')}_{label}_pixel_values"
            if target in case.outputs:
                prep = dataclasses.replace(subject.config.image_prep, aspect=aspect)
                found.put(target, preprocess(load_image(picture), prep).transpose(2, 0, 1)[None])
    return found
