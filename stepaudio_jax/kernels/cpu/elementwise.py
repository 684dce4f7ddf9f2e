"""RoPE's angles and GELU in the form that XLA's CPU backend runs fastest."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def rope_cos_sin(
    positions: Int[Array, "B T"], head_dim: int, theta: float
) -> tuple[Float[Array, "B T 1 half_dim"], Float[Array, "B T 1 half_dim"]]:
    """Computes `models.layers.rope_cos_sin` inside a loop of two steps.

    XLA fuses what is outside of loops into all that uses it: it would compute cosines and sines
    again in every layer for every head, which takes a CPU longer than all rotations together.
    """
    exponents = jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim

    def cos_sin(exponents: Float[Array, " half"]) -> tuple[jax.Array, jax.Array]:
        angles = positions.astype(jnp.float32)[:, :, None, None] * theta**-exponents
        return jnp.cos(angles), jnp.sin(angles)

    halves = jax.lax.map(cos_sin, exponents.reshape(math.gcd(2, exponents.size), -1))
    cos, sin = (jnp.concatenate(list(half), axis=-1) for half in halves)
    return cos, sin


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Computes `models.layers.gelu` by erf: faster than `jax.nn.gelu`, which uses erfc.

    The two differ in the last bits, and more in the far negative tail.
    """
    wide = x.astype(jnp.float32)
    return (0.5 * wide * (1 + jax.lax.erf(wide * math.sqrt(0.5)))).astype(x.dtype)
