"""Attention in plain XLA, by blocks of queries.

No [T, kv_len] array is kept, and causal blocks skip the keys behind them. The backward pass
recomputes a block's probabilities from the saved log-sum-exp (FlashAttention 2: Dao 2023, section
3.1). Inside, heads come first, and the query heads of a key head are one axis of G groups, so that
every product is a plain batched matrix product.

Shapes: `block` queries of a block, `keys` keys that it may attend to.
"""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from stepaudio_jax.kernels.attention_mask import MASK_VALUE, AttentionMask, mask_bias

_MAX_BLOCKS = 8
_MIN_BLOCK = 64  # queries; the matrix products of smaller blocks are too thin

Residuals = tuple[Any, ...]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def flash_attention_xla(
    query: Float[Array, "B T N D"],
    key: Float[Array, "B kv_len K D"],
    value: Float[Array, "B kv_len K D"],
    mask: AttentionMask,
    causal: bool,
) -> Float[Array, "B T N D"]:
    """Computes `attention.attention` in plain XLA; differentiable by query, key and value."""
    return _forward(query, key, value, mask, causal)[0]


def _forward(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: AttentionMask, causal: bool
) -> tuple[jax.Array, Residuals]:
    kv_len, kv_heads = key.shape[1:3]
    scaled = query * jnp.asarray(query.shape[-1] ** -0.5, query.dtype)
    q, k, v = _split_heads(scaled, kv_heads), key.swapaxes(1, 2), value.swapaxes(1, 2)
    outputs, log_sums = [], []
    for start, stop, keys in _blocks(query.shape[1], kv_len, causal and mask.query_offset is None):
        bias = mask_bias(mask.block(causal, start, stop, keys))
        scores = _scores(q[:, :, :, start:stop], k[:, :, :keys]) + bias
        max_score = jnp.max(scores, axis=-1, keepdims=True)
        weights = jnp.exp(scores - max_score)
        total = jnp.sum(weights, axis=-1, keepdims=True)
        has_keys = max_score > MASK_VALUE / 2
        # The division comes after the product with the values: [.., block, D] is smaller than
        # [.., block, keys].
        scale = jnp.where(has_keys, 1 / total, 0.0)
        output = _weighted_sum(weights.astype(v.dtype), v[:, :, :keys]) * scale
        outputs.append(output.astype(v.dtype))
        # For a query without keys, a log-sum of 0 makes its probabilities exp(MASK_VALUE) = 0 in
        # the backward pass.
        log_sums.append(jnp.where(has_keys, max_score + jnp.log(total), 0.0))
    # Named here, not where attention is called, so that rematerialisation which saves them need not
    # run this function again.
    output = checkpoint_name(jnp.concatenate(outputs, axis=3), "attn_out")
    log_sum = checkpoint_name(jnp.concatenate(log_sums, axis=3), "attn_out")
    return _merge_heads(output), (q, k, v, output, log_sum, mask)


def _backward(
    causal: bool, residuals: Residuals, gradient: jax.Array
) -> tuple[jax.Array | None, ...]:
    q, k, v, output, log_sum, mask = residuals
    kv_len = k.shape[2]
    d_output = _split_heads(gradient, k.shape[1])
    product = output.astype(jnp.float32) * d_output.astype(jnp.float32)
    # The mean, under the probabilities, of the gradient to them (Dao 2023, D in algorithm 2).
    mean = jnp.sum(product, axis=-1, keepdims=True)
    d_query, d_key, d_value = [], [], []
    for start, stop, keys in _blocks(q.shape[3], kv_len, causal and mask.query_offset is None):
        bias = mask_bias(mask.block(causal, start, stop, keys))
        block, d_block = q[:, :, :, start:stop], d_output[:, :, :, start:stop]
        weights = jnp.exp(_scores(block, k[:, :, :keys]) + (bias - log_sum[:, :, :, start:stop]))
        d_scores = weights * (_scores(d_block, v[:, :, :keys]) - mean[:, :, :, start:stop])
        d_scores = d_scores.astype(k.dtype)
        d_query.append(_weighted_sum(d_scores, k[:, :, :keys]))
        d_key.append(_transposed_product(block, d_scores))
        d_value.append(_transposed_product(d_block, weights.astype(v.dtype)))
    scale = q.shape[-1] ** -0.5
    d_q = _merge_heads((jnp.concatenate(d_query, axis=3) * scale).astype(q.dtype))
    d_k, d_v = (
        _sum_of_blocks(parts, kv_len).transpose(0, 3, 1, 2).astype(k.dtype)
        for parts in (d_key, d_value)
    )
    return d_q, d_k, d_v, None


