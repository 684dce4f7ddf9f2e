"""Exchange between the processes of a run: JSON values, and blocks of sharded arrays."""

import functools
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

_BROADCAST_BYTES = 1 << 24  # at a time; every device holds them
_BITS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}  # by bytes of a value


def all_gather_json(value: Any) -> list[Any]:
    """Returns the JSON values of all processes, in their order, on every process."""
    if jax.process_count() == 1:
        return [value]
    encoded = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.asarray(encoded.size))
    padded = np.zeros(_next_power_of_two(int(sizes.max())), np.uint8)
    padded[: encoded.size] = encoded
    gathered = multihost_utils.process_allgather(padded)
    return [json.loads(row[:size].tobytes()) for row, size in zip(gathered, sizes, strict=True)]


def broadcast_json(value: Any) -> Any:
    """Returns the JSON value of the first process on every process; other values are ignored."""
    if jax.process_count() == 1:
        return value
    encoded = np.frombuffer(
        json.dumps(value).encode() if jax.process_index() == 0 else b"", np.uint8
    )
    size = int(multihost_utils.broadcast_one_to_all(np.asarray(encoded.size, np.int32)))
    text = bytearray()
    for start in range(0, size, _BROADCAST_BYTES):
        piece = encoded[start : start + _BROADCAST_BYTES]
        padded = np.zeros(_next_power_of_two(min(_BROADCAST_BYTES, size - start)), np.uint8)
        padded[: piece.size] = piece
        text += multihost_utils.broadcast_one_to_all(padded).tobytes()
    return json.loads(text[:size])


def replicated_block(
    array: jax.Array, starts: tuple[int, ...], sizes: tuple[int, ...]
) -> jax.Array:
    """Returns `array[start : start + size, ..]` on every device that holds a part of `array`.

    Each device sends what it holds of the block, and nothing but the block travels: a plain slice
    of sharded dimensions would gather all of the array on every device first. In a run of several
    processes, all of them call it.

    Args:
        array: of 1, 2 or 4 bytes a value.
        starts: of the block, one for each dimension.
        sizes: of the block, which lies within the array.
    """
    if not isinstance(array.sharding, NamedSharding):
        return _slice_block(array, starts, sizes)
    return _gather_block(array, starts, sizes, array.sharding)


@functools.partial(jax.jit, static_argnames="sizes")
def _slice_block(array: jax.Array, starts: tuple[int, ...], sizes: tuple[int, ...]) -> jax.Array:
    return jax.lax.dynamic_slice(array, starts, sizes)


@functools.partial(jax.jit, static_argnames=("sizes", "sharding"))
def _gather_block(
    array: jax.Array, starts: tuple[int, ...], sizes: tuple[int, ...], sharding: NamedSharding
) -> jax.Array:
    entries: list[Any] = [*sharding.spec, *[None] * (array.ndim - len(sharding.spec))]
    sharded_dims = [dim for dim, entry in enumerate(entries) if entry]
    mesh_axes = tuple(
        name
        for dim in sharded_dims
        for name in ((entries[dim],) if isinstance(entries[dim], str) else entries[dim])
    )

    def gather(local: jax.Array, starts: jax.Array) -> jax.Array:
        for dim in range(local.ndim):
            if dim not in sharded_dims:
                local = jax.lax.dynamic_slice_in_dim(local, starts[dim], sizes[dim], dim)
        is_local = jnp.ones((1,) * local.ndim, bool)
        for dim in sharded_dims:
            size = local.shape[dim]
            first = jax.lax.axis_index(entries[dim]) * size
            index = starts[dim] - first + jnp.arange(sizes[dim])
            local = jnp.take(local, jnp.clip(index, 0, size - 1), axis=dim)
            inside = (index >= 0) & (index < size)
            is_local &= inside.reshape([-1 if other == dim else 1 for other in range(local.ndim)])
        # Bits are added, not values: one device's value and zeros would make 0 of -0.
        bits_dtype = _BITS[local.dtype.itemsize]
        bits = jnp.where(is_local, jax.lax.bitcast_convert_type(local, bits_dtype), 0)
        bits = bits.astype(jnp.uint32)
        bits = jax.lax.psum(bits, mesh_axes) if mesh_axes else bits
        return jax.lax.bitcast_convert_type(bits.astype(bits_dtype), local.dtype)

    return jax.shard_map(
        gather,
        mesh=sharding.mesh,
        in_specs=(sharding.spec, PartitionSpec()),
        out_specs=PartitionSpec(),
        check_vma=False,
    )(array, jnp.asarray(starts))


def _next_power_of_two(size: int) -> int:
    """Returns a power of two, so that sizes that change from call to call compile few programs."""
    return 1 << max(size - 1, 0).bit_length()
