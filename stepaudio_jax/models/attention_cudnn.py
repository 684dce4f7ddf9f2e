"""Attention by cuDNN, on NVIDIA GPUs: no array of scores is kept; what a query sees is given as a mask over all slots."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from stepaudio_jax.models.attention_xla import Sight


def attention_cudnn(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    sight: Sight,
    causal: bool,
    *,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> jax.Array:
    """See `attention_xla.attention_xla`.

    Sequence lengths would tell cuDNN of padding at the end, not of documents side by side: the mask, [B,1,T,S], says all.
    `implementation="xla"` computes the same from the same operands anywhere, for tests.
    """
    tokens, slots = query.shape[1], key.shape[1]
    # With a mask, cuDNN's backward pass takes even lengths only; nothing sees a padded key, and padded queries are cut off.
    query, key, value = (_to_even(x, 0) for x in (query, key, value))
    sight = dataclasses.replace(
        sight,
        query_segments=_to_even(sight.query_segments, 0),
        key_segments=_to_even(sight.key_segments, -2),
        query_prefixes=None if sight.query_prefixes is None else _to_even(sight.query_prefixes, -1),
    )
    visible = sight.visible(causal, 0, query.shape[1], key.shape[1])
    skip_later = causal and sight.first_slot is None and tokens == slots
    out = jax.nn.dot_product_attention(
        query, key, value, mask=visible[:, None], is_causal=skip_later, implementation=implementation
    )
    return out[:, :tokens].astype(value.dtype)


def _to_even(x: jax.Array, filling: int) -> jax.Array:
    odd = x.shape[1] % 2
    return jnp.pad(x, [(0, 0), (0, odd)] + [(0, 0)] * (x.ndim - 2), constant_values=filling) if odd else x
