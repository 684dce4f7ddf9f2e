"""Locks files for one process at a time; the end of the process releases them, also `kill -9`.

In a bucket the lock is an object; see `bucket_locks` for what the end of its process means there.
"""

import contextlib
import errno
import json
import logging
import os
import threading
from collections.abc import Mapping
from typing import Any, BinaryIO, Protocol

from stepaudio_jax.errors import LockHeldError
from stepaudio_jax.storage.bucket_locks import lock_object
from stepaudio_jax.storage.paths import PathLike
from stepaudio_jax.storage.uris import is_bucket_path

try:
    import fcntl
except ImportError:  # Windows has none
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

# Errors of file systems without locks (some network mounts, and buckets).
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
_ATTEMPTS = 5  # to lock a file that another process removes meanwhile
# Real paths that this process has locked: the system would let it lock them again.
_locked_paths: set[str] = set()
_locked_paths_mutex = threading.Lock()


class Lock(Protocol):
    """Holds a lock for this process until it is closed."""

    def describe(self, holder: Mapping[str, Any]) -> None:
        """Writes who holds the lock, as JSON, for the messages of others."""

    def close(self) -> None:
        """Releases the lock; calling it again does nothing."""

    def remove(self) -> None:
        """Releases the lock, and removes its file or object."""


class LockedFile:
    """Holds a file open for reading and writing, and locked, until `close`.

    Attributes:
        path: of the file, links resolved.
        file: its only handle in this process. The system's locks belong to a process and a file,
            and closing any handle of the file releases them.
    """

    def __init__(self, path: str, file: BinaryIO):
        self.path, self.file = path, file

    def describe(self, holder: Mapping[str, Any]) -> None:
        """Replaces the file's content by who holds it, as JSON."""
        os.ftruncate(self.file.fileno(), 0)
        os.write(self.file.fileno(), json.dumps(dict(holder)).encode() + b"\n")

    def remove(self) -> None:
        """Removes the file, and releases it."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)
        self.close()

    def close(self) -> None:
        """Releases the file; calling it again does nothing."""
        if not self.file.closed:
            try:
                self.file.close()
            finally:  # also if the disk is full
                with _locked_paths_mutex:
                    _locked_paths.discard(self.path)


def take_lock(path: PathLike) -> Lock:
    """Takes the lock that is a file, or an object in a bucket.

    Raises:
        LockHeldError: another process, or this one, holds it.
        OSError: it cannot be made.
    """
    return lock_object(path) if is_bucket_path(path) else lock_file(path)


def lock_file(path: PathLike) -> LockedFile:
    """Opens a file and locks it; it is created if it does not exist.

    The locks are POSIX's: NFS keeps them across machines, and a forked child does not inherit them.
    On a file system without locks a warning is logged and the file is not locked.

    Raises:
        LockHeldError: it is locked already.
        OSError: it cannot be opened.
    """
    real = os.path.realpath(path)
    with _locked_paths_mutex:
        if real in _locked_paths:
            raise LockHeldError(f"{path} is held by this process already", by_this_process=True)
        _locked_paths.add(real)
    try:
        return LockedFile(real, _open_locked(real))
    except BaseException:
        with _locked_paths_mutex:
            _locked_paths.discard(real)
        raise


def _open_locked(path: str) -> BinaryIO:
    for attempts_left in reversed(range(_ATTEMPTS)):
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
        try:
            _lock(file, path)
        except BaseException:
            file.close()
            raise
        # Another process may have removed the file before it was locked: the locked file must be
        # the one at the path. Some mounted buckets change a file's inode once it is written, so
        # the attempts are limited.
        if _is_path_of(path, file) or not attempts_left:
            return file
        file.close()
    raise AssertionError("the last attempt returns")


def _is_path_of(path: str, file: BinaryIO) -> bool:
    """Returns whether a path names an open file."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _lock(file: BinaryIO, path: str) -> None:
    if fcntl is None:
        logger.warning(
            "%s: this system has no file locks, so nothing keeps a second job away", path
        )
        return
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise LockHeldError(f"{path} is held by another process") from None
        if error.errno not in _NO_LOCKS:
            raise
        logger.warning("%s: its file system has no locks, so nothing keeps a second job away", path)
