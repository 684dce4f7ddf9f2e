"""Files that one process at a time holds: whatever ends that process, `kill -9` included, lets them go."""

import errno
import logging
import os
import threading
from typing import BinaryIO

from stepaudio_jax.errors import LockHeldError
from stepaudio_jax.storage.files import PathLike

try:
    import fcntl
except ImportError:  # Windows has none
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

# What a system says where the file system has no locks (some network mounts, and buckets).
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
_ATTEMPTS = 5  # to hold a file that another process removes meanwhile
_locked_paths: set[str] = (
    set()
)  # real paths that this process holds: the system would let it take them again
_locked_paths_mutex = threading.Lock()


class LockedFile:
    """A file that is open for reading and writing, and held until `close` or the end of the process.

    Attributes:
        path: of the file, links resolved.
        file: what it is read and written through. No other handle of this process may open the same
            file meanwhile: the system's locks belong to a process and a file, and closing any
            handle lets them go.
    """

    def __init__(self, path: str, file: BinaryIO):
        self.path, self.file = path, file

    def close(self) -> None:
        """Releases the file; calling it again does nothing."""
        if not self.file.closed:
            try:
                self.file.close()
            finally:  # a full disk, told once more
                with _locked_paths_mutex:
                    _locked_paths.discard(self.path)


def lock_file(path: PathLike) -> LockedFile:
    """Opens a file, made where it is not there, and holds it.

    The locks are POSIX's, which NFS keeps across machines and which a forked child does not
    inherit. Where a file system has none, a warning says that nothing is guarded.

    Raises:
        LockHeldError: it is held already.
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
        # The process that held it may have removed it between the two: what is locked must be what
        # the path names. Some mounted buckets change a file's inode once it is written, so the
        # attempts are limited.
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
