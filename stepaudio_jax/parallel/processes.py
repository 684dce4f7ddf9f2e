"""Several processes of one run agreeing on plain values."""

import functools
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

_CHUNK_BYTES = 1 << 24  # bytes told at a time; every device holds them


def all_gather_json(value: Any) -> list[Any]:
    """The JSON-ready value that each process gives, in the order of processes; every process gets all of them."""
    if jax.process_count() == 1:
        return [value]
    encoded = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.asarray(encoded.size))
    padded = np.zeros(_next_power_of_two(int(sizes.max())), np.uint8)
    padded[: encoded.size] = encoded
    gathered = multihost_utils.process_allgather(padded)
    return [json.loads(row[:size].tobytes()) for row, size in zip(gathered, sizes, strict=True)]


def broadcast_json(value: Any) -> Any:
    """The JSON-ready value that the first process gives; what the others give is not looked at."""
    if jax.process_count() == 1:
        return value
    encoded = np.frombuffer(
        json.dumps(value).encode() if jax.process_index() == 0 else b"", np.uint8
    )
    size = int(multihost_utils.broadcast_one_to_all(np.asarray(encoded.size, np.int32)))
    text = bytearray()
    for start in range(0, size, _CHUNK_BYTES):
        piece = encoded[start : start + _CHUNK_BYTES]
        padded = np.zeros(_next_power_of_two(min(_CHUNK_BYTES, size - start)), np.uint8)
        padded[: piece.size] = piece
        text += multihost_utils.broadcast_one_to_all(padded).tobytes()
    return json.loads(text[:size])


def _next_power_of_two(size: int) -> int:
    """A power of two, so that sizes that change from call to call compile few programs."""
    return 1 << max(size - 1, 0).bit_length()


# A block of an array that is cut over a mesh, to every device of it.

_BITS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}


def replicated_block(
    array: jax.Array, starts: tuple[int, ...], sizes: tuple[int, ...]
) -> jax.Array:
    """`array[start : start + size, ..]`, whole on every device that holds a part of `array`; in several processes all call it.

    Each device gives what it holds of the block, and nothing but the block travels. A slice across
    the axes that are cut would gather all of the array on every device first.

    Args:
        array: of 1, 2 or 4 bytes a value.
        starts, sizes: of the block, an entry an axis; it lies within the array.
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
    names: list[Any] = [*sharding.spec, *[None] * (array.ndim - len(sharding.spec))]
    cut = [axis for axis, name in enumerate(names) if name]
    over = tuple(
        name
        for axis in cut
        for name in ((names[axis],) if isinstance(names[axis], str) else names[axis])
    )

    def part(own: jax.Array, starts: jax.Array) -> jax.Array:
        for axis in range(own.ndim):
            if axis not in cut:
                own = jax.lax.dynamic_slice_in_dim(own, starts[axis], sizes[axis], axis)
        held = jnp.ones((1,) * own.ndim, bool)
        for axis in cut:
            size = own.shape[axis]
            here = starts[axis] - jax.lax.axis_index(names[axis]) * size + jnp.arange(sizes[axis])
            own = jnp.take(own, jnp.clip(here, 0, size - 1), axis=axis)
            inside = (here >= 0) & (here < size)
            held &= inside.reshape([-1 if other == axis else 1 for other in range(own.ndim)])
        # The sum of one device's bits and zeros is these bits, which that of its values is not
        # where one is -0.
        bits = _BITS[own.dtype.itemsize]
        mine = jnp.where(held, jax.lax.bitcast_convert_type(own, bits), 0).astype(jnp.uint32)
        whole = jax.lax.psum(mine, over) if over else mine
        return jax.lax.bitcast_convert_type(whole.astype(bits), own.dtype)

    specs = sharding.spec, PartitionSpec()
    places = jnp.asarray(starts)
    return jax.shard_map(
        part, mesh=sharding.mesh, in_specs=specs, out_specs=PartitionSpec(), check_vma=False
    )(array, places)
