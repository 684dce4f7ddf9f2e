"""Keeps what was read from buckets and from the web on a disk of this machine, up to a bound.

An epoch reads every clip again, and the disk of a host is nearer than a bucket. Any number of
processes share a folder, of one run or of several, also at the same time.

Each entry is a file, named by a hash of its address, and it appears whole or not at all. It holds
the version of what was read, so that an object that was changed is read again, and a checksum. How
many bytes all of them take is in the file `used`, which a process locks while it changes it. The
bytes of an entry are counted before it is written, so the bound holds for what a killed process
leaves too; the entries are counted anew now and then, and whenever the bound is reached.

When it is reached, entries that nothing has used since this process opened the folder make room,
those used longest ago first. The others stay, and what is new is not kept: training reads every
clip once an epoch, in a new order, so that a cache of what was used last would drop most clips
before they are needed again.
"""

import contextlib
import errno
import hashlib
import json
import logging
import os
import pathlib
import re
import shutil
import time
import uuid
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from stepaudio_jax.errors import StorageError
from stepaudio_jax.storage.paths import PathLike

try:
    import fcntl
except ImportError:  # Windows has none
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

_FOLDER = "stepaudio-clips"
_USED = "used"
_NAME = re.compile(r"[0-9a-f]{64}|[0-9a-f]{32}\.incomplete")
_MIN_FREE_BYTES = 1 << 30  # of the disk, which are left to others
_FREED_FRACTION = 0.1  # of the bound, freed at once, since counting 100 GB of clips takes a second
_COUNTED_EVERY_S = 3600.0
_PAUSE_S = 600.0  # before room is looked for again where there was none
_LOCK_TIMEOUT_S = 10.0
_MAX_WRITE_S = 3600.0  # after which a file that is being written is one that a killed process left
_DISK_BLOCK_BYTES = 4096
_MAX_HEADER_BYTES = 1 << 16
_warned_of: set[pathlib.Path] = set()


