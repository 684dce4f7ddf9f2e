"""Attention of one new token a row over its layer's cache: chooses the kernel for the platform.

Where a kernel allows it, cache positions behind a row's last token are not read: a decoding step
then costs what the dialogues are long, not what the cache could hold. On TPU that is JAX's Pallas
kernel for paged caches, on a CPU a loop over blocks. On a GPU, and for caches that the kernel does
not take, all positions are read.
"""

import contextlib
import math

import jax
import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu
from jax.experimental.pallas.ops.tpu.paged_attention import paged_attention
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from stepaudio_jax.config import ComputeConfig
from stepaudio_jax.kernels.attention import choose_kernel
from stepaudio_jax.kernels.attention_mask import MASK_VALUE
from stepaudio_jax.kernels.cpu.decode_attention import blockwise_decode_attention
from stepaudio_jax.kernels.kv_cache import CACHE_AXES, LayerCache
from stepaudio_jax.kernels.partitioning import activation_spec, current_mesh, target_platform

_PAGED_KERNELS = ("splash", "splash_interpreted")  # of the platforms whose kernel reads pages
_LANES = 128  # of the TPU's vector unit
_MAX_PAGE = 512


def decode_attention(
    query: Float[Array, "B 1 N D"],
    cache: LayerCache,
    last_position: Int[Array, " B"],
    compute: ComputeConfig,
) -> Float[Array, "B 1 N D"]:
    """Computes softmax attention of one token a row over the cache, up to `last_position`.

    Args:
        query: query head n reads key head n // (N // K).
        cache: the layer's cache; on a mesh, rows and key heads lie where the rules put them. It may
            have more than B rows, which are not read; not on a mesh.
        last_position: the last cache position of each row to attend to.
        compute: which kernel, and the rules.

    Returns:
        The attention's output in query's dtype; scores and softmax are computed in fp32.
    """
    rows, _, heads, head_dim = query.shape
    kv_heads = cache.keys.shape[1]
    scaled = query * jnp.asarray(head_dim**-0.5, query.dtype)
    grouped = scaled.reshape(rows, kv_heads, heads // kv_heads, head_dim)
    kernel = choose_kernel(compute)

    def attend(
        query: Float[Array, "B K G D"], cache: LayerCache, last_position: Int[Array, " B"]
    ) -> Float[Array, "B K G D"]:
        if kernel in _PAGED_KERNELS and supports_paged_attention(cache):
            interpret = kernel == "splash_interpreted"
            return paged_decode_attention(query, cache, last_position, interpret=interpret)
        if kernel == "xla" and target_platform() == "cpu":
            return blockwise_decode_attention(query, cache, last_position)
        return dense_decode_attention(query, cache, last_position)

    if current_mesh() is not None:
        spec = activation_spec(("batch", "kv_heads", None, None), compute.rules)
        cache_spec = jax.tree.map(
            lambda x: activation_spec(CACHE_AXES[: x.ndim], compute.rules), cache
        )
        attend = jax.shard_map(
            attend,
            in_specs=(spec, cache_spec, PartitionSpec(spec[0])),
            out_specs=spec,
            check_vma=False,
        )
    out = attend(grouped, cache, last_position)
    return out.reshape(rows, 1, heads, head_dim).astype(query.dtype)


def dense_decode_attention(
    query: Float[Array, "B K G D"], cache: LayerCache, last_position: Int[Array, " B"]
) -> Float[Array, "B K G D"]:
    """Computes attention over all cache positions, with those behind `last_position` masked.

    Args:
        query: scaled, the query heads of a key head side by side.
        cache: the layer's cache; rows behind the query's are not read.
        last_position: the last cache position of each row to attend to.

    Returns:
        The attention's output in fp32.
    """
    dtype = query.dtype
    cache = jax.tree.map(lambda x: x[: query.shape[0]], cache)
    scores = jnp.einsum(
        "BKGD,BKSD->BKGS", query, cache.keys.astype(dtype), preferred_element_type=jnp.float32
    )
    if cache.key_scales is not None:
        scores *= cache.key_scales[:, :, None]
    mask = jnp.arange(scores.shape[-1]) <= last_position[:, None]
    weights = jax.nn.softmax(jnp.where(mask[:, None, None], scores, MASK_VALUE), axis=-1)
    if cache.value_scales is not None:
        weights *= cache.value_scales[:, :, None]
    values = cache.values.astype(dtype)
    return jnp.einsum(
        "BKGS,BKSD->BKGD", weights.astype(dtype), values, preferred_element_type=jnp.float32
    )


def paged_decode_attention(
    query: Float[Array, "B K G D"],
    cache: LayerCache,
    last_position: Int[Array, " B"],
    *,
    interpret: bool = False,
) -> Float[Array, "B K G D"]:
    """Computes `dense_decode_attention` by JAX's kernel for paged caches, on TPU.

    To the kernel, every key head of every row is a sequence with one head, whose pages lie one
    behind the other, so the cache is taken as it lies. `interpret` runs it as plain JAX, on any
    platform.
    """
    rows, kv_heads, cache_len, head_dim = cache.keys.shape
    page = math.gcd(cache_len, _MAX_PAGE)
    sequences, pages = rows * kv_heads, cache_len // page
    keys, values = (
        x.reshape(1, sequences * pages, page, head_dim) for x in (cache.keys, cache.values)
    )
    with pltpu.force_tpu_interpret_mode() if interpret else contextlib.nullcontext():
        out = paged_attention(
            query.reshape(sequences, -1, head_dim).astype(jnp.float32),
            keys,
            values,
            jnp.repeat(last_position + 1, kv_heads).astype(jnp.int32),
            jnp.arange(sequences * pages, dtype=jnp.int32).reshape(sequences, pages),
            pages_per_compute_block=1,
        )
    return out.reshape(query.shape)


def supports_paged_attention(cache: LayerCache) -> bool:
    """Returns whether the kernel for paged caches takes a cache.

    Its heads must fill whole lanes and its rows whole pages, and it must be in bf16: the kernel
    rounds an fp32 cache to bf16, and would expand the scales of an int8 cache to fp32 arrays of the
    cache's own shape.
    """
    cache_len, head_dim = cache.keys.shape[2:]
    return cache.keys.dtype == jnp.bfloat16 and head_dim % _LANES == 0 and cache_len % _LANES == 0


def padded_cache_len(tokens: int, compute: ComputeConfig) -> int:
    """Returns the length of a cache for so many tokens: whole pages where the kernel needs them."""
    return pad_to_page_multiple(tokens) if choose_kernel(compute) in _PAGED_KERNELS else tokens


def pad_to_page_multiple(tokens: int) -> int:
    """Returns the next length that is made of whole pages."""
    return _LANES * -(-tokens // _LANES)
