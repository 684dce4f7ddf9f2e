"""An array, sharded or not, put together from blocks that are read one at a time."""

import collections
import concurrent.futures
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Sharding
from numpy.typing import NDArray

from stepaudio_jax.hub.tensor_map import BlockIndex

# Preparing blocks in threads while earlier ones are written.

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

# Called with the bytes written so far and the bytes there will be.
ProgressCallback = Callable[[int, int], None]


def ordered_parallel_map(
    function: Callable[[ItemT], ResultT],
    items: Iterable[ItemT],
    *,
    threads: int = 2,
    max_pending: int = 3,
) -> Iterator[ResultT]:
    """`map(function, items)`, computed in threads at most `max_pending` items early, so that memory stays bounded."""
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        due: collections.deque[concurrent.futures.Future[ResultT]] = collections.deque()
        try:
            for item in items:
                due.append(pool.submit(function, item))
                if len(due) > max_pending:
                    yield due.popleft().result()
            while due:
                yield due.popleft().result()
        finally:
            for future in due:
                future.cancel()


_Bounds = tuple[tuple[int, int], ...]


class ShardBuffers:
    """The shards of one array that this process's devices hold, filled on the host and then sent to the devices.

    A shard that several devices hold is filled once.
    """

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any], sharding: Sharding):
        self._shape = shape
        self._sharding = sharding
        indices = sharding.addressable_devices_indices_map(shape)
        self._bounds: dict[jax.Device, _Bounds] = {
            device: _bounds(index or (slice(None),) * len(shape), shape)
            for device, index in indices.items()
        }
        self._values: dict[_Bounds, NDArray[Any]] = {
            bounds: np.empty([stop - start for start, stop in bounds], dtype)
            for bounds in self._bounds.values()
        }

    def overlap(self, index: BlockIndex) -> bool:
        """Whether a block holds anything that these shards need."""
        return any(
            _intersection(_bounds(index, self._shape), bounds) is not None
            for bounds in self._values
        )

    def fill(self, index: BlockIndex, values: NDArray[Any]) -> None:
        """Copies a block (cast to the array's dtype) to where it belongs."""
        block = _bounds(index, self._shape)
        for bounds, shard in self._values.items():
            common = _intersection(block, bounds)
            if common is not None:
                shard[_relative(common, bounds)] = values[_relative(common, block)]

    def array(self) -> jax.Array:
        """The array, once every block has been filled in."""
        shards = [
            jax.device_put(self._values[bounds], device) for device, bounds in self._bounds.items()
        ]
        return jax.make_array_from_single_device_arrays(self._shape, self._sharding, shards)


def _bounds(index: BlockIndex, shape: tuple[int, ...]) -> _Bounds:
    return tuple(part.indices(size)[:2] for part, size in zip(index, shape, strict=True))


def _intersection(first: _Bounds, second: _Bounds) -> _Bounds | None:
    common = tuple((max(a, c), min(b, d)) for (a, b), (c, d) in zip(first, second, strict=True))
    return common if math.prod(max(0, stop - start) for start, stop in common) else None


def _relative(bounds: _Bounds, origin: _Bounds) -> BlockIndex:
    return tuple(
        slice(start - base, stop - base)
        for (start, stop), (base, _) in zip(bounds, origin, strict=True)
    )
