"""Keeps what was read from buckets on this machine's disk, up to a number of bytes.

An epoch reads every clip again; the disk of a TPU host is nearer than the bucket. What was used
longest ago goes first. The files are of this process: they are not taken for those of another run,
whose bucket may hold other content under the same names, and they are removed at the end. A process
that was killed leaves its folder, which the next one on the machine removes.
"""

import atexit
import collections
import hashlib
import logging
import os
import pathlib
import shutil
import socket
import threading

from stepaudio_jax.storage.files import is_running, read_bytes
from stepaudio_jax.storage.paths import PathLike
from stepaudio_jax.storage.uris import is_bucket_path

logger = logging.getLogger(__name__)

_PREFIX = "stepaudio-cache"


class DiskCache:
    """Reads whole files, those of buckets once while they fit. Thread-safe.

    Args:
        folder: a local folder, created where it does not exist.
        max_bytes: that are kept; larger files are not.
    """

    def __init__(self, folder: PathLike, max_bytes: int):
        self.max_bytes = max_bytes
        parent = pathlib.Path(folder)
        _remove_stale_caches(parent)
        self._folder = parent / f"{_PREFIX}.{socket.gethostname()}.{os.getpid()}.{id(self):x}"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._sizes: collections.OrderedDict[str, int] = collections.OrderedDict()
        self._bytes = 0
        self._mutex = threading.Lock()
        self._is_full_disk = False
        atexit.register(self.close)

    def read_bytes(self, path: PathLike) -> bytes:
        """Returns the content of a file, from the disk if it was read before.

        Raises:
            OSError: it cannot be read.
        """
        if not is_bucket_path(path):
            return read_bytes(path)
        name = hashlib.sha256(os.fspath(path).encode()).hexdigest()
        with self._mutex:
            is_kept = name in self._sizes
            if is_kept:
                self._sizes.move_to_end(name)
        if is_kept:
            try:
                return (self._folder / name).read_bytes()
            except FileNotFoundError:  # another thread has needed the room since
                pass
        content = read_bytes(path)
        self._keep(name, content)
        return content

    def close(self) -> None:
        """Removes the files; calling it again does nothing."""
        with self._mutex:
            self._sizes.clear()
            self._bytes = 0
        shutil.rmtree(self._folder, ignore_errors=True)

    def _keep(self, name: str, content: bytes) -> None:
        if len(content) > self.max_bytes or self._is_full_disk:
            return
        file = self._folder / name
        temporary = file.with_suffix(f".{threading.get_native_id()}")
        try:
            temporary.write_bytes(content)
            with self._mutex:
                self._make_room(len(content))
                temporary.rename(file)
                self._bytes += len(content) - self._sizes.pop(name, 0)
                self._sizes[name] = len(content)
        except OSError as error:
            if self._folder.is_dir():
                logger.warning("%s: no more clips are kept on this disk: %s", self._folder, error)
            self._is_full_disk = True
            temporary.unlink(missing_ok=True)

    def _make_room(self, size: int) -> None:
        while self._sizes and self._bytes + size > self.max_bytes:
            oldest, freed = self._sizes.popitem(last=False)
            self._bytes -= freed
            (self._folder / oldest).unlink(missing_ok=True)


def _remove_stale_caches(parent: pathlib.Path) -> None:
    """Removes what dead processes of this host left."""
    for folder in parent.glob(f"{_PREFIX}.{socket.gethostname()}.*"):
        process = folder.name.split(".")[-2]
        if process.isdigit() and int(process) != os.getpid() and not is_running(int(process)):
            shutil.rmtree(folder, ignore_errors=True)
