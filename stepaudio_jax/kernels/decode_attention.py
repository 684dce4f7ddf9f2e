"""Attention of one new token a row over what its layer has kept: one door, behind which the way for the platform is chosen."""

import contextlib
import math

import jax
import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu
from jax.experimental.pallas.ops.tpu.paged_attention import paged_attention
from jax.sharding import PartitionSpec

from stepaudio_jax.config import ComputeConfig
from stepaudio_jax.kernels.attention import choose_kernel
from stepaudio_jax.kernels.cpu.decode_attention import blockwise_decode_attention
from stepaudio_jax.kernels.flash_xla import MASK_VALUE
from stepaudio_jax.kernels.kv_cache import CACHE_AXES, LayerCache
from stepaudio_jax.kernels.partitioning import activation_spec, current_mesh

# Attention over a cache by JAX's Pallas kernel for paged caches, on TPU: pages behind a row's last token are not read.

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


_PAGED_KERNELS = ("splash", "splash_interpreted")  # platforms, or tests, whose kernel reads pages


def decode_attention(
    query: jax.Array, cache: LayerCache, last: jax.Array, compute: ComputeConfig
) -> jax.Array:
    """Softmax attention of one token a row over the slots of its row, from the first to its `last`.

    What lies behind `last` is not read where there is a way for that: a step then costs what the
    dialogues are long, not what the slots could hold. On TPU that is JAX's kernel for pages, on a
    CPU a loop over blocks. On a GPU, and of caches that the kernel does not take, all slots are
    read.

    Args:
        query: [B,1,N,D]; query head n reads key head n // (N // K).
        cache: of the layer; on a mesh rows and key heads lie where the rules put them.
        last: [B] i32.
        compute: which kernel, and the rules.

    Returns:
        [B,1,N,D] in query's dtype; scores and softmax are computed in fp32.
    """
    rows, _, heads, head_dim = query.shape
    kv_heads = cache.keys.shape[1]
    scaled = query * jnp.asarray(head_dim**-0.5, query.dtype)
    grouped = scaled.reshape(rows, kv_heads, heads // kv_heads, head_dim)
    kernel = choose_kernel(compute)

    def local(query: jax.Array, cache: LayerCache, last: jax.Array) -> jax.Array:
        if kernel in _PAGED_KERNELS and supports_paged_attention(cache):
            return paged_decode_attention(
                query, cache, last, interpret=kernel == "splash_interpreted"
            )
        if kernel == "xla" and jax.default_backend() == "cpu":
            return blockwise_decode_attention(query, cache, last)
        return dense_decode_attention(query, cache, last)

    if current_mesh() is not None:
        spec = activation_spec("BKGD", compute.rules)
        cut = jax.tree.map(lambda x: activation_spec(CACHE_AXES[: x.ndim], compute.rules), cache)
        local = jax.shard_map(
            local, in_specs=(spec, cut, PartitionSpec(spec[0])), out_specs=spec, check_vma=False
        )
    return local(grouped, cache, last).reshape(rows, 1, heads, head_dim).astype(query.dtype)


def padded_cache_len(tokens: int, compute: ComputeConfig) -> int:
    """Slots of a row that is to hold so many tokens: a little more where what reads them takes whole pages."""
    return pad_to_page_multiple(tokens) if choose_kernel(compute) in _PAGED_KERNELS else tokens


def dense_decode_attention(query: jax.Array, cache: LayerCache, last: jax.Array) -> jax.Array:
    """Over all slots, those behind `last` [B] masked: scaled queries [B,K,G,D] -> [B,K,G,D] fp32."""
    dtype = query.dtype
    scores = jnp.einsum(
        "BKGD,BKSD->BKGS", query, cache.keys.astype(dtype), preferred_element_type=jnp.float32
    )
    if cache.key_scales is not None:
        scores *= cache.key_scales[:, :, None]
    visible = jnp.arange(scores.shape[-1]) <= last[:, None]
    weights = jax.nn.softmax(jnp.where(visible[:, None, None], scores, MASK_VALUE), axis=-1)
    if cache.value_scales is not None:
        weights *= cache.value_scales[:, :, None]
    values = cache.values.astype(dtype)
    return jnp.einsum(
        "BKGS,BKSD->BKGD", weights.astype(dtype), values, preferred_element_type=jnp.float32
    )
