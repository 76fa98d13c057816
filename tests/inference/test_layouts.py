import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.layout import Format, Layout
from jax.sharding import SingleDeviceSharding

from dynllava_jax.checkpoint import store
from dynllava_jax.checkpoint.leaves import abstract_model
from dynllava_jax.checkpoint.load import load
from dynllava_jax.inference.layouts import placement
from tests.checkpoint.test_store import CONFIG, random_leaves


def test_only_a_tpu_is_told_the_order():
    placed = placement(abstract_model(CONFIG), jax.devices()[0], CONFIG)
    assert placed.decoder.deep.mlp.up.kernel.get_value() == SingleDeviceSharding(jax.devices()[0])


def test_a_checkpoint_is_loaded_into_the_order_asked_for_and_used_in_it(tmp_path):
    store.write(tmp_path / "ckpt", CONFIG, random_leaves())
    device = SingleDeviceSharding(jax.devices()[0])

    def reversed_order(model):
        return jax.tree.map(lambda x: Format(Layout(tuple(reversed(range(x.ndim)))), device), model)

    plain = load(tmp_path / "ckpt").decoder.deep.mlp.up.kernel.get_value()
    kernel = load(tmp_path / "ckpt", sharding=reversed_order).decoder.deep.mlp.up.kernel.get_value()
    np.testing.assert_array_equal(kernel, plain)
    assert kernel.format.layout.major_to_minor == (2, 1, 0)
    product = jax.jit(lambda kernel, x: x @ kernel[0])
    compiled = product.lower(kernel, jnp.ones((1, kernel.shape[1]))).compile()
    assert compiled.input_formats[0][0].layout.major_to_minor == (2, 1, 0)
