"""Rotary position embedding in the rotate-half form of Qwen2 (Su et al. 2021, section 3.4)."""

import math

import jax
import jax.numpy as jnp


def rope_cos_sin(positions: jax.Array, head_dim: int, theta: float) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines of position * theta^(-2i / D): positions [B,T] -> two fp32 arrays [B,T,1,D/2]."""
    exponents = jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim

    def waves(exponents: jax.Array) -> tuple[jax.Array, jax.Array]:
        angles = positions.astype(jnp.float32)[:, :, None, None] * theta**-exponents
        return jnp.cos(angles), jnp.sin(angles)

    # In a loop of two rounds, since the compiler fuses what is outside of loops into all that uses
    # it: it would compute cosines and sines again in every layer for every head, which takes a CPU
    # longer than all rotations together.
    halves = jax.lax.map(waves, exponents.reshape(math.gcd(2, exponents.size), -1))
    cos, sin = (jnp.concatenate(list(half), axis=-1) for half in halves)
    return cos, sin


def apply_rope(x: jax.Array, angles: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotates each pair (x[i], x[i + D/2]) of x [B,T,N,D] by its angle, in fp32; returns x's dtype."""
    cos, sin = angles
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)
