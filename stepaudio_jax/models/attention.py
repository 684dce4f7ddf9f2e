"""Attention: one door, behind which the kernel for the platform is chosen, on one device or cut over a mesh."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from stepaudio_jax.config import AttentionKernel, ComputeConfig, ConfigError
from stepaudio_jax.models.attention_cudnn import attention_cudnn
from stepaudio_jax.models.attention_packed import attention_packed
from stepaudio_jax.models.attention_splash import attention_splash, kernel_specs, pad_tokens, padded_length, splash_kernel
from stepaudio_jax.models.attention_xla import Sight, attention_xla
from stepaudio_jax.models.constraints import activation_spec, mesh_in_use

_DENSE = ("cudnn", "xla")  # kernels that are given a mask
_SHORT_ROW = 512  # tokens: so many, or fewer, cost no more than the search for blocks that see each other


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    query_segments: jax.Array,
    key_segments: jax.Array,
    query_prefixes: jax.Array | None = None,
    compute: ComputeConfig,
    letters: str = "BTND",
    causal: bool = False,
) -> jax.Array:
    """Grouped-query softmax attention within segments.

    A query sees a key when both have the same segment id, or the key has that of the query's prefix, and, where causal, when
    the key's slot is not later than its own. What a query that sees no key gets is finite and means nothing.

    On a mesh, rows and heads stay where the rules put them; where tokens are cut, each device holds its queries and gathers the
    keys and values of the whole row.

    Args:
        query: [B,T,N,D].
        key, value: [B,S,K,D]; N is a multiple of K, and query head n reads key head n // (N // K).
        query_segments: [B,T] i32. key_segments: [B,S] i32. Segment 0 is padding: what its queries get means nothing.
        query_prefixes: [B,T] i32, -1 for none: what several segments have in common stands in the row once. For dense kernels
            (see `takes_prefixes`).
        compute: which kernel, and the rules.
        letters: of the query's dimensions, which the rules place; keys lie like it, but for their slots.
        causal: hide later slots. Within a segment, slots are in the order of positions.

    Returns:
        [B,T,N,D] in value's dtype; scores and softmax are computed in fp32.

    Raises:
        ConfigError: the kernel asked for does not exist on this platform or takes no prefixes, or the mesh cuts heads unevenly.
    """
    kernel = choose_kernel(compute)
    if query_prefixes is not None and not takes_prefixes(compute):
        raise ConfigError(f"compute.attention={kernel!r} takes no prefixes: a query there sees the keys of one segment")
    dense = attention_cudnn if kernel == "cudnn" else _plain
    mesh = mesh_in_use()
    if mesh is None:
        if kernel in _DENSE:
            return dense(query, key, value, Sight(query_segments, key_segments, query_prefixes), causal)
        return _splash(query, key, value, query_segments, key_segments, causal, kernel, PartitionSpec(None, None), None)
    query_spec = activation_spec(letters, compute.rules)
    rows, tokens, over_heads, _ = query_spec
    key, value = (_repeat_heads(x, query.shape[2], _size(mesh, over_heads)) for x in (key, value))
    key_spec = PartitionSpec(rows, None, over_heads, None)
    of_queries: Any = PartitionSpec(rows, tokens)
    of_keys: Any = PartitionSpec(rows, None)
    if kernel not in _DENSE:
        specs = (query_spec, key_spec, key_spec, of_queries, of_keys)
        operands = (query, key, value, query_segments, key_segments)
        return _splash(*operands, causal, kernel, PartitionSpec(over_heads, tokens), specs)

    def local(query: jax.Array, key: jax.Array, value: jax.Array, sight: Sight) -> jax.Array:
        if tokens is not None and _size(mesh, tokens) > 1:
            first = jnp.full(query.shape[0], jax.lax.axis_index(tokens) * query.shape[1])
            sight = dataclasses.replace(sight, first_slot=first)
        return dense(query, key, value, sight, causal)

    sight = Sight(query_segments, key_segments, query_prefixes)
    cut = Sight(of_queries, of_keys, None if query_prefixes is None else of_queries)
    in_specs = (query_spec, key_spec, key_spec, cut)
    return jax.shard_map(local, in_specs=in_specs, out_specs=query_spec, check_vma=False)(query, key, value, sight)


def takes_prefixes(compute: ComputeConfig) -> bool:
    """Whether the kernel of this platform lets a query see two segments: those that are given a mask do."""
    return choose_kernel(compute) in _DENSE


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


def _plain(query: jax.Array, key: jax.Array, value: jax.Array, sight: Sight, causal: bool) -> jax.Array:
    """By plain XLA; on a CPU, long rows by blocks that see each other: one row alone is too thin for that."""
    rows, tokens = query.shape[:2]
    searched = jax.default_backend() == "cpu" and rows > 1 and tokens > _SHORT_ROW
    if searched and causal and key.shape[1] == tokens and sight.first_slot is None:
        return attention_packed(query, key, value, sight)
    return attention_xla(query, key, value, sight, causal)


def _splash(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    query_segments: jax.Array,
    key_segments: jax.Array,
    causal: bool,
    kernel: AttentionKernel,
    cut: PartitionSpec,
    specs: tuple[PartitionSpec, ...] | None,
) -> jax.Array:
    """Splash attention of padded inputs; `cut` is that of [heads, queries], `specs` those of the operands on a mesh."""
    mesh = mesh_in_use()
    head_shards, token_shards = (_size(mesh, axes) for axes in cut)
    tokens = query.shape[1]
    length, slots = padded_length(tokens, token_shards), padded_length(key.shape[1])
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
        pad_tokens(query_segments, length, segments=True),
        pad_tokens(key_segments, slots, segments=True),
    )
    if specs is None or mesh is None:
        return attention_splash(table, *operands)[:, :tokens]
    in_specs = (kernel_specs(table, NamedSharding(mesh, cut)), *specs)
    cut_over_mesh = jax.shard_map(attention_splash, in_specs=in_specs, out_specs=specs[0], check_vma=False)
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
