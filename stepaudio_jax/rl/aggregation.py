"""From a loss of each token to one number: weights that add up the same however a batch is cut."""

from typing import Literal

import jax
import jax.numpy as jnp

Aggregation = Literal["token_mean", "sequence_mean", "sequence_sum"]


def token_weights(
    mask: jax.Array, valid: jax.Array, aggregation: Aggregation
) -> tuple[jax.Array, jax.Array]:
    """The weight of every token in the loss, and what the weighted sum is to be divided by, once, over the global batch.

    "token_mean": every token counts alike (DAPO: Yu et al. 2025, eq. 8). "sequence_mean": every
    sample counts alike, a token by its sample's length (GRPO: Shao et al. 2024, eq. 3).
    "sequence_sum": a sample counts by its tokens, and the sum is divided by the number of samples
    (Liu et al. 2025, section 3.2).

    Args:
        mask: [N,T], 1 where the policy wrote the token.
        valid: [N], 0 for a sample that is left out.
        aggregation: how.

    Returns:
        [N,T] fp32 and a scalar; a sample without tokens counts nowhere.
    """
    seen = (mask > 0) & (valid > 0)[:, None]
    lengths = jnp.sum(seen, axis=1)
    weights = seen.astype(jnp.float32)
    if aggregation == "token_mean":
        return weights, jnp.sum(weights)
    if aggregation == "sequence_mean":
        weights /= jnp.maximum(lengths, 1)[:, None]
    return weights, jnp.sum(lengths > 0).astype(jnp.float32)
