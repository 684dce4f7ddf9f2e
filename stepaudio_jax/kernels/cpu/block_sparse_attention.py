"""Attention of packed rows that skips blocks without a common segment, in plain XLA, for CPUs.

A row of many documents, or of a prompt and many replies to it, is mostly pairs of tokens that do
not attend to each other. Which blocks of keys a block of queries may attend to follows from their
segments, at run time. A loop visits these alone and carries the largest score and the sums so far
(FlashAttention: Dao et al. 2022, algorithm 1; with blocks left out, section 3.3).

Shapes: `Q` blocks of queries, `J` = Q blocks of keys, `t` tokens of a block, G query heads of each
key head. Blocks come first, then heads, and the G t queries of a key head are one axis.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from stepaudio_jax.kernels.attention_mask import MASK_VALUE, AttentionMask, mask_bias

# Tokens. Matrix products of smaller blocks are too thin; larger ones hold too many segments.
_BLOCK = 64

Residuals = tuple[Any, ...]


@jax.custom_vjp
def block_sparse_attention(
    query: Float[Array, "B T N D"],
    key: Float[Array, "B T K D"],
    value: Float[Array, "B T K D"],
    mask: AttentionMask,
) -> Float[Array, "B T N D"]:
    """Computes causal `attention.attention` of a row's tokens over themselves."""
    return _forward(query, key, value, mask)[0]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _QueryBlocks:
    """Which blocks of keys each block of queries attends to.

    Attributes:
        index: [Q] i32, the number of the block of queries.
        query_segment_ids: [Q,B,t] i32.
        query_prefix_ids: [Q,B,t] i32 or None.
        key_blocks: [Q,J] i32, the blocks of keys, those to attend to first.
        num_key_blocks: [Q] i32, how many these are.
    """

    index: jax.Array
    query_segment_ids: jax.Array
    query_prefix_ids: jax.Array | None
    key_blocks: jax.Array
    num_key_blocks: jax.Array


