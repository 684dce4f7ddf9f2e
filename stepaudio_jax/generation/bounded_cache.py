"""A cache that is bounded in bytes and drops what was not used for longest."""

import collections
from typing import Generic, TypeVar

Value = TypeVar("Value")


class BoundedCache(Generic[Value]):
    """Keeps values by key up to a number of bytes, the most recently used ones.

    Args:
        max_bytes: of all values; 0 keeps none.

    Attributes:
        num_bytes: of the values that are kept.
        hits, misses: how often `get` has returned a value, and how often it had none.
    """

    def __init__(self, max_bytes: int):
        self._max_bytes = max_bytes
        self._entries: collections.OrderedDict[bytes, tuple[Value, int]] = collections.OrderedDict()
        self.num_bytes = 0
        self.hits = 0
        self.misses = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: bytes) -> Value | None:
        """Returns the value of a key, which is then the most recently used; None if it is gone."""
        entry = self._entries.get(key)
        if entry is None:
            self.misses += 1
            return None
        self.hits += 1
        self._entries.move_to_end(key)
        return entry[0]

    def touch(self, key: bytes) -> None:
        """Makes a key the most recently used one, if it is kept."""
        if key in self._entries:
            self._entries.move_to_end(key)

    def put(self, key: bytes, value: Value, num_bytes: int) -> None:
        """Keeps a value of a size, and drops others for it; one that is too large is not kept."""
        if num_bytes > self._max_bytes:
            return
        replaced = self._entries.pop(key, None)
        if replaced is not None:
            self.num_bytes -= replaced[1]
        self._entries[key] = (value, num_bytes)
        self.num_bytes += num_bytes
        while self.num_bytes > self._max_bytes:
            _, (_, dropped_bytes) = self._entries.popitem(last=False)
            self.num_bytes -= dropped_bytes

    def clear(self) -> None:
        """Drops all values."""
        self._entries.clear()
        self.num_bytes = 0
