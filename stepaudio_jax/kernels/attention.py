"""Attention: one door, behind which the kernel for the platform is chosen, on one device or cut over a mesh."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from stepaudio_jax.config import AttentionKernel, ComputeConfig
from stepaudio_jax.errors import ConfigError
from stepaudio_jax.kernels.cpu.block_sparse_attention import block_sparse_attention
from stepaudio_jax.kernels.cudnn import cudnn_attention
from stepaudio_jax.kernels.flash_xla import AttentionMask, flash_attention_xla
from stepaudio_jax.kernels.partitioning import activation_spec, current_mesh
from stepaudio_jax.kernels.splash import (
    kernel_specs,
    pad_tokens,
    padded_seq_len,
    splash_attention,
    splash_kernel,
)

_MASK_KERNELS = ("cudnn", "xla")  # kernels that are given a mask
_MIN_SPARSE_TOKENS = (
    512  # tokens: so many, or fewer, cost no more than the search for blocks that see each other
)


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    query_segment_ids: jax.Array,
    key_segment_ids: jax.Array,
    query_prefix_ids: jax.Array | None = None,
    compute: ComputeConfig,
    letters: str = "BTND",
    causal: bool = False,
) -> jax.Array:
    """Grouped-query softmax attention within segments.

    A query sees a key when both have the same segment id, or the key has that of the query's
    prefix, and, where causal, when the key's slot is not later than its own. What a query that sees
    no key gets is finite and means nothing.

    On a mesh, rows and heads stay where the rules put them; where tokens are cut, each device holds
    its queries and gathers the keys and values of the whole row.

    Args:
        query: [B,T,N,D].
        key, value: [B,S,K,D]; N is a multiple of K, and query head n reads key head n // (N // K).
        query_segment_ids: [B,T] i32. key_segment_ids: [B,S] i32. Segment 0 is padding: what its
        queries get means nothing.
        query_prefix_ids: [B,T] i32, -1 for none: what several segments have in common stands in the
            row once. For dense kernels (see `supports_shared_prefix`).
        compute: which kernel, and the rules.
        letters: of the query's dimensions, which the rules place; keys lie like it, but for their
        slots.
        causal: hide later slots. Within a segment, slots are in the order of positions.

    Returns:
        [B,T,N,D] in value's dtype; scores and softmax are computed in fp32.

    Raises:
        ConfigError: the kernel asked for does not exist on this platform or takes no prefixes, or
            the mesh cuts heads unevenly.
    """
    kernel = choose_kernel(compute)
    if query_prefix_ids is not None and not supports_shared_prefix(compute):
        raise ConfigError(
            f"compute.attention={kernel!r} takes no prefixes: a query there sees the keys of one segment"
        )
    dense = cudnn_attention if kernel == "cudnn" else _plain
    mesh = current_mesh()
    if mesh is None:
        if kernel in _MASK_KERNELS:
            return dense(
                query,
                key,
                value,
                AttentionMask(query_segment_ids, key_segment_ids, query_prefix_ids),
                causal,
            )
        return _splash(
            query,
            key,
            value,
            query_segment_ids,
            key_segment_ids,
            causal,
            kernel,
            PartitionSpec(None, None),
            None,
        )
    query_spec = activation_spec(letters, compute.rules)
    rows, tokens, over_heads, _ = query_spec
    key, value = (_repeat_heads(x, query.shape[2], _size(mesh, over_heads)) for x in (key, value))
    key_spec = PartitionSpec(rows, None, over_heads, None)
    of_queries: Any = PartitionSpec(rows, tokens)
    of_keys: Any = PartitionSpec(rows, None)
    if kernel not in _MASK_KERNELS:
        specs = (query_spec, key_spec, key_spec, of_queries, of_keys)
        operands = (query, key, value, query_segment_ids, key_segment_ids)
        return _splash(*operands, causal, kernel, PartitionSpec(over_heads, tokens), specs)

    def local(query: jax.Array, key: jax.Array, value: jax.Array, mask: AttentionMask) -> jax.Array:
        if tokens is not None and _size(mesh, tokens) > 1:
            first = jnp.full(query.shape[0], jax.lax.axis_index(tokens) * query.shape[1])
            mask = dataclasses.replace(mask, query_offset=first)
        return dense(query, key, value, mask, causal)

    mask = AttentionMask(query_segment_ids, key_segment_ids, query_prefix_ids)
    cut = AttentionMask(of_queries, of_keys, None if query_prefix_ids is None else of_queries)
    in_specs = (query_spec, key_spec, key_spec, cut)
    return jax.shard_map(local, in_specs=in_specs, out_specs=query_spec, check_vma=False)(
        query, key, value, mask
    )


def supports_shared_prefix(compute: ComputeConfig) -> bool:
    """Whether the kernel of this platform lets a query see two segments: those that are given a mask do."""
    return choose_kernel(compute) in _MASK_KERNELS


def choose_kernel(compute: ComputeConfig) -> AttentionKernel:
    """The kernel asked for, or ("auto") the one for this platform: splash on TPU, cuDNN on GPU in bf16, else XLA.

    Raises:
        ConfigError: cuDNN is asked for where it does not run, or in fp32.
    """
    platform = jax.default_backend()
    if compute.attention == "auto":
        if platform == "gpu":
            return "cudnn" if compute.dtype == "bfloat16" else "xla"
        return "splash" if platform == "tpu" else "xla"
    if compute.attention == "cudnn" and (platform != "gpu" or compute.dtype != "bfloat16"):
        raise ConfigError(
            f"compute.attention='cudnn' runs on a GPU and in bfloat16, not on {platform} in {compute.dtype}; "
            "write 'xla', or 'auto'"
        )
    return compute.attention


def _plain(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: AttentionMask, causal: bool
) -> jax.Array:
    """By plain XLA; on a CPU, long rows by blocks that see each other: one row alone is too thin for that."""
    rows, tokens = query.shape[:2]
    searched = jax.default_backend() == "cpu" and rows > 1 and tokens > _MIN_SPARSE_TOKENS
    if searched and causal and key.shape[1] == tokens and mask.query_offset is None:
        return block_sparse_attention(query, key, value, mask)
    return flash_attention_xla(query, key, value, mask, causal)


def _splash(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    query_segment_ids: jax.Array,
    key_segment_ids: jax.Array,
    causal: bool,
    kernel: AttentionKernel,
    cut: PartitionSpec,
    specs: tuple[PartitionSpec, ...] | None,
) -> jax.Array:
    """Splash attention of padded inputs; `cut` is that of [heads, queries], `specs` those of the operands on a mesh."""
    mesh = current_mesh()
    head_shards, token_shards = (_size(mesh, axes) for axes in cut)
    tokens = query.shape[1]
    length, slots = padded_seq_len(tokens, token_shards), padded_seq_len(key.shape[1])
    table = splash_kernel(
        query.shape[2],
        length,
        slots,
        causal=causal,
        head_shards=head_shards,
        token_shards=token_shards,
        interpret=kernel == "splash_interpreted",
    )
    operands = (
        pad_tokens(query, length),
        pad_tokens(key, slots),
        pad_tokens(value, slots),
        pad_tokens(query_segment_ids, length, segments=True),
        pad_tokens(key_segment_ids, slots, segments=True),
    )
    if specs is None or mesh is None:
        return splash_attention(table, *operands)[:, :tokens]
    in_specs = (kernel_specs(table, NamedSharding(mesh, cut)), *specs)
    cut_over_mesh = jax.shard_map(
        splash_attention, in_specs=in_specs, out_specs=specs[0], check_vma=False
    )
    return cut_over_mesh(table, *operands)[:, :tokens]


def _size(mesh: Any, axes: str | tuple[str, ...] | None) -> int:
    """Devices along an entry of a PartitionSpec."""
    names = (axes,) if isinstance(axes, str) else axes or ()
    return math.prod(mesh.shape[name] for name in names)


def _repeat_heads(x: jax.Array, query_heads: int, parts: int) -> jax.Array:
    """Repeats each key head [B,S,K,D] as often as it takes to cut them over as many devices as the query heads."""
    kv_heads = x.shape[2]
    times = parts // math.gcd(kv_heads, parts)
    if query_heads % parts or query_heads % (kv_heads * times):
        raise ConfigError(
            f"{query_heads} query heads over {kv_heads} key heads cannot be cut over {parts} devices; lower mesh.tensor, or "
            "leave rules.heads and rules.kv_heads empty"
        )
    return x if times == 1 else jnp.repeat(x, times, axis=2)
