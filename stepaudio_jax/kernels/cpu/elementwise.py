"""GELU in the form that XLA's CPU backend runs fastest."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Computes `models.layers.gelu` by erf: faster than `jax.nn.gelu`, which uses erfc.

    The two differ in the last bits, and more in the far negative tail.
    """
    wide = x.astype(jnp.float32)
    return (0.5 * wide * (1 + jax.lax.erf(wide * math.sqrt(0.5)))).astype(x.dtype)
