"""Attention in plain XLA: blocks of queries, so that no [T,S] array is kept and causal blocks skip the keys they cannot see.

The backward pass computes a block's probabilities again from the saved log-sum-exp (FlashAttention
2: Dao 2023, section 3.1). Heads stand in front, a kv head's query heads in one axis of G groups:
every product is a plain batched matrix product.
"""

import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

# Large enough that a masked key gets no weight, finite so that a row in which every key is masked
# is no NaN.
MASK_VALUE = -1e10
_MAX_BLOCKS = 8  # at most; a block of fewer than 64 queries makes its products too thin
_MIN_BLOCK = 64

Saved = tuple[Any, ...]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AttentionMask:
    """What says which keys a query sees.

    Attributes:
        query_segment_ids: [B,T] i32. key_segment_ids: [B,S] i32.
        query_prefix_ids: [B,T] i32, a second segment whose keys a query sees, -1 for none; None for
        none anywhere.
        query_offset: [B] i32, the slot of a row's first query, its others following, where the
            queries are a part of the row; None for 0 in every row, which lets causal blocks skip
            the keys behind them.
    """

    query_segment_ids: jax.Array
    key_segment_ids: jax.Array
    query_prefix_ids: jax.Array | None = None
    query_offset: jax.Array | None = None

    def block(self, causal: bool, start: int, stop: int, seen: int) -> jax.Array:
        """Whether a query sees a key: queries `start` to `stop`, the first `seen` keys, [B,T,S] bool."""
        prefixes = None if self.query_prefix_ids is None else self.query_prefix_ids[:, start:stop]
        visible = AttentionMask(
            self.query_segment_ids[:, start:stop], self.key_segment_ids[:, :seen], prefixes
        ).same_segment()
        if causal:
            slot = jnp.arange(start, stop)[None, :]
            slot = slot if self.query_offset is None else slot + self.query_offset[:, None]
            visible &= slot[:, :, None] >= jnp.arange(seen)
        return visible

    def same_segment(self) -> jax.Array:
        """Whether a key's segment is the query's or its prefix, [B,T,S] bool."""
        keys = self.key_segment_ids[:, None]
        meet = self.query_segment_ids[:, :, None] == keys
        return (
            meet
            if self.query_prefix_ids is None
            else meet | (self.query_prefix_ids[:, :, None] == keys)
        )


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def flash_attention_xla(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: AttentionMask, causal: bool
) -> jax.Array:
    """See `attention.attention`."""
    return _forward(query, key, value, mask, causal)[0]


def _forward(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: AttentionMask, causal: bool
) -> tuple[jax.Array, Saved]:
    kv_heads, slots = key.shape[2], key.shape[1]
    scaled = query * jnp.asarray(query.shape[-1] ** -0.5, query.dtype)
    q, k, v = _split_heads(scaled, kv_heads), key.swapaxes(1, 2), value.swapaxes(1, 2)
    outputs, log_sums = [], []
    for start, stop, seen in _blocks(query.shape[1], slots, causal and mask.query_offset is None):
        hidden = bias(mask.block(causal, start, stop, seen))
        scores = _scores(q[:, :, :, start:stop], k[:, :, :seen]) + hidden
        largest = jnp.max(scores, axis=-1, keepdims=True)
        weights = jnp.exp(scores - largest)
        total = jnp.sum(weights, axis=-1, keepdims=True)
        sees = largest > MASK_VALUE / 2
        # The sum divides after the product with the values: [.., T, D] is smaller than [.., T, S].
        output = _times(weights.astype(v.dtype), v[:, :, :seen]) * jnp.where(sees, 1 / total, 0.0)
        outputs.append(output.astype(v.dtype))
        # 0 makes the probabilities of a query that sees nothing exp(masked) = 0 in the backward
        # pass.
        log_sums.append(jnp.where(sees, largest + jnp.log(total), 0.0))
    # Named here, not where attention is called: rematerialisation that keeps them need not run this
    # function again.
    output = checkpoint_name(jnp.concatenate(outputs, axis=3), "attn_out")
    log_sum = checkpoint_name(jnp.concatenate(log_sums, axis=3), "attn_out")
    return _merge_heads(output), (q, k, v, output, log_sum, mask)


