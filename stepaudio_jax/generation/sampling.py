"""Drawing a token from logits."""

import jax
import jax.numpy as jnp


def sample(logits: jax.Array, keys: jax.Array, *, temperature: jax.Array, top_p: jax.Array) -> jax.Array:
    """Draws one token a row; the most probable one where the temperature is 0.

    Nucleus sampling (Holtzman et al. 2020, section 3.1): of softmax(logits / temperature), the smallest set of most probable
    tokens whose mass reaches top_p is kept.

    Args:
        logits: [B,V] fp32.
        keys: [B] random keys, one a row, so that a row's draw does not depend on its neighbours.
        temperature: [B] fp32, >= 0.
        top_p: [B] fp32, in (0, 1].

    Returns:
        [B] i32.
    """
    greedy = jnp.argmax(logits, axis=-1)

    def draw() -> jax.Array:
        # Shifted first: a tiny temperature then sends the others to -inf, and nothing overflows.
        shifted = logits - jnp.max(logits, axis=-1, keepdims=True)
        scaled = shifted / jnp.where(temperature > 0, temperature, 1.0)[:, None]
        drawn = jax.vmap(jax.random.categorical)(keys, jnp.where(nucleus(scaled, top_p), scaled, -jnp.inf))
        return jnp.where(temperature > 0, drawn, greedy)

    # A batch that is all greedy, an evaluation's, does not pay for sorting the vocabulary.
    return jax.lax.cond(jnp.any(temperature > 0), draw, lambda: greedy).astype(jnp.int32)


def nucleus(logits: jax.Array, top_p: jax.Array) -> jax.Array:
    """Which tokens the nucleus keeps: [B,V], [B] -> [B,V] bool.

    Ties with the last token that is needed are kept too; all are where top_p is 1, which a rounded sum of masses may exceed.
    """
    descending = -jnp.sort(-logits, axis=-1)
    probabilities = jax.nn.softmax(descending, axis=-1)
    mass_before = jnp.cumsum(probabilities, axis=-1) - probabilities
    needed = jnp.sum(mass_before < top_p[:, None], axis=-1)
    threshold = jnp.take_along_axis(descending, needed[:, None] - 1, axis=-1)
    return (logits >= threshold) | (top_p >= 1)[:, None]
