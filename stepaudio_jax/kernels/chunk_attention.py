"""Attention of a dialogue's next tokens over its cache, which holds them and those before them.

Only blocks of the cache that have tokens are read, and a block behind them adds nothing, not even
rounding: the result does not depend on how long the cache is.
"""

import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from stepaudio_jax.config import ComputeConfig
from stepaudio_jax.kernels.attention_mask import MASK_VALUE
from stepaudio_jax.kernels.kv_cache import CACHE_AXES, LayerCache
from stepaudio_jax.kernels.partitioning import activation_spec, current_mesh, target_platform

# Cache positions that are read at once: fewer on a CPU, where masked scores cost as much as others.
_MAX_BLOCK, _MAX_BLOCK_CPU = 512, 128


def chunk_attention(
    query: Float[Array, "1 T N D"], cache: LayerCache, start: Int[Array, ""], compute: ComputeConfig
) -> Float[Array, "1 T N D"]:
    """Computes causal softmax attention of the tokens at `start` to `start` + T - 1.

    Args:
        query: query head n reads key head n // (N // K).
        cache: one row, which holds the keys and values up to `start` + T - 1.
        start: the cache position of the first query.
        compute: the rules by which heads are sharded.

    Returns:
        The attention's output in query's dtype; scores and softmax are computed in fp32.
    """
    rows, tokens, heads, head_dim = query.shape
    kv_heads = cache.keys.shape[1]
    scaled = query * jnp.asarray(head_dim**-0.5, query.dtype)
    grouped = scaled.reshape(rows, tokens, kv_heads, heads // kv_heads, head_dim)
    grouped = grouped.transpose(0, 2, 3, 1, 4)
    attend = _attend
    if current_mesh() is not None:
        axes = (None, "kv_heads", None, None, None)
        spec = activation_spec(axes, compute.rules)
        cache_spec = jax.tree.map(
            lambda x: activation_spec((None, *CACHE_AXES[1 : x.ndim]), compute.rules), cache
        )
        attend = jax.shard_map(
            attend,
            in_specs=(spec, cache_spec, PartitionSpec()),
            out_specs=spec,
            check_vma=False,
        )
    out = attend(grouped, cache, start).transpose(0, 3, 1, 2, 4)
    return out.reshape(query.shape).astype(query.dtype)


def _attend(
    query: Float[Array, "1 K G T D"], cache: LayerCache, start: Int[Array, ""]
) -> Float[Array, "1 K G T D"]:
    """Attends block by block, each sum rescaled to the largest score so far.

    Milakov and Gimelshein 2018, algorithm 3.
    """
    rows, kv_heads, groups, tokens, head_dim = query.shape
    max_block = _MAX_BLOCK_CPU if target_platform() == "cpu" else _MAX_BLOCK
    size = math.gcd(cache.keys.shape[2], max_block)
    flat = query.reshape(rows, kv_heads, groups * tokens, head_dim)
    position = jnp.tile(start + jnp.arange(tokens), groups)[:, None]

    def add_block(
        number: jax.Array, state: tuple[jax.Array, jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        max_score, total, summed = state
        first = number * size
        block = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, first, size, axis=2), cache)
        scores = jnp.einsum(
            "BKTD,BKSD->BKTS",
            flat,
            block.keys.astype(flat.dtype),
            preferred_element_type=jnp.float32,
        )
        if block.key_scales is not None:
            scores *= block.key_scales[:, :, None]
        mask = first + jnp.arange(size) <= position
        scores = jnp.where(mask, scores, MASK_VALUE)
        new_max = jnp.maximum(max_score, jnp.max(scores, axis=-1))
        weights = jnp.where(mask, jnp.exp(scores - new_max[..., None]), 0.0)
        rescale = jnp.exp(max_score - new_max)
        total = total * rescale + jnp.sum(weights, axis=-1)
        if block.value_scales is not None:
            weights *= block.value_scales[:, :, None]
        weighted = jnp.einsum(
            "BKTS,BKSD->BKTD",
            weights.astype(flat.dtype),
            block.values.astype(flat.dtype),
            preferred_element_type=jnp.float32,
        )
        return new_max, total, summed * rescale[..., None] + weighted

    state = (
        jnp.full(flat.shape[:3], MASK_VALUE),
        jnp.zeros(flat.shape[:3], jnp.float32),
        jnp.zeros(flat.shape, jnp.float32),
    )
    num_blocks = (start + tokens - 1) // size + 1
    _, total, summed = jax.lax.fori_loop(0, num_blocks, add_block, state)
    return (summed / total[..., None]).reshape(query.shape)
