"""A cache of decoded blocks, of bounded size, that all files of a process share."""

import collections
import threading
from collections.abc import Callable, Hashable
from typing import Any

MAX_CACHED_BYTES = 1 << 29  # of the blocks of a process


class DecodedCache:
    """Keeps the blocks that were used last; a block is decoded by one thread, others wait for it.

    Args:
        max_bytes: the size of all blocks together; the newest is kept even if it is larger alone.
    """

    def __init__(self, max_bytes: int):
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._lock = threading.Lock()
        self._blocks: collections.OrderedDict[Hashable, tuple[Any, int]] = collections.OrderedDict()
        self._decoding: dict[Hashable, threading.Lock] = {}

    def get(self, key: Hashable, decode: Callable[[], tuple[Any, int]]) -> Any:
        """Returns a block.

        Args:
            key: of the block.
            decode: returns the block and its size in bytes; called if it is not in the cache.
        """
        with self._lock:
            if key in self._blocks:
                self._blocks.move_to_end(key)
                return self._blocks[key][0]
            decoding = self._decoding.setdefault(key, threading.Lock())
        with decoding:
            with self._lock:
                if key in self._blocks:
                    return self._blocks[key][0]
            block, size = decode()
            with self._lock:
                self._blocks[key] = block, size
                self._num_bytes += size
                self._decoding.pop(key, None)
                while self._num_bytes > self._max_bytes and len(self._blocks) > 1:
                    _, (_, removed) = self._blocks.popitem(last=False)
                    self._num_bytes -= removed
        return block
