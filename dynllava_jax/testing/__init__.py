"""A test kit for users' own tests: a tiny config, a tiny tokenizer, synthetic pictures, a whole tiny assistant."""

from dynllava_jax.testing.images import synthetic_image
from dynllava_jax.testing.tiny import tiny_assistant, tiny_buckets, tiny_config, tiny_model
from dynllava_jax.testing.tokenizer import write_tokenizer

__all__ = ["synthetic_image", "tiny_assistant", "tiny_buckets", "tiny_config", "tiny_model", "write_tokenizer"]
