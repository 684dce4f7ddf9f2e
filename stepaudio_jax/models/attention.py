"""Attention: one door, behind which the kernel for the platform is chosen."""

import jax
import jax.numpy as jnp

# Large enough that a masked key gets no weight, small enough that a row with every key masked stays finite (a padding token).
MASKED = -1e10


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    query_segments: jax.Array,
    key_segments: jax.Array,
    query_positions: jax.Array | None = None,
    key_positions: jax.Array | None = None,
) -> jax.Array:
    """Grouped-query softmax attention within segments; causal where positions are given.

    A query sees a key when both have the same segment id and, with positions, when the key's position is not later.

    Args:
        query: [B,T,N,D].
        key, value: [B,S,K,D]; N is a multiple of K, and query head n reads key head n // (N // K).
        query_segments: [B,T] i32. key_segments: [B,S] i32.
        query_positions: [B,T] i32. key_positions: [B,S] i32. Both or neither.

    Returns:
        [B,T,N,D] in query's dtype; scores and softmax are computed in fp32.
    """
    visible = query_segments[:, :, None] == key_segments[:, None, :]
    if query_positions is not None and key_positions is not None:
        visible &= query_positions[:, :, None] >= key_positions[:, None, :]
    bias = jnp.where(visible, 0.0, MASKED)
    batch, tokens, heads, head_dim = query.shape
    slots, kv_heads = key.shape[1:3]
    groups = heads // kv_heads
    # Heads in front, a kv head's query heads laid end to end: two plain batched matrix products, which every backend does well.
    query = query.reshape(batch, tokens, kv_heads, groups, head_dim).transpose(0, 2, 3, 1, 4)
    query = query.reshape(batch, kv_heads, groups * tokens, head_dim) * jnp.asarray(head_dim**-0.5, query.dtype)
    scores = jnp.einsum("BKTD,BSKD->BKTS", query, key, preferred_element_type=jnp.float32)
    scores = scores.reshape(batch, kv_heads, groups, tokens, slots) + bias[:, None, None, :, :]
    weights = jnp.exp(scores - jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True)))
    # The sum divides after the product with the values: [.., T, D] is smaller than [.., T, S].
    total = jnp.sum(weights, axis=-1)
    weights = weights.astype(value.dtype).reshape(batch, kv_heads, groups * tokens, slots)
    out = jnp.einsum("BKTS,BSKD->BKTD", weights, value, preferred_element_type=jnp.float32)
    out = out.reshape(batch, kv_heads, groups, tokens, head_dim) / total[..., None]
    return out.transpose(0, 3, 1, 2, 4).reshape(batch, tokens, heads, head_dim).astype(value.dtype)
