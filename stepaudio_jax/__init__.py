"""stepaudio_jax: audio reasoning models in JAX."""
