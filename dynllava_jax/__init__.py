"""Dynamic-LLaVA in JAX/Flax."""
