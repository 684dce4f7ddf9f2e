"""stepaudio_jax: audio reasoning models in JAX."""

from stepaudio_jax.tpu_compiler import set_tpu_environment

set_tpu_environment()
