"""Splash attention, JAX's Pallas kernel for TPU: no [T, kv_len] array, masked blocks skipped."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel,
    splash_attention_mask,
)
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from stepaudio_jax.kernels.attention_mask import AttentionMask
from stepaudio_jax.kernels.partitioning import current_mesh, num_shards

_LANES = 128  # of the TPU's vector unit: lengths are padded to multiples of it
_MAX_BLOCK = 512
_PADDING_SEGMENT = -1  # of padding, which attends to itself alone
_ABSENT_SEGMENT = -2  # of keys to which no query attends

Kernel = splash_attention_kernel.SplashAttentionKernel


def splash_attention(
    query: Float[Array, "B T N D"],
    key: Float[Array, "B kv_len K D"],
    value: Float[Array, "B kv_len K D"],
    mask: AttentionMask,
    *,
    causal: bool,
    query_spec: PartitionSpec,
    interpret: bool = False,
) -> Float[Array, "B T N D"]:
    """Computes `attention.attention` by the splash kernel.

    The kernel compares one id of a query with one id of a key. Where segments continue a prefix,
    the row's keys stand twice: a prefix shares the segment of its first continuation, and its
    second copy has that of the other one. There may be at most two, and `causal` must hold.

    Args:
        query: of any length; it is padded to whole blocks.
        key, value: of each position in the row; heads are repeated so that the mesh shards them as
            the query's.
        mask: the segments of queries and keys.
        causal: mask later keys.
        query_spec: how the current mesh shards the query's dimensions; not used without a mesh.
        interpret: run the kernel as plain JAX, on any platform.
    """
    mesh = current_mesh()
    rows, query_shards, head_shards = query_spec[0], 1, 1
    if mesh is not None:
        query_shards, head_shards = (num_shards(mesh, axes) for axes in query_spec[1:3])
    tokens = query.shape[1]
    query_len, kv_len = _padded_length(tokens, query_shards), _padded_length(key.shape[1])
    query_ids = mask.query_segment_ids
    keys, values, key_ids = [_pad(key, kv_len)], [_pad(value, kv_len)], [mask.key_segment_ids]
    if mask.query_prefix_ids is not None:
        query_ids, key_ids = _ids_of_two_copies(mask)
        keys, values = keys * 2, values * 2
    kernel = _make_kernel(
        query.shape[2],
        query_len,
        kv_len,
        key_copies=len(keys),
        causal=causal,
        head_shards=head_shards,
        query_shards=query_shards,
        interpret=interpret,
    )
    operands = (
        _pad(query, query_len),
        jnp.concatenate(keys, axis=1),
        jnp.concatenate(values, axis=1),
        _pad(query_ids, query_len, _PADDING_SEGMENT),
        jnp.concatenate([_pad(ids, kv_len, _PADDING_SEGMENT) for ids in key_ids], axis=1),
    )
    if mesh is None:
        return _run_kernel(kernel, *operands)[:, :tokens]
    kernel_sharding = NamedSharding(mesh, PartitionSpec(query_spec[2], query_spec[1]))
    key_spec = PartitionSpec(rows, None, query_spec[2], None)
    in_specs = (
        kernel.manual_sharding_spec(kernel_sharding),
        query_spec,
        key_spec,
        key_spec,
        PartitionSpec(rows, query_spec[1]),
        PartitionSpec(rows, None),
    )
    run_sharded = jax.shard_map(
        _run_kernel, in_specs=in_specs, out_specs=query_spec, check_vma=False
    )
    return run_sharded(kernel, *operands)[:, :tokens]


@functools.lru_cache(maxsize=32)
def _make_kernel(
    heads: int,
    query_len: int,
    kv_len: int,
    *,
    key_copies: int,
    causal: bool,
    head_shards: int,
    query_shards: int,
    interpret: bool,
) -> Kernel:
    """Builds the kernel for the whole (padded) lengths, by shards of heads and of queries."""
    shape = (query_len, kv_len)
    head_mask: splash_attention_mask.Mask
    if key_copies > 1:
        head_mask = _CausalCopies(query_len, kv_len, key_copies)
    elif causal:
        head_mask = splash_attention_mask.CausalMask(shape)
    else:
        head_mask = splash_attention_mask.FullMask(shape)
    query_block = min(query_len // query_shards, _MAX_BLOCK)
    kv_block = min(kv_len, _MAX_BLOCK)
    block_sizes = splash_attention_kernel.BlockSizes(
        block_q=query_block,
        block_kv=kv_block,
        block_kv_compute=kv_block,
        block_q_dkv=query_block,
        block_kv_dkv=kv_block,
        block_kv_dkv_compute=kv_block,
        block_q_dq=query_block,
        block_kv_dq=kv_block,
    )
    # The tables of blocks are constants, also where the caller is being traced.
    with jax.ensure_compile_time_eval():
        kernel = splash_attention_kernel.make_splash_mha(
            mask=splash_attention_mask.MultiHeadMask([head_mask] * heads),
            block_sizes=block_sizes,
            head_shards=head_shards,
            q_seq_shards=query_shards,
            residual_checkpoint_name="attn_out",
            interpret=interpret,
        )
        return jax.tree.map(np.asarray, kernel)


@dataclasses.dataclass(frozen=True)
class _CausalCopies(splash_attention_mask.Mask):
    """The causal mask over each of several copies of a row's keys.

    Attributes:
        query_len, kv_len: of the row.
        copies: of its keys, end to end.
    """

    query_len: int
    kv_len: int
    copies: int

    @property
    def shape(self) -> tuple[int, ...]:
        return self.query_len, self.kv_len * self.copies

    def __getitem__(self, idx: tuple[slice, slice]) -> np.ndarray:
        queries = np.arange(self.query_len)[idx[0]]
        keys = np.arange(self.kv_len * self.copies)[idx[1]] % self.kv_len
        visible: np.ndarray = queries[:, None] >= keys
        return visible


def _ids_of_two_copies(mask: AttentionMask) -> tuple[jax.Array, list[jax.Array]]:
    """Returns the ids of the queries [B,T], and those of the keys in both of their copies.

    A key of a prefix has the id of its first continuation in the first copy, and that of another
    one, if there is one, in the second. All other keys are in the first copy only.
    """
    assert mask.query_prefix_ids is not None

    def of_row(segments: jax.Array, prefixes: jax.Array) -> tuple[jax.Array, jax.Array]:
        has_prefix = prefixes >= 0
        # Segment ids count from 0 to the number of tokens; one place more for tokens without one.
        size = segments.size + 2
        prefixes = jnp.where(has_prefix, prefixes, size - 1)
        first = jax.ops.segment_min(segments, prefixes, num_segments=size)[segments]
        last = jax.ops.segment_max(segments, prefixes, num_segments=size)[segments]
        is_prefix = jnp.zeros(size, bool).at[prefixes].set(has_prefix)[segments]
        ids = jnp.where(is_prefix, first, segments)
        return ids, jnp.where(is_prefix & (last != first), last, _ABSENT_SEGMENT)

    ids, copy_ids = jax.vmap(of_row)(mask.query_segment_ids, mask.query_prefix_ids)
    return ids, [ids, copy_ids]


def _run_kernel(
    kernel: Kernel,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    query_segment_ids: jax.Array,
    key_segment_ids: jax.Array,
) -> jax.Array:
    """Runs the kernel on padded operands, or on a device's part of them."""
    scaled = query * jnp.asarray(query.shape[-1] ** -0.5, query.dtype)
    q, k, v = (x.swapaxes(1, 2) for x in (scaled, key, value))
    segments = splash_attention_kernel.SegmentIds(q=query_segment_ids, kv=key_segment_ids)
    out: jax.Array = jax.vmap(kernel)(q, k, v, segments)  # type: ignore[assignment]  # no residuals
    return out.swapaxes(1, 2).astype(value.dtype)


def _padded_length(tokens: int, shards: int = 1) -> int:
    """Returns the next length whose part on each shard is made of whole blocks."""
    part = -(-tokens // shards)
    if part > _MAX_BLOCK:
        return shards * _MAX_BLOCK * -(-part // _MAX_BLOCK)
    return shards * _LANES * -(-part // _LANES)


def _pad(x: jax.Array, length: int, value: int = 0) -> jax.Array:
    """Pads dimension 1 to `length`."""
    widths = [(0, 0), (0, length - x.shape[1])] + [(0, 0)] * (x.ndim - 2)
    return jnp.pad(x, widths, constant_values=np.asarray(value, x.dtype))
