"""Attention of packed rows in plain XLA, for CPUs: blocks of a row that see nothing of each other cost nothing.

A row of many documents, or of a prompt and many replies to it, is mostly pairs of tokens that do
not see each other. Which blocks of keys a block of queries may see follows from their segments, at
run time; a loop goes through these alone and carries the largest score and the sums so far
(FlashAttention: Dao et al. 2022, algorithm 1; with blocks left out, section 3.3).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from stepaudio_jax.kernels.flash_xla import MASK_VALUE, AttentionMask, bias

_BLOCK = (
    64  # tokens: smaller ones make products too thin, larger ones hold tokens of too many segments
)

Saved = tuple[Any, ...]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Blocks:
    """What says which keys each block of queries sees: I of queries, J = I of keys, _BLOCK = t tokens each.

    Attributes:
        number: [I] i32, of the block of queries.
        query_segment_ids: [I,B,t] i32. query_prefix_ids: [I,B,t] i32 or None.
        order: [I,J] i32, the blocks of keys, those that the queries may see in front.
        count: [I] i32, how many these are.
    """

    number: jax.Array
    query_segment_ids: jax.Array
    query_prefix_ids: jax.Array | None
    order: jax.Array
    count: jax.Array


@jax.custom_vjp
def block_sparse_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: AttentionMask
) -> jax.Array:
    """See `attention.attention`: where causal, and queries and keys are the same tokens."""
    return _forward(query, key, value, mask)[0]


def _forward(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: AttentionMask
) -> tuple[jax.Array, Saved]:
    kv_heads = key.shape[2]
    scaled = query * jnp.asarray(query.shape[-1] ** -0.5, query.dtype)
    q, k, v = (_to_blocks(x, kv_heads) for x in (scaled, key, value))
    key_segment_ids = _split_ids(mask.key_segment_ids)
    blocks = _visible_blocks(mask, key_segment_ids)

    def attend(
        _: None, block: tuple[jax.Array, _Blocks]
    ) -> tuple[None, tuple[jax.Array, jax.Array]]:
        q, own = block

        def add(turn: jax.Array, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            largest, total, summed = state
            other = own.order[turn]
            scores = _scores(q, _at(k, other), _bias(own, _at(key_segment_ids, other), other))
            larger = jnp.maximum(largest, jnp.max(scores, axis=-1))
            weights, shrunk = jnp.exp(scores - larger[..., None]), jnp.exp(largest - larger)
            added = _product("BKTS,BKSD->BKTD", weights.astype(v.dtype), _at(v, other))
            return (
                larger,
                total * shrunk + jnp.sum(weights, axis=-1),
                summed * shrunk[..., None] + added,
            )

        nothing = jnp.zeros(q.shape, jnp.float32)
        begin = jnp.full(q.shape[:-1], MASK_VALUE), nothing[..., 0], nothing
        largest, total, summed = jax.lax.fori_loop(0, own.count, add, begin)
        sees = largest > MASK_VALUE / 2
        output = summed * jnp.where(sees, 1 / total, 0.0)[..., None]
        # 0 makes the probabilities of a query that sees nothing exp(masked) = 0 in the backward
        # pass.
        return None, (output.astype(value.dtype), jnp.where(sees, largest + jnp.log(total), 0.0))

    _, (output, log_sum) = jax.lax.scan(attend, None, (q, blocks))
    # Named here, not where attention is called: rematerialisation that keeps them need not run this
    # function again.
    output, log_sum = checkpoint_name(output, "attn_out"), checkpoint_name(log_sum, "attn_out")
    return _from_blocks(output, query.shape), (q, k, v, output, log_sum, key_segment_ids, blocks)


def _backward(saved: Saved, gradient: jax.Array) -> tuple[jax.Array | None, ...]:
    q, k, v, output, log_sum, key_segment_ids, blocks = saved
    d_output = _to_blocks(gradient, k.shape[2])
    product = output.astype(jnp.float32) * d_output.astype(jnp.float32)
    mean = jnp.sum(product, axis=-1)  # of the scores' gradient under the probabilities

    def attend(
        sums: tuple[jax.Array, jax.Array], block: tuple[Any, ...]
    ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        q, d_output, log_sum, mean, own = block
        q_turned, d_output_turned = q.swapaxes(2, 3), d_output.swapaxes(2, 3)

        def add(turn: jax.Array, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            d_query, d_keys, d_values = state
            other = own.order[turn]
            key, hidden = _at(k, other), _bias(own, _at(key_segment_ids, other), other)
            weights = jnp.exp(_scores(q, key, hidden) - log_sum[..., None])
            d_weights = _product("BKTD,BKSD->BKTS", d_output, _at(v, other))
            d_scores = (weights * (d_weights - mean[..., None])).astype(k.dtype)
            d_key = _product("BKDT,BKTS->BKDS", q_turned, d_scores)
            d_value = _product("BKDT,BKTS->BKDS", d_output_turned, weights.astype(v.dtype))
            d_query += _product("BKTS,BKSD->BKTD", d_scores, key)
            return d_query, _added(d_keys, d_key, other), _added(d_values, d_value, other)

        d_query, *sums_after = jax.lax.fori_loop(
            0, own.count, add, (jnp.zeros(q.shape, jnp.float32), *sums)
        )
        return (sums_after[0], sums_after[1]), d_query

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


def _visible_blocks(mask: AttentionMask, key_segment_ids: jax.Array) -> _Blocks:
    """Which blocks of keys each block of queries may see in any row: no later ones, whose range of segments meets its own."""
    segments = _split_ids(mask.query_segment_ids)
    least, most = jnp.min(key_segment_ids, axis=-1), jnp.max(key_segment_ids, axis=-1)  # [J,B]

    def meet(low: jax.Array, high: jax.Array) -> jax.Array:
        return jnp.any((low[:, None] <= most) & (high[:, None] >= least), axis=-1)  # [I,J]

    seen, prefixes = meet(jnp.min(segments, axis=-1), jnp.max(segments, axis=-1)), None
    if mask.query_prefix_ids is not None:
        prefixes = _split_ids(mask.query_prefix_ids)
        none = jnp.iinfo(prefixes.dtype).max
        seen |= meet(
            jnp.min(jnp.where(prefixes < 0, none, prefixes), axis=-1), jnp.max(prefixes, axis=-1)
        )
    number = jnp.arange(seen.shape[0])
    seen &= number <= number[:, None]
    return _Blocks(
        number, segments, prefixes, jnp.argsort(~seen, axis=1, stable=True), jnp.sum(seen, axis=1)
    )


def _bias(own: _Blocks, key_segment_ids: jax.Array, other: jax.Array) -> jax.Array:
    """What is added to the scores of one block's queries and another's keys [B,t]."""
    within = jnp.arange(_BLOCK)
    earlier = (own.number * _BLOCK + within)[:, None] >= other * _BLOCK + within
    return bias(
        AttentionMask(own.query_segment_ids, key_segment_ids, own.query_prefix_ids).same_segment()
        & earlier
    )


def _scores(queries: jax.Array, keys: jax.Array, bias: jax.Array) -> jax.Array:
    """[B,K,G t,D] and [B,K,t,D], and [B,1,1,t,t] -> [B,K,G t,t] fp32."""
    scores = _product("BKTD,BKSD->BKTS", queries, keys)
    apart = scores.reshape(*scores.shape[:2], -1, *bias.shape[3:])
    return (apart + bias).reshape(scores.shape)


def _product(einsum: str, left: jax.Array, right: jax.Array) -> jax.Array:
    return jnp.einsum(einsum, left, right, preferred_element_type=jnp.float32)


def _at(x: jax.Array, index: jax.Array) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(x, index, keepdims=False)


def _added(x: jax.Array, more: jax.Array, index: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_index_in_dim(x, _at(x, index) + more, index, axis=0)


def _split_ids(x: jax.Array) -> jax.Array:
    """[B,T] -> [I,B,t], the last token repeated behind the row."""
    padded = jnp.pad(x, ((0, 0), (0, -x.shape[1] % _BLOCK)), mode="edge")
    return padded.reshape(x.shape[0], -1, _BLOCK).swapaxes(0, 1)


def _to_blocks(x: jax.Array, kv_heads: int) -> jax.Array:
    """[B,T,N,D] -> [I,B,K,G t,D], zeros behind the row: heads in front, a kv head's query heads one after the other."""
    rows, tokens, heads, head_dim = x.shape
    padded = jnp.pad(x, ((0, 0), (0, -tokens % _BLOCK), (0, 0), (0, 0)))
    apart = padded.reshape(rows, -1, _BLOCK, kv_heads, heads // kv_heads, head_dim).transpose(
        1, 0, 3, 4, 2, 5
    )
    return apart.reshape(*apart.shape[:3], -1, head_dim)


def _from_blocks(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The inverse of `_to_blocks`, for what was of this shape [B,T,N,D]."""
    rows, tokens, heads, head_dim = shape
    apart = x.reshape(*x.shape[:3], -1, _BLOCK, head_dim).transpose(1, 0, 4, 2, 3, 5)
    return apart.reshape(rows, -1, heads, head_dim)[:, :tokens]
