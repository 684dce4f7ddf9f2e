"""Attention by cuDNN, on NVIDIA GPUs: no array of scores is kept.

What a query sees is given as a mask over all slots. The kernel is slower for it, and a batch of one
long document a row, which needs none, goes without: which of the two it is, is found when the
program runs.
"""

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp

from stepaudio_jax.kernels.flash_xla import AttentionMask


def cudnn_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: AttentionMask,
    causal: bool,
    *,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> jax.Array:
    """See `flash_attention_xla.flash_attention_xla`.

    Sequence lengths would tell cuDNN of padding at the end, not of documents side by side: the
    mask, [B,1,T,S], says all. Where every row is a document and padding (segment 0) behind it,
    queries of the padding see the document. `implementation="xla"` computes the same from the same
    operands anywhere, for tests.
    """
    tokens, slots = query.shape[1], key.shape[1]
    skip_later = causal and mask.query_offset is None and tokens == slots
    alone = _is_unpacked(mask) if skip_later and mask.query_prefix_ids is None else None
    # With a mask, cuDNN's backward pass takes even lengths only; nothing sees a padded key, and
    # padded queries are cut off.
    query, key, value = (_pad_to_even(x, 0) for x in (query, key, value))
    mask = dataclasses.replace(
        mask,
        query_segment_ids=_pad_to_even(mask.query_segment_ids, 0),
        key_segment_ids=_pad_to_even(mask.key_segment_ids, -2),
        query_prefix_ids=None
        if mask.query_prefix_ids is None
        else _pad_to_even(mask.query_prefix_ids, -1),
    )
    attend = functools.partial(
        jax.nn.dot_product_attention, is_causal=skip_later, implementation=implementation
    )

    def masked(
        query: jax.Array, key: jax.Array, value: jax.Array, mask: AttentionMask
    ) -> jax.Array:
        visible = mask.block(causal, 0, query.shape[1], key.shape[1])
        return attend(query, key, value, mask=visible[:, None])

    def unmasked(
        query: jax.Array, key: jax.Array, value: jax.Array, mask: AttentionMask
    ) -> jax.Array:
        return attend(query, key, value)

    operands = query, key, value, mask
    out = masked(*operands) if alone is None else jax.lax.cond(alone, unmasked, masked, *operands)
    return out[:, :tokens].astype(value.dtype)


def _is_unpacked(mask: AttentionMask) -> jax.Array:
    """Whether no slot is of another segment than the one before it, unless it is padding; for queries that are the keys."""
    segments = mask.query_segment_ids
    goes_on = (segments[:, 1:] == segments[:, :-1]) | (segments[:, 1:] == 0)
    return jnp.all(goes_on) & jnp.all(segments == mask.key_segment_ids)


def _pad_to_even(x: jax.Array, filling: int) -> jax.Array:
    odd = x.shape[1] % 2
    return (
        jnp.pad(x, [(0, 0), (0, odd)] + [(0, 0)] * (x.ndim - 2), constant_values=filling)
        if odd
        else x
    )
