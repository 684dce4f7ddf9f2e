"""Attention by cuDNN, on NVIDIA GPUs: no array of scores is kept.

cuDNN knows lengths of padding, not documents side by side: it is given a mask over all keys, which
makes it slower. A batch with one long document a row needs no mask. Which of the two a batch is, is
only known when the program runs, so both forms are compiled.
"""

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from stepaudio_jax.kernels.attention_mask import AttentionMask


def cudnn_attention(
    query: Float[Array, "B T N D"],
    key: Float[Array, "B kv_len K D"],
    value: Float[Array, "B kv_len K D"],
    mask: AttentionMask,
    causal: bool,
    *,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> Float[Array, "B T N D"]:
    """Computes `attention.attention` by `jax.nn.dot_product_attention`.

    Where every row is one document with padding (segment 0) behind it, no mask is used, and queries
    of the padding attend to the document.

    Args:
        query: queries of any length; odd lengths are padded.
        key, value: keys and values of each position in the row.
        mask: the segments of queries and keys.
        causal: mask later keys.
        implementation: "xla" computes the same from the same operands on any platform, for tests.
    """
    tokens, kv_len = query.shape[1], key.shape[1]
    skip_later = causal and mask.query_offset is None and tokens == kv_len
    unpacked = _is_unpacked(mask) if skip_later and mask.query_prefix_ids is None else None
    # With a mask, cuDNN's backward pass takes even lengths only. No query attends to a padded key,
    # and the outputs of padded queries are dropped.
    query, key, value = (_pad_to_even(x, 0) for x in (query, key, value))
    prefix_ids = mask.query_prefix_ids
    mask = dataclasses.replace(
        mask,
        query_segment_ids=_pad_to_even(mask.query_segment_ids, 0),
        key_segment_ids=_pad_to_even(mask.key_segment_ids, -2),
        query_prefix_ids=None if prefix_ids is None else _pad_to_even(prefix_ids, -1),
    )
    attend = functools.partial(
        jax.nn.dot_product_attention, is_causal=skip_later, implementation=implementation
    )

    def masked(
        query: Float[Array, "B T N D"],
        key: Float[Array, "B kv_len K D"],
        value: Float[Array, "B kv_len K D"],
        mask: AttentionMask,
    ) -> Float[Array, "B T N D"]:
        blocks = mask.block(causal, 0, query.shape[1], key.shape[1])
        return attend(query, key, value, mask=blocks[:, None])

    def unmasked(
        query: Float[Array, "B T N D"],
        key: Float[Array, "B kv_len K D"],
        value: Float[Array, "B kv_len K D"],
        mask: AttentionMask,
    ) -> Float[Array, "B T N D"]:
        return attend(query, key, value)

    operands = query, key, value, mask
    out = (
        masked(*operands)
        if unpacked is None
        else jax.lax.cond(unpacked, unmasked, masked, *operands)
    )
    return out[:, :tokens].astype(value.dtype)


def is_cudnn_attention(primitive: Any, *_: Any, **__: Any) -> bool:
    """Returns whether a primitive is cuDNN's attention, for rematerialisation policies.

    JAX calls it inside `dot_product_attention`, where its output cannot be given a name.
    """
    return bool(primitive.name.startswith("dot_product_attention_fwd"))


def _is_unpacked(mask: AttentionMask) -> jax.Array:
    """Returns whether every row is one document and padding behind it; queries are the keys."""
    segments = mask.query_segment_ids
    continues = (segments[:, 1:] == segments[:, :-1]) | (segments[:, 1:] == 0)
    return jnp.all(continues) & jnp.all(segments == mask.key_segment_ids)


def _pad_to_even(x: jax.Array, value: int) -> jax.Array:
    if x.shape[1] % 2 == 0:
        return x
    return jnp.pad(x, [(0, 0), (0, 1)] + [(0, 0)] * (x.ndim - 2), constant_values=value)
