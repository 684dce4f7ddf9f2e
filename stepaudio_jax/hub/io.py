"""Places blocks that are read one at a time into the shards of an array, and reads them ahead."""

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
from stepaudio_jax.storage import BucketPath, Path

_BUCKET_THREADS = 16

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
    """Yields `function(item)` for every item in order, computed ahead in threads.

    Args:
        function: called in threads.
        items: any number of them.
        threads: number of threads that compute.
        max_pending: results that may be ready and not yet yielded, which bounds the memory.
    """
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        pending: collections.deque[concurrent.futures.Future[ResultT]] = collections.deque()
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) > max_pending:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def read_ahead(folder: Path) -> dict[str, int]:
    """Returns how many blocks of a folder are read at a time: more where each read is a request."""
    if isinstance(folder, BucketPath):
        return {"threads": _BUCKET_THREADS, "max_pending": _BUCKET_THREADS}
    return {}


_Bounds = tuple[tuple[int, int], ...]


class ShardBuffers:
    """Collects blocks of an array on the host, and then sends each device its shard.

    It holds the shards of this process's devices; one that several devices hold is stored once.

    Args:
        shape: the array's shape.
        dtype: the array's dtype.
        sharding: where it is placed.
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
        """Returns whether a block holds anything that these shards need."""
        return any(
            _intersection(_bounds(index, self._shape), bounds) is not None
            for bounds in self._values
        )

    def fill(self, index: BlockIndex, values: NDArray[Any]) -> None:
        """Copies a block into the shards, cast to the array's dtype."""
        block = _bounds(index, self._shape)
        for bounds, shard in self._values.items():
            common = _intersection(block, bounds)
            if common is not None:
                shard[_relative(common, bounds)] = values[_relative(common, block)]

    def array(self) -> jax.Array:
        """Returns the array, after every block has been filled in."""
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
