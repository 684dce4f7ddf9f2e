"""Attention over a cache by JAX's Pallas kernel for paged caches, on TPU: pages behind a row's last token are not read."""

import contextlib
import math

import jax
import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu
from jax.experimental.pallas.ops.tpu.paged_attention import paged_attention

from stepaudio_jax.models.kv_cache import LayerCache

_LANES = 128  # of the TPU's vector unit
_MAX_PAGE = 512


def supports_paged_attention(cache: LayerCache) -> bool:
    """Whether the kernel takes the cache.

    Its heads must fill whole lanes and its slots whole pages, and it must be in bf16: the kernel
    rounds an fp32 cache to that, and would have every scale of an int8 one in fp32 as often as a
    head has values.
    """
    slots, head_dim = cache.keys.shape[2:]
    return cache.keys.dtype == jnp.bfloat16 and head_dim % _LANES == 0 and slots % _LANES == 0


def pad_to_page_multiple(slots: int) -> int:
    """The next length that is made of whole pages."""
    return _LANES * -(-slots // _LANES)


def paged_decode_attention(
    query: jax.Array, cache: LayerCache, last: jax.Array, *, interpret: bool = False
) -> jax.Array:
    """See `decode_attention.dense_decode_attention`.

    To the kernel every key head of every row is a sequence of one head, whose pages lie one behind
    the other: the cache is taken as it lies. `interpret` runs it as plain JAX, on any platform.
    """
    rows, kv_heads, slots, head_dim = cache.keys.shape
    page = math.gcd(slots, _MAX_PAGE)
    sequences, pages = rows * kv_heads, slots // page
    keys, values = (
        x.reshape(1, sequences * pages, page, head_dim) for x in (cache.keys, cache.values)
    )
    with pltpu.force_tpu_interpret_mode() if interpret else contextlib.nullcontext():
        out = paged_attention(
            query.reshape(sequences, -1, head_dim).astype(jnp.float32),
            keys,
            values,
            jnp.repeat(last + 1, kv_heads).astype(jnp.int32),
            jnp.arange(sequences * pages, dtype=jnp.int32).reshape(sequences, pages),
            pages_per_compute_block=1,
        )
    return out.reshape(query.shape)