def _forward(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: AttentionMask
) -> tuple[jax.Array, Residuals]:
    kv_heads = key.shape[2]
    scaled = query * jnp.asarray(query.shape[-1] ** -0.5, query.dtype)
    q, k, v = (_to_blocks(x, kv_heads) for x in (scaled, key, value))
    key_segment_ids = _split_ids(mask.key_segment_ids)
    blocks = _find_attended_blocks(mask, key_segment_ids)

    def attend(
        _: None, inputs: tuple[jax.Array, _QueryBlocks]
    ) -> tuple[None, tuple[jax.Array, jax.Array]]:
        q, block = inputs

        def add_keys(step: jax.Array, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            max_score, total, summed = state
            index = block.key_blocks[step]
            bias = _block_bias(block, _take(key_segment_ids, index), index)
            scores = _scores(q, _take(k, index), bias)
            new_max = jnp.maximum(max_score, jnp.max(scores, axis=-1))
            weights, rescale = jnp.exp(scores - new_max[..., None]), jnp.exp(max_score - new_max)
            weighted = _product("BKTS,BKSD->BKTD", weights.astype(v.dtype), _take(v, index))
            return (
                new_max,
                total * rescale + jnp.sum(weights, axis=-1),
                summed * rescale[..., None] + weighted,
            )

        zeros = jnp.zeros(q.shape, jnp.float32)
        start = jnp.full(q.shape[:-1], MASK_VALUE), zeros[..., 0], zeros
        max_score, total, summed = jax.lax.fori_loop(0, block.num_key_blocks, add_keys, start)
        has_keys = max_score > MASK_VALUE / 2
        output = summed * jnp.where(has_keys, 1 / total, 0.0)[..., None]
        # For a query without keys, a log-sum of 0 makes its probabilities exp(MASK_VALUE) = 0 in
        # the backward pass.
        log_sum = jnp.where(has_keys, max_score + jnp.log(total), 0.0)
        return None, (output.astype(value.dtype), log_sum)

    _, (output, log_sum) = jax.lax.scan(attend, None, (q, blocks))
    # Named here, not where attention is called, so that rematerialisation which saves them need not
    # run this function again.
    output, log_sum = checkpoint_name(output, "attn_out"), checkpoint_name(log_sum, "attn_out")
    return _from_blocks(output, query.shape), (q, k, v, output, log_sum, key_segment_ids, blocks)


def _backward(residuals: Residuals, gradient: jax.Array) -> tuple[jax.Array | None, ...]:
    q, k, v, output, log_sum, key_segment_ids, blocks = residuals
    d_output = _to_blocks(gradient, k.shape[2])
    product = output.astype(jnp.float32) * d_output.astype(jnp.float32)
    # The mean, under the probabilities, of the gradient to them (Dao 2023, D in algorithm 2).
    mean = jnp.sum(product, axis=-1)

    def attend(
        sums: tuple[jax.Array, jax.Array], inputs: tuple[Any, ...]
    ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        q, d_output, log_sum, mean, block = inputs
        q_transposed, d_output_transposed = q.swapaxes(2, 3), d_output.swapaxes(2, 3)

        def add_keys(step: jax.Array, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            d_query, d_keys, d_values = state
            index = block.key_blocks[step]
            key = _take(k, index)
            bias = _block_bias(block, _take(key_segment_ids, index), index)
            weights = jnp.exp(_scores(q, key, bias) - log_sum[..., None])
            d_weights = _product("BKTD,BKSD->BKTS", d_output, _take(v, index))
            d_scores = (weights * (d_weights - mean[..., None])).astype(k.dtype)
            d_key = _product("BKDT,BKTS->BKDS", q_transposed, d_scores)
            d_value = _product("BKDT,BKTS->BKDS", d_output_transposed, weights.astype(v.dtype))
            d_query += _product("BKTS,BKSD->BKTD", d_scores, key)
            return d_query, _add_at(d_keys, d_key, index), _add_at(d_values, d_value, index)

        d_query, d_keys, d_values = jax.lax.fori_loop(
            0, block.num_key_blocks, add_keys, (jnp.zeros(q.shape, jnp.float32), *sums)
        )
        return (d_keys, d_values), d_query

    zeros = jnp.zeros((*k.shape[:3], k.shape[4], k.shape[3]), jnp.float32)
    (d_keys, d_values), d_query = jax.lax.scan(
        attend, (zeros, zeros), (q, d_output, log_sum, mean, blocks)
    )
    scale, key_shape = q.shape[-1] ** -0.5, (*gradient.shape[:2], k.shape[2], k.shape[4])
    d_k, d_v = (
        _from_blocks(x.swapaxes(3, 4), key_shape).astype(k.dtype) for x in (d_keys, d_values)
    )
    return _from_blocks(d_query * scale, gradient.shape).astype(q.dtype), d_k, d_v, None


block_sparse_attention.defvjp(_forward, _backward)


def _find_attended_blocks(mask: AttentionMask, key_segment_ids: jax.Array) -> _QueryBlocks:
    """Finds the blocks of keys that each block of queries may attend to in any row.

    They are those that are not later and whose range of segment ids overlaps the queries' own, or
    that of their prefixes. `key_segment_ids` is [J,B,t].
    """
    segments = _split_ids(mask.query_segment_ids)
    key_min = jnp.min(key_segment_ids, axis=-1)  # [J,B]
    key_max = jnp.max(key_segment_ids, axis=-1)

    def overlaps(query_min: jax.Array, query_max: jax.Array) -> jax.Array:
        """Compares ranges [Q,B] with those of the keys -> [Q,J] bool."""
        return jnp.any((query_min[:, None] <= key_max) & (query_max[:, None] >= key_min), axis=-1)

    is_attended, prefixes = overlaps(jnp.min(segments, axis=-1), jnp.max(segments, axis=-1)), None
    if mask.query_prefix_ids is not None:
        prefixes = _split_ids(mask.query_prefix_ids)
        no_prefix = jnp.iinfo(prefixes.dtype).max
        is_attended |= overlaps(
            jnp.min(jnp.where(prefixes < 0, no_prefix, prefixes), axis=-1),
            jnp.max(prefixes, axis=-1),
        )
    index = jnp.arange(is_attended.shape[0])
    is_attended &= index <= index[:, None]
    return _QueryBlocks(
        index,
        segments,
        prefixes,
        jnp.argsort(~is_attended, axis=1, stable=True),
        jnp.sum(is_attended, axis=1),
    )


def _block_bias(block: _QueryBlocks, key_segment_ids: jax.Array, key_block: jax.Array) -> jax.Array:
    """Returns the bias of the scores of one block of queries and one of keys: [B,1,1,t,t]."""
    offset = jnp.arange(_BLOCK)
    not_later = (block.index * _BLOCK + offset)[:, None] >= key_block * _BLOCK + offset
    mask = AttentionMask(block.query_segment_ids, key_segment_ids, block.query_prefix_ids)
    return mask_bias(mask.same_segment() & not_later)


def _scores(queries: jax.Array, keys: jax.Array, bias: jax.Array) -> jax.Array:
    """Multiplies [B,K,G t,D] and [B,K,t,D], and adds the bias [B,1,1,t,t] -> [B,K,G t,t] fp32."""
    scores = _product("BKTD,BKSD->BKTS", queries, keys)
    by_head = scores.reshape(*scores.shape[:2], -1, *bias.shape[3:])
    return (by_head + bias).reshape(scores.shape)


def _product(einsum: str, left: jax.Array, right: jax.Array) -> jax.Array:
    return jnp.einsum(einsum, left, right, preferred_element_type=jnp.float32)


def _take(x: jax.Array, index: jax.Array) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(x, index, keepdims=False)


def _add_at(x: jax.Array, addend: jax.Array, index: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_index_in_dim(x, _take(x, index) + addend, index, axis=0)


def _split_ids(x: jax.Array) -> jax.Array:
    """Reshapes [B,T] -> [Q,B,t], the last token repeated behind the row."""
    padded = jnp.pad(x, ((0, 0), (0, -x.shape[1] % _BLOCK)), mode="edge")
    return padded.reshape(x.shape[0], -1, _BLOCK).swapaxes(0, 1)


def _to_blocks(x: jax.Array, kv_heads: int) -> jax.Array:
    """Reshapes [B,T,N,D] -> [Q,B,K,G t,D], zeros behind the row."""
    rows, tokens, heads, head_dim = x.shape
    padded = jnp.pad(x, ((0, 0), (0, -tokens % _BLOCK), (0, 0), (0, 0)))
    split = padded.reshape(rows, -1, _BLOCK, kv_heads, heads // kv_heads, head_dim)
    blocks = split.transpose(1, 0, 3, 4, 2, 5)
    return blocks.reshape(*blocks.shape[:3], -1, head_dim)


def _from_blocks(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Inverts `_to_blocks`, for an array of shape [B,T,N,D]."""
    rows, tokens, heads, head_dim = shape
    split = x.reshape(*x.shape[:3], -1, _BLOCK, head_dim).transpose(1, 0, 4, 2, 3, 5)
    return split.reshape(rows, -1, heads, head_dim)[:, :tokens]