def _backward(causal: bool, saved: Saved, gradient: jax.Array) -> tuple[jax.Array | None, ...]:
    q, k, v, output, log_sum, mask = saved
    slots = k.shape[2]
    d_output = _split_heads(gradient, k.shape[1])
    product = output.astype(jnp.float32) * d_output.astype(jnp.float32)
    mean = jnp.sum(
        product, axis=-1, keepdims=True
    )  # of the scores' gradient under the probabilities
    d_query, d_key, d_value = [], [], []
    for start, stop, seen in _blocks(q.shape[3], slots, causal and mask.query_offset is None):
        hidden = bias(mask.block(causal, start, stop, seen))
        block, d_block = q[:, :, :, start:stop], d_output[:, :, :, start:stop]
        weights = jnp.exp(_scores(block, k[:, :, :seen]) + (hidden - log_sum[:, :, :, start:stop]))
        d_scores = weights * (_scores(d_block, v[:, :, :seen]) - mean[:, :, :, start:stop])
        d_scores = d_scores.astype(k.dtype)
        d_query.append(_times(d_scores, k[:, :, :seen]))
        d_key.append(_transposed_times(block, d_scores))
        d_value.append(_transposed_times(d_block, weights.astype(v.dtype)))
    scale = q.shape[-1] ** -0.5
    d_q = _merge_heads((jnp.concatenate(d_query, axis=3) * scale).astype(q.dtype))
    d_k, d_v = (
        _sum_of_blocks(parts, slots).transpose(0, 3, 1, 2).astype(k.dtype)
        for parts in (d_key, d_value)
    )
    return d_q, d_k, d_v, None


flash_attention_xla.defvjp(_forward, _backward)


def _blocks(tokens: int, slots: int, skip_later: bool) -> list[tuple[int, int, int]]:
    """(first query, query after the last, keys that the block may see) of every block."""
    size = max(_MIN_BLOCK, -(-tokens // _MAX_BLOCKS))
    ends = [(start, min(start + size, tokens)) for start in range(0, tokens, size)]
    return [(start, stop, min(stop, slots) if skip_later else slots) for start, stop in ends]


def bias(visible: jax.Array) -> jax.Array:
    """[B,T,S] bool -> 0 where a query sees a key, else `MASK_VALUE`: [B,1,1,T,S] fp32."""
    return jnp.where(visible, 0.0, MASK_VALUE)[:, None, None]


def _scores(left: jax.Array, right: jax.Array) -> jax.Array:
    """[B,K,G,T,D] and [B,K,S,D] -> [B,K,G,T,S] fp32."""
    batch, kv_heads, groups, tokens, head_dim = left.shape
    flat = left.reshape(batch, kv_heads, groups * tokens, head_dim)
    out = jnp.einsum("BKTD,BKSD->BKTS", flat, right, preferred_element_type=jnp.float32)
    return out.reshape(batch, kv_heads, groups, tokens, right.shape[2])


def _times(weights: jax.Array, right: jax.Array) -> jax.Array:
    """[B,K,G,T,S] and [B,K,S,D] -> [B,K,G,T,D] fp32."""
    batch, kv_heads, groups, tokens, slots = weights.shape
    flat = weights.reshape(batch, kv_heads, groups * tokens, slots)
    out = jnp.einsum("BKTS,BKSD->BKTD", flat, right, preferred_element_type=jnp.float32)
    return out.reshape(batch, kv_heads, groups, tokens, right.shape[3])


def _transposed_times(left: jax.Array, weights: jax.Array) -> jax.Array:
    """[B,K,G,T,D] and [B,K,G,T,S] -> [B,K,D,S] fp32, summed over groups and tokens; the smaller operand is the one turned."""
    batch, kv_heads, groups, tokens, slots = weights.shape
    turned = left.reshape(batch, kv_heads, groups * tokens, -1).swapaxes(2, 3)
    flat = weights.reshape(batch, kv_heads, groups * tokens, slots)
    return jnp.einsum("BKDT,BKTS->BKDS", turned, flat, preferred_element_type=jnp.float32)


def _sum_of_blocks(parts: list[jax.Array], slots: int) -> jax.Array:
    """The sum [.., S] of arrays each of which is about the first of S slots; it adds what is there, and no zeros."""
    ends = sorted({part.shape[-1] for part in parts})
    pieces = [
        functools.reduce(
            jnp.add, (part[..., start:stop] for part in parts if part.shape[-1] >= stop)
        )
        for start, stop in itertools.pairwise([0, *ends])
    ]
    whole = jnp.concatenate(pieces, axis=-1)
    return jnp.pad(whole, [(0, 0)] * (whole.ndim - 1) + [(0, slots - ends[-1])])


def _split_heads(x: jax.Array, kv_heads: int) -> jax.Array:
    """[B,T,N,D] -> [B,K,G,T,D]."""
    batch, tokens, heads, head_dim = x.shape
    return x.reshape(batch, tokens, kv_heads, heads // kv_heads, head_dim).transpose(0, 2, 3, 1, 4)


def _merge_heads(x: jax.Array) -> jax.Array:
    """[B,K,G,T,D] -> [B,T,N,D]."""
    batch, kv_heads, groups, tokens, head_dim = x.shape
    return x.transpose(0, 3, 1, 2, 4).reshape(batch, tokens, kv_heads * groups, head_dim)
