"""Attention: one door, behind which the kernel for the platform is chosen."""

import jax

from stepaudio_jax.models.attention_xla import attention_xla


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    query_segments: jax.Array,
    key_segments: jax.Array,
    causal: bool = False,
    first_slot: jax.Array | None = None,
) -> jax.Array:
    """Grouped-query softmax attention within segments.

    A query sees a key when both have the same segment id and, where causal, when the key's slot is not later than its own.
    A query that sees no key gets zeros.

    Args:
        query: [B,T,N,D].
        key, value: [B,S,K,D]; N is a multiple of K, and query head n reads key head n // (N // K).
        query_segments: [B,T] i32. key_segments: [B,S] i32.
        causal: hide later slots. Within a segment, slots are in the order of positions.
        first_slot: [B] i32, the slot of a row's first query, its others following; None for 0 in every row, which lets causal
            blocks skip the keys behind them.

    Returns:
        [B,T,N,D] in value's dtype; scores and softmax are computed in fp32.
    """
    return attention_xla(query, key, value, query_segments, key_segments, first_slot, causal)
