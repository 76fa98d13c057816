"""A dense model equals transformers' `LlavaForConditionalGeneration`, from its own checkpoint on."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from dynllava_jax.checkpoint.load import load
from dynllava_jax.convert.from_torch import convert
from dynllava_jax.data.batch import make_batch
from dynllava_jax.data.spans import expand
from dynllava_jax.inference.prefill import PrefillPlan, prefill
from dynllava_jax.model.probe import Probe
from tests.convert import torch_folders


@pytest.mark.parametrize(
    ("tied", "rope"),
    [(False, None), (True, {"rope_type": "linear", "factor": 2.0, "rope_theta": 7000.0})],
)
def test_logits_equal(tied: bool, rope: dict | None, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    import jax
    from transformers import LlavaForConditionalGeneration

    source = tmp_path / "source"
    torch_folders.llava_hf(source, tied=tied, rope=rope)
    theirs = LlavaForConditionalGeneration.from_pretrained(source).eval()
    convert(source, tmp_path / "ours", predictors=False)
    model = load(tmp_path / "ours")
    config = model.config

    rng = np.random.default_rng(0)
    size = config.vision.image_size
    pixels = rng.standard_normal((size, size, 3)).astype(np.float32)
    image_id = theirs.config.image_token_id = 90  # the default lies beyond this vocabulary
    text = rng.integers(3, 80, 12).tolist()
    ids = [*text[:4], *[image_id] * config.image_tokens, *text[4:]]
    with torch.no_grad():
        reference = theirs(
            input_ids=torch.tensor([ids]), pixel_values=torch.tensor(pixels.transpose(2, 0, 1)[None])
        ).logits.numpy()

    sample = expand([*text[:4], -200, *text[4:]], None, image_tokens=config.image_tokens, round_ids=())
    batch = make_batch([sample], [[pixels]], length=sample.length + 3, slots=1, rows=1)
    plan = PrefillPlan(config.sparsity.dense(), sample.length + 3, probe=Probe(logits=True))
    keys = jax.vmap(jax.random.key)(jnp.zeros(1, jnp.uint32))
    ours = np.asarray(jax.jit(prefill, static_argnames="plan")(model, batch, keys, plan=plan).logits)
    assert len(ids) == sample.length
    np.testing.assert_allclose(
        ours[:, : sample.length], reference, atol=2e-5 * max(1.0, float(np.abs(reference).max()))
    )