flash_attention_xla.defvjp(_forward, _backward)


def _blocks(tokens: int, kv_len: int, skip_later: bool) -> list[tuple[int, int, int]]:
    """Returns (first query, end of the queries, number of keys to look at) of every block."""
    size = max(_MIN_BLOCK, -(-tokens // _MAX_BLOCKS))
    ends = [(start, min(start + size, tokens)) for start in range(0, tokens, size)]
    return [(start, stop, min(stop, kv_len) if skip_later else kv_len) for start, stop in ends]


def _scores(queries: jax.Array, keys: jax.Array) -> jax.Array:
    """Multiplies [B,K,G,block,D] and [B,K,keys,D] -> [B,K,G,block,keys] fp32."""
    batch, kv_heads, groups, tokens, head_dim = queries.shape
    flat = queries.reshape(batch, kv_heads, groups * tokens, head_dim)
    out = jnp.einsum("BKTD,BKSD->BKTS", flat, keys, preferred_element_type=jnp.float32)
    return out.reshape(batch, kv_heads, groups, tokens, keys.shape[2])


def _weighted_sum(weights: jax.Array, values: jax.Array) -> jax.Array:
    """Multiplies [B,K,G,block,keys] and [B,K,keys,D] -> [B,K,G,block,D] fp32."""
    batch, kv_heads, groups, tokens, keys = weights.shape
    flat = weights.reshape(batch, kv_heads, groups * tokens, keys)
    out = jnp.einsum("BKTS,BKSD->BKTD", flat, values, preferred_element_type=jnp.float32)
    return out.reshape(batch, kv_heads, groups, tokens, values.shape[3])


def _transposed_product(queries: jax.Array, weights: jax.Array) -> jax.Array:
    """Sums [B,K,G,block,D] times [B,K,G,block,keys] over groups and block -> [B,K,D,keys] fp32.

    The smaller operand is the one that is transposed.
    """
    batch, kv_heads, groups, tokens, keys = weights.shape
    transposed = queries.reshape(batch, kv_heads, groups * tokens, -1).swapaxes(2, 3)
    flat = weights.reshape(batch, kv_heads, groups * tokens, keys)
    return jnp.einsum("BKDT,BKTS->BKDS", transposed, flat, preferred_element_type=jnp.float32)


def _sum_of_blocks(parts: list[jax.Array], kv_len: int) -> jax.Array:
    """Adds arrays [.., keys], each about the first keys of the row -> [.., kv_len].

    Only what is there is added: no array is padded with zeros first.
    """
    ends = sorted({part.shape[-1] for part in parts})
    pieces = [
        functools.reduce(
            jnp.add, (part[..., start:stop] for part in parts if part.shape[-1] >= stop)
        )
        for start, stop in itertools.pairwise([0, *ends])
    ]
    total = jnp.concatenate(pieces, axis=-1)
    return jnp.pad(total, [(0, 0)] * (total.ndim - 1) + [(0, kv_len - ends[-1])])


def _split_heads(x: jax.Array, kv_heads: int) -> jax.Array:
    """Reshapes [B,T,N,D] -> [B,K,G,T,D]."""
    batch, tokens, heads, head_dim = x.shape
    return x.reshape(batch, tokens, kv_heads, heads // kv_heads, head_dim).transpose(0, 2, 3, 1, 4)


def _merge_heads(x: jax.Array) -> jax.Array:
    """Reshapes [B,K,G,T,D] -> [B,T,N,D]."""
    batch, kv_heads, groups, tokens, head_dim = x.shape
    return x.transpose(0, 3, 1, 2, 4).reshape(batch, tokens, kv_heads * groups, head_dim)
