"""Attention over a cache that reads no more blocks of it than rows need, whatever their lengths: plain XLA."""

import jax
import jax.numpy as jnp

from stepaudio_jax.kernels.flash_xla import MASK_VALUE
from stepaudio_jax.kernels.kv_cache import LayerCache

_MIN_BLOCK, _MAX_BLOCK = 32, 512
_MIN_BLOCKS_PER_ROW = 16  # into which a row is cut at least, where blocks do not become too small


def decode_block_size(slots: int) -> int:
    """Slots that are read at once: a power of two, or the whole of a shorter row."""
    power = 1 << max(0, (slots // _MIN_BLOCKS_PER_ROW).bit_length() - 1)
    return min(slots, max(_MIN_BLOCK, min(_MAX_BLOCK, power)))


def blockwise_decode_attention(query: jax.Array, cache: LayerCache, last: jax.Array) -> jax.Array:
    """See `decode_attention.dense_decode_attention`.

    Every row needs the blocks up to its `last`. They stand in one list, row after row, and each
    turn of a loop takes as many as there are rows from it: a long row has several in a turn, and a
    short one none in most. What a row has summed up is scaled to its largest score so far (Milakov
    and Gimelshein 2018, algorithm 3).
    """
    rows, _, slots, _ = cache.keys.shape
    size = decode_block_size(slots)
    needed = last // size + 1
    ends = jnp.cumsum(needed)
    dtype = query.dtype

    def turn(
        number: jax.Array, state: tuple[jax.Array, jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        largest, total, summed = state
        place = number * rows + jnp.arange(rows)  # in the list; W = B places
        row = jnp.minimum(jnp.sum(place[:, None] >= ends, axis=1), rows - 1)
        first = (place - (ends - needed)[row]) * size
        start = jnp.minimum(first, slots - size)  # the last block overlaps the one before it
        slot = start[:, None] + jnp.arange(size)
        visible = (
            (slot >= first[:, None]) & (slot <= last[row][:, None]) & (place < ends[-1])[:, None]
        )
        visible = visible[:, None, None]
        block = jax.tree.map(lambda x: _take(x, row, start, size), cache)
        scores = jnp.einsum(
            "WKGD,WKSD->WKGS",
            query[row],
            block.keys.astype(dtype),
            preferred_element_type=jnp.float32,
        )
        if block.key_scales is not None:
            scores *= block.key_scales[:, :, None]
        scores = jnp.where(visible, scores, MASK_VALUE)
        mine = row[:, None] == jnp.arange(rows)  # [W,B]
        of_rows = jnp.where(mine[:, :, None, None], jnp.max(scores, axis=-1)[:, None], MASK_VALUE)
        larger = jnp.maximum(largest, jnp.max(of_rows, axis=0))
        weights = jnp.where(visible, jnp.exp(scores - larger[row][..., None]), 0)
        weight = jnp.sum(weights, axis=-1)
        if block.value_scales is not None:
            weights *= block.value_scales[:, :, None]
        values = block.values.astype(dtype)
        added = jnp.einsum(
            "WKGS,WKSD->WKGD", weights.astype(dtype), values, preferred_element_type=jnp.float32
        )
        shrunk = jnp.exp(largest - larger)
        share = mine.astype(jnp.float32)
        total = total * shrunk + jnp.einsum("WB,WKG->BKG", share, weight)
        return larger, total, summed * shrunk[..., None] + jnp.einsum("WB,WKGD->BKGD", share, added)

    heads = query.shape[:3]
    state = (
        jnp.full(heads, MASK_VALUE),
        jnp.zeros(heads, jnp.float32),
        jnp.zeros(query.shape, jnp.float32),
    )
    _, total, summed = jax.lax.fori_loop(0, -(-ends[-1] // rows), turn, state)
    return summed / total[..., None]


def _take(x: jax.Array, row: jax.Array, start: jax.Array, size: int) -> jax.Array:
    """Of x [B,K,S,..], `size` slots from start [W] on in each of the rows [W]: [W,K,size,..]."""

    def one(row: jax.Array, start: jax.Array) -> jax.Array:
        rest = x.ndim - 3
        return jax.lax.dynamic_slice(
            x, (row, 0, start, *(0,) * rest), (1, x.shape[1], size, *x.shape[3:])
        )[0]

    if row.shape[0] == 1:  # a slice in place, where the general case is gathered
        return one(row[0], start[0])[None]
    return jax.vmap(one)(row, start)
