"""Files in buckets that are read through a `DiskCache`, a block at a time."""

import io
import os

from stepaudio_jax.storage import buckets
from stepaudio_jax.storage.disk_cache import DiskCache
from stepaudio_jax.storage.paths import BucketPath, PathLike

BLOCK_BYTES = 1 << 22  # of a file, read and kept together


class CachedFile(os.PathLike[str]):
    """The path of a file in a bucket, which `open_read` reads through a cache.

    The version of the file is asked for whenever it is opened, so that it is read again after it
    was changed.

    Args:
        path: of the file.
        cache: where its blocks are kept.
        keeps: whether blocks that are not in the cache are put there, also where less is asked for.
    """

    def __init__(self, path: PathLike, cache: DiskCache, *, keeps: bool = True):
        self._path, self._cache, self._keeps = BucketPath(path), cache, keeps

    def __fspath__(self) -> str:
        return str(self._path)

    def open(self) -> io.BufferedReader:
        """Opens the file for reading: seekable, as it is now.

        Raises:
            FileNotFoundError: there is none.
        """
        entry = buckets.find_object(str(self._path))
        if not entry.version:  # it could not be seen that the file was changed
            return buckets.buffered(buckets.ObjectReader(entry))
        # What is as small is read in one piece anyway.
        keeps = self._keeps or entry.size <= buckets.BUFFER_BYTES
        return buckets.buffered(_CachedReader(entry, self._cache, keeps=keeps))


class _CachedReader(buckets.ObjectReader):
    def __init__(self, entry: buckets.Entry, cache: DiskCache, *, keeps: bool):
        super().__init__(entry)
        self._cache, self._keeps = cache, keeps
        self._last: tuple[str, bytes] | None = None  # the block that was read last

    def read_range(self, start: int, stop: int) -> bytes:
        first, last = start // BLOCK_BYTES, -(-stop // BLOCK_BYTES)
        parts = [self._read_from(number, start, stop) for number in range(first, last)]
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _read_from(self, number: int, start: int, stop: int) -> bytes:
        """Returns what a block has of the bytes `start` to `stop`."""
        block_start = number * BLOCK_BYTES
        block_stop = min(block_start + BLOCK_BYTES, self.entry.size)
        start, stop = max(start, block_start), min(stop, block_stop)
        address = f"{self.entry.path}#{block_start}+{BLOCK_BYTES}"
        block = self._kept_block(address)
        if block is None and not self._keeps:
            return super().read_range(start, stop)
        if block is None:
            block = super().read_range(block_start, block_stop)
            if buckets.is_still(self.entry):
                self._cache.put(address, self.entry.version, block)
        self._last = address, block
        return block[start - block_start : stop - block_start]

    def _kept_block(self, address: str) -> bytes | None:
        if self._last is not None and self._last[0] == address:
            return self._last[1]
        kept = self._cache.get(address)
        return kept[1] if kept is not None and kept[0] == self.entry.version else None
