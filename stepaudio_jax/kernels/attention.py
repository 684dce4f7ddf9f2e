"""Attention over packed rows: chooses the kernel for the platform, and shards it over the mesh."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from stepaudio_jax.config import AttentionKernel, ComputeConfig
from stepaudio_jax.errors import ConfigError
from stepaudio_jax.kernels.attention_mask import AttentionMask
from stepaudio_jax.kernels.cpu.block_sparse_attention import block_sparse_attention
from stepaudio_jax.kernels.cudnn import cudnn_attention
from stepaudio_jax.kernels.flash_xla import flash_attention_xla
from stepaudio_jax.kernels.partitioning import (
    LogicalAxes,
    activation_spec,
    current_mesh,
    num_shards,
    target_platform,
)
from stepaudio_jax.kernels.splash import splash_attention

_SPLASH_KERNELS = ("splash", "splash_interpreted")
# The search for blocks that attend to each other costs more than it saves in rows up to this long.
_MIN_SPARSE_TOKENS = 512


def attention(
    query: Float[Array, "B T N D"],
    key: Float[Array, "B kv_len K D"],
    value: Float[Array, "B kv_len K D"],
    *,
    query_segment_ids: Int[Array, "B T"],
    key_segment_ids: Int[Array, "B kv_len"],
    query_prefix_ids: Int[Array, "B T"] | None = None,
    compute: ComputeConfig,
    query_axes: LogicalAxes = ("batch", "tokens", "heads", None),
    causal: bool = False,
) -> Float[Array, "B T N D"]:
    """Computes grouped-query softmax attention within segments.

    A query attends to a key if both have the same segment id, or the key has that of the query's
    prefix, and, where causal, if the key's position in the row is not later than its own. Queries
    that attend to no key return finite but undefined values.

    On a mesh, rows and heads stay where the rules put them. Where tokens are sharded, each device
    holds its queries and gathers the keys and values of the whole row.

    Args:
        query: N is a multiple of K; query head n reads key head n // (N // K).
        key, value: keys and values of each position in the row.
        query_segment_ids: 0 for padding, whose queries return undefined values.
        key_segment_ids: the segment of each key.
        query_prefix_ids: the segment that several segments of a row share as their beginning, -1
            for none; it lies before them in the row. How many may share one depends on the kernel
            (see `supports_shared_prefix`).
        compute: which kernel, and the rules.
        query_axes: logical axes of the query's dimensions. Keys have the same, but their
            tokens are never sharded.
        causal: mask later keys. Within a segment, keys are in the order of their positions.

    Returns:
        The attention's output in value's dtype; scores and softmax are computed in fp32.

    Raises:
        ConfigError: the kernel asked for does not exist on this platform or does not support
            prefixes, or the mesh shards heads unevenly.
    """
    kernel = choose_kernel(compute)
    if query_prefix_ids is not None and kernel in _SPLASH_KERNELS and not causal:
        raise ConfigError(
            f"compute.attention={kernel!r} does not support shared prefixes without a causal mask"
        )
    mask = AttentionMask(query_segment_ids, key_segment_ids, query_prefix_ids)
    mesh, query_spec = current_mesh(), activation_spec(query_axes, compute.rules)
    if mesh is not None:
        head_shards = num_shards(mesh, query_spec[2])
        key, value = (_repeat_heads(x, query.shape[2], head_shards) for x in (key, value))
    if kernel in _SPLASH_KERNELS:
        interpret = kernel == "splash_interpreted"
        return splash_attention(
            query, key, value, mask, causal=causal, query_spec=query_spec, interpret=interpret
        )
    attend = cudnn_attention if kernel == "cudnn" else _xla_attention
    if mesh is None:
        return attend(query, key, value, mask, causal)

    rows, tokens, heads, _ = query_spec

    def attend_local(
        query: Float[Array, "B T N D"],
        key: Float[Array, "B kv_len K D"],
        value: Float[Array, "B kv_len K D"],
        mask: AttentionMask,
    ) -> Float[Array, "B T N D"]:
        if tokens is not None and num_shards(mesh, tokens) > 1:
            first_query = jax.lax.axis_index(tokens) * query.shape[1]
            mask = dataclasses.replace(mask, query_offset=jnp.full(query.shape[0], first_query))
        return attend(query, key, value, mask, causal)

    key_spec = PartitionSpec(rows, None, heads, None)
    mask_spec = jax.tree.map(lambda _: PartitionSpec(rows, tokens), mask)
    mask_spec = dataclasses.replace(mask_spec, key_segment_ids=PartitionSpec(rows, None))
    in_specs = (query_spec, key_spec, key_spec, mask_spec)
    return jax.shard_map(attend_local, in_specs=in_specs, out_specs=query_spec, check_vma=False)(
        query, key, value, mask
    )


def choose_kernel(compute: ComputeConfig) -> AttentionKernel:
    """Returns the kernel asked for, or the one that "auto" means on the target platform.

    That is splash on TPU, cuDNN on GPU in bf16, else XLA.

    Raises:
        ConfigError: cuDNN is asked for where it does not run, or in fp32.
    """
    platform = target_platform()
    if compute.attention == "auto":
        if platform == "gpu":
            return "cudnn" if compute.dtype == "bfloat16" else "xla"
        return "splash" if platform == "tpu" else "xla"
    if compute.attention == "cudnn" and (platform != "gpu" or compute.dtype != "bfloat16"):
        raise ConfigError(
            f"compute.attention='cudnn' runs on a GPU and in bfloat16, not on {platform} in "
            f"{compute.dtype}; write 'xla', or 'auto'"
        )
    return compute.attention


def supports_shared_prefix(compute: ComputeConfig, continuations: int | None = None) -> bool:
    """Returns whether segments of a row may share a prefix: attend to the keys of two segments.

    Args:
        compute: which kernel.
        continuations: of a prefix, at most; None for any number. Kernels that take a mask allow any
            number, splash attention two.
    """
    if choose_kernel(compute) not in _SPLASH_KERNELS:
        return True
    return continuations is not None and continuations <= 2


def _xla_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: AttentionMask, causal: bool
) -> jax.Array:
    """Computes attention in plain XLA.

    On a CPU, batches of long packed rows skip the blocks that do not attend to each other. A single
    row is too little work for each block to pay for it.
    """
    rows, tokens = query.shape[:2]
    long_rows = target_platform() == "cpu" and rows > 1 and tokens > _MIN_SPARSE_TOKENS
    if long_rows and causal and key.shape[1] == tokens and mask.query_offset is None:
        return block_sparse_attention(query, key, value, mask)
    return flash_attention_xla(query, key, value, mask, causal)


def _repeat_heads(x: jax.Array, query_heads: int, shards: int) -> jax.Array:
    """Repeats key heads [B,kv_len,K,D] until as many devices can share them as query heads."""
    kv_heads = x.shape[2]
    repeats = shards // math.gcd(kv_heads, shards)
    if query_heads % shards or query_heads % (kv_heads * repeats):
        raise ConfigError(
            f"{query_heads} query heads over {kv_heads} key heads cannot be sharded over {shards} "
            "devices; lower mesh.tensor, or leave rules.heads and rules.kv_heads empty"
        )
    return x if repeats == 1 else jnp.repeat(x, repeats, axis=2)
