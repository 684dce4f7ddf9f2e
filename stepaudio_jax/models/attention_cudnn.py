"""Attention by cuDNN, on NVIDIA GPUs: no array of scores is kept.

What a query sees is given as a mask over all slots. The kernel is slower for it, and a batch of one long document a row, which
needs none, goes without: which of the two it is, is found when the program runs.
"""

import dataclasses
import functools
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

    Sequence lengths would tell cuDNN of padding at the end, not of documents side by side: the mask, [B,1,T,S], says all. Where
    every row is a document and padding (segment 0) behind it, queries of the padding see the document.
    `implementation="xla"` computes the same from the same operands anywhere, for tests.
    """
    tokens, slots = query.shape[1], key.shape[1]
    skip_later = causal and sight.first_slot is None and tokens == slots
    alone = _one_document_a_row(sight) if skip_later and sight.query_prefixes is None else None
    # With a mask, cuDNN's backward pass takes even lengths only; nothing sees a padded key, and padded queries are cut off.
    query, key, value = (_to_even(x, 0) for x in (query, key, value))
    sight = dataclasses.replace(
        sight,
        query_segments=_to_even(sight.query_segments, 0),
        key_segments=_to_even(sight.key_segments, -2),
        query_prefixes=None if sight.query_prefixes is None else _to_even(sight.query_prefixes, -1),
    )
    attend = functools.partial(jax.nn.dot_product_attention, is_causal=skip_later, implementation=implementation)

    def masked(query: jax.Array, key: jax.Array, value: jax.Array, sight: Sight) -> jax.Array:
        visible = sight.visible(causal, 0, query.shape[1], key.shape[1])
        return attend(query, key, value, mask=visible[:, None])

    def unmasked(query: jax.Array, key: jax.Array, value: jax.Array, sight: Sight) -> jax.Array:
        return attend(query, key, value)

    operands = query, key, value, sight
    out = masked(*operands) if alone is None else jax.lax.cond(alone, unmasked, masked, *operands)
    return out[:, :tokens].astype(value.dtype)


def _one_document_a_row(sight: Sight) -> jax.Array:
    """Whether no slot is of another segment than the one before it, unless it is padding; for queries that are the keys."""
    segments = sight.query_segments
    goes_on = (segments[:, 1:] == segments[:, :-1]) | (segments[:, 1:] == 0)
    return jnp.all(goes_on) & jnp.all(segments == sight.key_segments)


def _to_even(x: jax.Array, filling: int) -> jax.Array:
    odd = x.shape[1] % 2
    return jnp.pad(x, [(0, 0), (0, odd)] + [(0, 0)] * (x.ndim - 2), constant_values=filling) if odd else x
