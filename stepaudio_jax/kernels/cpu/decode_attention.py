"""Attention over a cache that reads only as many of its blocks as the rows need, in plain XLA."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from stepaudio_jax.kernels.attention_mask import MASK_VALUE
from stepaudio_jax.kernels.kv_cache import LayerCache

_MIN_BLOCK, _MAX_BLOCK = 32, 64
_MIN_BLOCKS_PER_ROW = 16  # unless blocks would be smaller than _MIN_BLOCK


def blockwise_decode_attention(
    query: Float[Array, "B K G D"], cache: LayerCache, last_position: Int[Array, " B"]
) -> Float[Array, "B K G D"]:
    """Computes `decode_attention.dense_decode_attention` without reading unused blocks.

    The cache may have more rows than the query, which are not read.

    Every row needs the blocks up to its `last_position`. They stand in one list, row after row, and
    each step of a loop takes as many entries of it as there are rows: a step may take several
    blocks of a long row and none of a short one. The sums of a row are rescaled to its largest
    score so far (Milakov and Gimelshein 2018, algorithm 3).
    """
    rows, cache_len = query.shape[0], cache.keys.shape[2]
    size = decode_block_size(cache_len)
    blocks_needed = last_position // size + 1
    ends = jnp.cumsum(blocks_needed)
    dtype = query.dtype

    def add_blocks(
        step: jax.Array, state: tuple[jax.Array, jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        max_score, total, summed = state
        # W = B entries of the list, and the row and first cache position of each.
        entry = step * rows + jnp.arange(rows)
        row = jnp.minimum(jnp.sum(entry[:, None] >= ends, axis=1), rows - 1)
        first = (entry - (ends - blocks_needed)[row]) * size
        start = jnp.minimum(first, cache_len - size)  # the last block overlaps the one before it
        position = start[:, None] + jnp.arange(size)
        mask = (
            (position >= first[:, None])
            & (position <= last_position[row][:, None])
            & (entry < ends[-1])[:, None]
        )
        mask = mask[:, None, None]
        block = jax.tree.map(lambda x: _slice_blocks(x, row, start, size), cache)
        scores = jnp.einsum(
            "WKGD,WKSD->WKGS",
            query[row],
            block.keys.astype(dtype),
            preferred_element_type=jnp.float32,
        )
        if block.key_scales is not None:
            scores *= block.key_scales[:, :, None]
        scores = jnp.where(mask, scores, MASK_VALUE)
        is_row = row[:, None] == jnp.arange(rows)  # [W,B]
        max_of_rows = jnp.where(
            is_row[:, :, None, None], jnp.max(scores, axis=-1)[:, None], MASK_VALUE
        )
        new_max = jnp.maximum(max_score, jnp.max(max_of_rows, axis=0))
        weights = jnp.where(mask, jnp.exp(scores - new_max[row][..., None]), 0)
        weight_sum = jnp.sum(weights, axis=-1)
        if block.value_scales is not None:
            weights *= block.value_scales[:, :, None]
        values = block.values.astype(dtype)
        weighted = jnp.einsum(
            "WKGS,WKSD->WKGD", weights.astype(dtype), values, preferred_element_type=jnp.float32
        )
        rescale = jnp.exp(max_score - new_max)
        to_row = is_row.astype(jnp.float32)
        total = total * rescale + jnp.einsum("WB,WKG->BKG", to_row, weight_sum)
        summed = summed * rescale[..., None] + jnp.einsum("WB,WKGD->BKGD", to_row, weighted)
        return new_max, total, summed

    heads = query.shape[:3]
    state = (
        jnp.full(heads, MASK_VALUE),
        jnp.zeros(heads, jnp.float32),
        jnp.zeros(query.shape, jnp.float32),
    )
    _, total, summed = jax.lax.fori_loop(0, -(-ends[-1] // rows), add_blocks, state)
    return summed / total[..., None]


def decode_block_size(cache_len: int) -> int:
    """Returns how many positions are read at once: a power of two, or all of a shorter row."""
    power = 1 << max(0, (cache_len // _MIN_BLOCKS_PER_ROW).bit_length() - 1)
    return min(cache_len, max(_MIN_BLOCK, min(_MAX_BLOCK, power)))


def _slice_blocks(x: jax.Array, row: jax.Array, start: jax.Array, size: int) -> jax.Array:
    """Takes `size` positions from start [W] of rows [W] of x [B,K,cache_len,..]: [W,K,size,..]."""

    def slice_block(row: jax.Array, start: jax.Array) -> jax.Array:
        rest = x.ndim - 3
        return jax.lax.dynamic_slice(
            x, (row, 0, start, *(0,) * rest), (1, x.shape[1], size, *x.shape[3:])
        )[0]

    if row.shape[0] == 1:  # a slice in place; the general case is a gather
        return slice_block(row[0], start[0])[None]
    return jax.vmap(slice_block)(row, start)
