"""stepaudio_jax: audio reasoning models in JAX."""

from stepaudio_jax.tpu_compiler import describe_machine_without_tpu

describe_machine_without_tpu()