class DiskCache:
    """A folder of entries. Any thread may use it, and a copy of it in any process.

    Trouble with the disk never stops a reader: nothing more is kept for ten minutes, and a process
    logs one warning.

    Args:
        folder: a local folder, created where it does not exist; the entries are in
            `stepaudio-clips/` below it, and nothing else in it is touched.
        max_bytes: that they may take together.

    Raises:
        StorageError: the folder cannot be used.
    """

    def __init__(self, folder: PathLike, max_bytes: int):
        self.folder, self.max_bytes = pathlib.Path(folder) / _FOLDER, max_bytes
        self._opened = time.time()
        self._paused_until = 0.0
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with self._locked():
                pass
        except BlockingIOError as error:
            self._pause(error)
        except OSError as error:
            reason = error.strerror or error
            raise StorageError(
                f"{folder}: cannot keep clips there ({reason}); name a folder on a local disk"
            ) from None

    def get(self, address: str) -> tuple[str, bytes] | None:
        """Returns the version and the content of an entry; None if there is none."""
        path = self._path(address)
        try:
            entry = _read_entry(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._pause(error)
            return None
        with contextlib.suppress(OSError):  # another process may have needed the room meanwhile
            if entry is None:  # the machine lost power, or the disk is damaged
                path.unlink()
            else:
                os.utime(path)
        return entry

    def put(self, address: str, version: str, content: bytes) -> None:
        """Keeps a content if there is room, in the place of that of another version."""
        if time.monotonic() < self._paused_until:
            return
        values = {"version": version, "bytes": len(content), "crc32": zlib.crc32(content)}
        header = json.dumps(values).encode() + b"\n"
        path = self._path(address)
        temporary = path.with_name(f"{uuid.uuid4().hex}.incomplete")
        try:
            if self._reserve(path, temporary, len(header) + len(content)):
                with temporary.open("r+b") as file:
                    file.writelines([header, content])
                temporary.replace(path)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            self._pause(error)

    def _path(self, address: str) -> pathlib.Path:
        name = hashlib.sha256(address.encode()).hexdigest()
        return self.folder / name[:2] / name

    def _reserve(self, path: pathlib.Path, temporary: pathlib.Path, size: int) -> bool:
        """Makes a file of the size of an entry, if there is room for it; returns whether there is.

        Args:
            path: of the entry; what was there is removed.
            temporary: the file to make.
            size: in bytes.
        """
        needed = _disk_bytes(size)
        if needed > self.max_bytes:
            return False
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if shutil.disk_usage(self.folder).free < needed + _MIN_FREE_BYTES:
            raise OSError(errno.ENOSPC, f"the disk has less than {_MIN_FREE_BYTES >> 30} GiB free")
        with self._locked() as count:
            with contextlib.suppress(FileNotFoundError):
                replaced = path.stat().st_size
                path.unlink()
                count.bytes = max(count.bytes - _disk_bytes(replaced), 0)
            if count.bytes + needed > self.max_bytes:
                count.bytes, count.time = self._make_room(needed), time.time()
            if count.bytes + needed > self.max_bytes:
                self._paused_until = time.monotonic() + _PAUSE_S
                return False
            count.bytes += needed
            count.save()  # before there is a file, since this process may be killed
            with temporary.open("xb") as file:
                file.truncate(size)
            return True

    def _make_room(self, needed: int) -> int:
        """Removes entries that were last used before this object was made.

        Returns:
            How many bytes all others take.
        """
        files = list(_scan(self.folder))
        used = sum(file.bytes for file in files)
        allowed = min(self.max_bytes * (1 - _FREED_FRACTION), self.max_bytes - needed)
        for file in sorted(files):
            if used <= allowed or file.time >= self._opened:
                break
            if file.is_being_written:
                continue
            with contextlib.suppress(FileNotFoundError):
                os.unlink(file.path)
            used -= file.bytes
        return used

    @contextlib.contextmanager
    def _locked(self) -> Iterator["_Count"]:
        """Locks the folder and yields how many bytes it holds; what that is at the end is saved.

        Raises:
            OSError: the folder cannot be used; a BlockingIOError, another process has it for long.
        """
        file = os.open(self.folder / _USED, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            _lock(file)
            now = time.time()
            match = re.fullmatch(rb"(\d{20}) (\d{20})\n", os.read(file, 100))
            count = _Count(file, *map(int, match.groups()) if match else (0, 0))
            # What was counted is wrong where files were removed by hand, or the power was lost.
            if not now - _COUNTED_EVERY_S < count.time <= now:
                count.bytes, count.time = _count_bytes(self.folder), now
            yield count
            count.save()
        finally:
            os.close(file)  # releases the lock

    def _pause(self, error: OSError) -> None:
        self._paused_until = time.monotonic() + _PAUSE_S
        if self.folder not in _warned_of:
            _warned_of.add(self.folder)
            reason = error.strerror or error
            logger.warning("%s: no more clips are kept on this disk: %s", self.folder, reason)


class _Count:
    """How many bytes a folder's files take, and when they were counted, in seconds since 1970.

    Args:
        file: where that is kept.
        count: of bytes.
        time: of the count.
    """

    def __init__(self, file: int, count: int, time: float):
        self._file, self.bytes, self.time = file, count, time

    def save(self) -> None:
        # Always of one length: a writer that is killed leaves the old numbers or the new.
        os.pwrite(self._file, b"%020d %020d\n" % (self.bytes, self.time), 0)


class _File(NamedTuple):
    time: float  # of its last use, in seconds since 1970
    path: str
    bytes: int

    @property
    def is_being_written(self) -> bool:
        return self.path.endswith(".incomplete")


def _scan(folder: pathlib.Path) -> Iterator[_File]:
    """Yields the entries of a folder, and those that are being written."""
    for part in folder.glob("[0-9a-f][0-9a-f]"):
        with os.scandir(part) as files:
            for file in files:
                if _NAME.fullmatch(file.name) is None:
                    continue
                with contextlib.suppress(FileNotFoundError):
                    status = file.stat()
                    yield _File(status.st_mtime, file.path, _disk_bytes(status.st_size))


def _count_bytes(folder: pathlib.Path) -> int:
    """Returns how many bytes the entries take; removes what killed processes have left."""
    used = 0
    for file in _scan(folder):
        if file.is_being_written and file.time < time.time() - _MAX_WRITE_S:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(file.path)
        else:
            used += file.bytes
    return used


def _disk_bytes(size: int) -> int:
    """Returns what a file of a size takes on a disk."""
    return -(-size // _DISK_BLOCK_BYTES) * _DISK_BLOCK_BYTES


def _lock(file: int) -> None:
    """Locks an open file until it is closed.

    Raises:
        OSError: the file system has no locks; a BlockingIOError, another process has it for long.
    """
    if fcntl is None:
        raise OSError(errno.ENOTSUP, "this system has no file locks")
    deadline = time.monotonic() + _LOCK_TIMEOUT_S
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise BlockingIOError(errno.EAGAIN, "another process has locked it") from None
            time.sleep(0.002)


def _read_entry(path: pathlib.Path) -> tuple[str, bytes] | None:
    """Returns version and content of an entry; None if it is not as it was written."""
    with path.open("rb") as file:
        header, content = file.readline(_MAX_HEADER_BYTES), file.read()
    try:
        values = json.loads(header)
        expected = values["bytes"], values["crc32"]
    except (ValueError, KeyError, TypeError):
        return None
    return (values["version"], content) if expected == (len(content), zlib.crc32(content)) else None
