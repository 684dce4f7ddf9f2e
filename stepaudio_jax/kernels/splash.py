"""Splash attention, JAX's Pallas kernel for TPU: no [T,S] array, masked blocks are never computed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel,
    splash_attention_mask,
)
from jax.sharding import NamedSharding

_LANES = 128  # of the TPU's vector unit: lengths are padded to multiples of it
_MAX_BLOCK = 512
_PADDING_SEGMENT = -1  # the segment of padded places, which see each other alone

Kernel = splash_attention_kernel.SplashAttentionKernel


def padded_seq_len(tokens: int, shards: int = 1) -> int:
    """What a length is padded to before `splash_kernel` takes it, so that every shard's part is cut into whole blocks."""
    part = -(-tokens // shards)
    if part > _MAX_BLOCK:
        return shards * _MAX_BLOCK * -(-part // _MAX_BLOCK)
    return shards * _LANES * -(-part // _LANES)


@functools.lru_cache(maxsize=32)
def splash_kernel(
    heads: int,
    tokens: int,
    slots: int,
    *,
    causal: bool,
    head_shards: int,
    token_shards: int,
    interpret: bool,
) -> Kernel:
    """The kernel for whole (padded) shapes, cut over so many shards of heads and of queries.

    Args:
        heads: query heads. tokens, slots: padded lengths of queries and of keys.
        causal: hide later slots.
        head_shards, token_shards: of the mesh.
        interpret: run as plain JAX, on any platform.
    """
    mask: splash_attention_mask.Mask = (
        splash_attention_mask.CausalMask((tokens, slots))
        if causal
        else splash_attention_mask.FullMask((tokens, slots))
    )
    query, key = (min(length, _MAX_BLOCK) for length in (tokens // token_shards, slots))
    sizes = splash_attention_kernel.BlockSizes(
        block_q=query,
        block_kv=key,
        block_kv_compute=key,
        block_q_dkv=query,
        block_kv_dkv=key,
        block_kv_dkv_compute=key,
        block_q_dq=query,
        block_kv_dq=key,
    )
    with (
        jax.ensure_compile_time_eval()
    ):  # the tables of blocks are constants, whatever is being traced
        kernel = splash_attention_kernel.make_splash_mha(
            mask=splash_attention_mask.MultiHeadMask([mask] * heads),
            block_sizes=sizes,
            head_shards=head_shards,
            q_seq_shards=token_shards,
            residual_checkpoint_name="attn_out",
            interpret=interpret,
        )
        return jax.tree.map(np.asarray, kernel)


def kernel_specs(kernel: Kernel, sharding: NamedSharding) -> Kernel:
    """How a kernel's tables of blocks are cut by `shard_map`: `sharding` is that of [heads, queries]."""
    return kernel.manual_sharding_spec(sharding)


def splash_attention(
    kernel: Kernel,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    query_segment_ids: jax.Array,
    key_segment_ids: jax.Array,
) -> jax.Array:
    """See `attention.attention`; lengths are already padded."""
    scaled = query * jnp.asarray(query.shape[-1] ** -0.5, query.dtype)
    q, k, v = (x.swapaxes(1, 2) for x in (scaled, key, value))
    segments = splash_attention_kernel.SegmentIds(q=query_segment_ids, kv=key_segment_ids)
    out: jax.Array = jax.vmap(kernel)(q, k, v, segments)  # type: ignore[assignment]  # residuals are not asked for
    return out.swapaxes(1, 2).astype(value.dtype)


def pad_tokens(x: jax.Array, length: int, *, segments: bool = False) -> jax.Array:
    """Pads dimension 1 to `length`: activations with zeros, segment ids with one that is no document's."""
    widths = [(0, 0), (0, length - x.shape[1])] + [(0, 0)] * (x.ndim - 2)
    return jnp.pad(
        x, widths, constant_values=np.asarray(_PADDING_SEGMENT if segments else 0, x.dtype)
    )
