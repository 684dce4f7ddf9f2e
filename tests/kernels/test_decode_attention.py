"""Every kernel for attention over a cache against a float64 softmax."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stepaudio_jax.config import DecoderConfig
from stepaudio_jax.kernels.cpu.decode_attention import blockwise_decode_attention, decode_block_size
from stepaudio_jax.kernels.decode_attention import (
    dense_decode_attention,
    pad_to_page_multiple,
    paged_decode_attention,
    supports_paged_attention,
)
from stepaudio_jax.kernels.kv_cache import LayerCache

JUNK = 1e4  # in slots that must not be read


def random_inputs(cache_len, last_positions, *, heads=2, groups=3, head_dim=16, dtype=jnp.float32):
    """Queries, a cache with junk behind each row's last position, and the last positions."""
    rng = np.random.default_rng(cache_len)
    rows = len(last_positions)
    query = rng.normal(size=(rows, heads, groups, head_dim)).astype(np.float32)
    keys, values = (
        rng.normal(size=(rows, heads, cache_len, head_dim)).astype(np.float32) for _ in range(2)
    )
    behind = np.arange(cache_len) > np.asarray(last_positions)[:, None]
    for array in (keys, values):
        array.swapaxes(1, 2)[behind] = JUNK
    return (
        jnp.asarray(query, dtype),
        LayerCache(jnp.asarray(keys, dtype), jnp.asarray(values, dtype)),
        jnp.asarray(last_positions),
    )


def float64_attention(query, cache, last_positions):
    """The output [B,K,G,D], one row at a time."""
    query, keys, values = (np.asarray(x, np.float64) for x in (query, cache.keys, cache.values))
    out = np.zeros(query.shape)
    for row, last in enumerate(np.asarray(last_positions)):
        row_keys, row_values = keys[row, :, : last + 1], values[row, :, : last + 1]
        scores = np.einsum("kgd,ksd->kgs", query[row], row_keys)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        out[row] = np.einsum("kgs,ksd->kgd", weights / weights.sum(-1, keepdims=True), row_values)
    return out


@pytest.mark.parametrize(
    ("cache_len", "last_positions"),
    [
        (640, [0, 31, 32, 639, 300]),  # on both sides of a block's edge; one row fills a step alone
        (101, [100, 99, 95, 0]),  # the last block overlaps the one before it
        (20, [19, 3]),  # one block, the whole row
        (640, [500]),  # one row: blocks are sliced, not gathered
    ],
)
@pytest.mark.parametrize("attention", [blockwise_decode_attention, dense_decode_attention])
def test_decode_attention_equals_float64(attention, cache_len, last_positions):
    query, cache, lasts = random_inputs(cache_len, last_positions)
    np.testing.assert_allclose(
        jax.jit(attention)(query, cache, lasts), float64_attention(query, cache, lasts), atol=1e-5
    )


@pytest.mark.parametrize("attention", [blockwise_decode_attention, dense_decode_attention])
def test_rows_of_the_cache_behind_the_query_are_neither_read_nor_written(attention):
    query, cache, lasts = random_inputs(640, [500, 31, 7, 600])
    expected = float64_attention(query, cache, lasts)[:2]
    cache = jax.tree.map(lambda x: x.at[2:].set(np.nan), cache)
    np.testing.assert_allclose(jax.jit(attention)(query[:2], cache, lasts[:2]), expected, atol=1e-5)
    rng = np.random.default_rng(0)
    key, value = (jnp.asarray(rng.normal(size=(4, 1, 2, 16)), jnp.float32) for _ in range(2))
    written, part = cache.write(key, value, lasts), cache.write(key[:2], value[:2], lasts[:2])
    for new, of_all, old in zip(*map(jax.tree.leaves, (part, written, cache)), strict=True):
        np.testing.assert_array_equal(new[:2], of_all[:2])
        np.testing.assert_array_equal(new[2:], old[2:])


def test_int8_blocks_equal_the_dense_form():
    query, cache, lasts = random_inputs(200, [199, 40, 64], head_dim=32)
    decoder = DecoderConfig(
        vocab_size=8,
        hidden=64,
        ffn=64,
        layers=1,
        heads=6,
        kv_heads=2,
        head_dim=32,
        max_positions=256,
    )
    int8_cache = LayerCache.zeros(decoder, 3, 200, "int8").cast_kv(
        cache.keys.swapaxes(1, 2), cache.values.swapaxes(1, 2)
    )
    np.testing.assert_allclose(
        jax.jit(blockwise_decode_attention)(query, int8_cache, lasts),
        dense_decode_attention(query, int8_cache, lasts),
        rtol=1e-5,
        atol=1e-5,
    )


def test_bfloat16_blocks_keep_scores_in_fp32():
    query, cache, lasts = random_inputs(640, [600, 10], dtype=jnp.bfloat16)
    np.testing.assert_allclose(
        jax.jit(blockwise_decode_attention)(query, cache, lasts),
        float64_attention(query, cache, lasts),
        atol=2e-2,
    )


@pytest.mark.parametrize(
    ("cache_len", "last_positions"), [(128, [0, 127]), (1024, [511, 512, 1023])]
)
def test_the_paged_kernel_equals_float64(cache_len, last_positions):
    """In interpret mode, with a bf16 cache."""
    query, cache, lasts = random_inputs(cache_len, last_positions, head_dim=128, dtype=jnp.bfloat16)
    query = query * 128**-0.5
    assert supports_paged_attention(cache)
    np.testing.assert_allclose(
        paged_decode_attention(query, cache, lasts, interpret=True),
        float64_attention(query, cache, lasts),
        atol=2e-2,
    )


def test_the_paged_kernel_gets_bf16_caches_of_whole_pages_only():
    shape = (1, 2, 256, 128)
    assert supports_paged_attention(LayerCache(*(jnp.zeros(shape, jnp.bfloat16),) * 2))
    assert not supports_paged_attention(LayerCache(*(jnp.zeros(shape, jnp.float32),) * 2))
    assert not supports_paged_attention(
        LayerCache(*(jnp.zeros(shape, jnp.int8),) * 2, *(jnp.ones(shape[:3]),) * 2)
    )
    assert not supports_paged_attention(
        LayerCache(*(jnp.zeros((1, 2, 200, 128), jnp.bfloat16),) * 2)
    )
    assert pad_to_page_multiple(200) == 256


@pytest.mark.parametrize(
    ("cache_len", "size"), [(1, 1), (20, 20), (640, 32), (1024, 64), (40960, 64)]
)
def test_block_sizes_are_powers_of_two_or_the_whole_row(cache_len, size):
    assert decode_block_size(cache_len) == size
