"""Locks in buckets: an object that its holder renews, and that is taken only at a known version.

An object is created, renewed and taken over under the condition that its version (generation) is
still the one that was read, which the service decides. So of several processes that try, one gets
the lock. Nothing releases it when its holder is killed. Therefore:

* the holder writes the object anew every 10 seconds;
* who finds a lock watches its version for a minute. If it changes, another job is at work; if not,
  the holder is gone, and the lock is taken over. No clocks are compared.
* a holder on this machine whose process has ended is known to be gone at once.

A holder that could not renew the lock for a minute (a machine that slept, a network that was down)
may have lost it, and says so in the log. What it appends then is refused where the new holder has
appended too (see `parts`).
"""

import contextlib
import datetime
import json
import logging
import os
import pathlib
import socket
import threading
import time
import uuid
from collections.abc import Mapping
from typing import Any

from stepaudio_jax.errors import LockHeldError, StorageError
from stepaudio_jax.storage import buckets
from stepaudio_jax.storage.paths import BucketPath, PathLike

logger = logging.getLogger(__name__)

RENEW_SECONDS = 10.0
LEASE_SECONDS = 60.0
_POLL_SECONDS = 1.0
# Tokens of the locks that this process holds.
_held: set[str] = set()


class BucketLock:
    """Holds a lock until `close`; see `lock_object`.

    Attributes:
        path: of its object.
        is_lost: whether another process may have taken it over.
    """

    def __init__(self, path: str, token: str, version: str, content: dict[str, Any]):
        self.path, self.is_lost = path, False
        self._token, self._version, self._content = token, version, content
        self._mutex = threading.Lock()
        self._stop = threading.Event()
        self._renewed_at = time.monotonic()
        _held.add(token)
        self._thread = threading.Thread(target=self._renew_until_stopped, daemon=True)
        self._thread.start()

    def describe(self, holder: Mapping[str, Any]) -> None:
        """Writes who holds the lock, for messages."""
        with self._mutex:
            self._content |= holder
            self._renew()

    def close(self) -> None:
        """Releases the lock and removes its object; calling it again does nothing."""
        if self._stop.is_set():
            return
        self._stop.set()
        self._thread.join()
        _held.discard(self._token)
        with contextlib.suppress(FileNotFoundError):
            if not self.is_lost and _read(self.path)[1] == self._version:
                buckets.remove(self.path)

    remove = close

    def _renew_until_stopped(self) -> None:
        while not self._stop.wait(RENEW_SECONDS):
            with self._mutex:
                try:
                    self._renew()
                except StorageError as error:
                    logger.warning("%s: the lock could not be renewed: %s", self.path, error)
                if time.monotonic() - self._renewed_at > LEASE_SECONDS:
                    self.is_lost = True
            if self.is_lost:
                logger.error(
                    "%s: this process was not heard of for %d s, and another job may have taken "
                    "the lock: stop one of the two",
                    self.path,
                    LEASE_SECONDS,
                )
                return

    def _renew(self) -> None:
        self._content["beat"] += 1
        version = buckets.write_if(self.path, _encode(self._content), self._version)
        if version is None:
            self.is_lost = True
        else:
            self._version, self._renewed_at = version, time.monotonic()


def lock_object(path: PathLike) -> BucketLock:
    """Takes a lock in a bucket, after up to a minute where its holder is gone.

    Raises:
        LockHeldError: another process, or this one, holds it.
        StorageError: the bucket cannot be used.
    """
    uri = str(BucketPath(path))
    token = uuid.uuid4().hex
    content = {
        "process": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "machine": _machine(),
        "started": _start_time(os.getpid()),
        "token": token,
        "beat": 0,
    }
    expected: str | None = None
    while True:
        version = buckets.write_if(uri, _encode(content), expected)
        if version is not None:
            return BucketLock(uri, token, version, content)
        try:
            holder, expected = _read(uri)
        except FileNotFoundError:  # released meanwhile
            expected = None
            continue
        if holder.get("token") in _held:
            raise LockHeldError(f"{uri} is held by this process already", by_this_process=True)
        if not _is_gone(holder) and _changes(uri, expected, holder):
            raise LockHeldError(f"{uri} is held by another process")


def _changes(path: str, version: str, holder: Mapping[str, Any]) -> bool:
    """Waits whether a lock's holder renews it; returns False after a minute without that."""
    if holder.get("machine") == _machine() is not None:
        return True  # its process runs here
    logger.warning(
        "%s is the lock of process %s on %s: waiting up to %d s for a sign of it",
        path,
        holder.get("process"),
        holder.get("host"),
        LEASE_SECONDS,
    )
    deadline = time.monotonic() + LEASE_SECONDS
    while time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
        try:
            if _read(path)[1] != version:
                return True
        except FileNotFoundError:
            return False
    return False


def _read(path: str) -> tuple[dict[str, Any], str]:
    """Returns who holds a lock, and its version.

    Raises:
        FileNotFoundError: nobody does.
    """
    version = buckets.find_object(path).version
    try:
        holder = json.loads(buckets.read(path))
    except ValueError:
        holder = {}
    return holder if isinstance(holder, dict) else {}, version


def _encode(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content).encode() + b"\n"


def _is_gone(holder: Mapping[str, Any]) -> bool:
    """Returns whether a holder was a process of this machine that has ended."""
    machine, process = holder.get("machine"), holder.get("process")
    if machine is None or machine != _machine() or not isinstance(process, int):
        return False
    return _start_time(process) != holder.get("started")


def _machine() -> str | None:
    """Returns what names this boot of this machine, and this container; None where unknown."""
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def _start_time(process: int) -> str | None:
    """Returns when a process of this machine began, in clock ticks since boot; None: not there."""
    try:
        status = pathlib.Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return None
    fields = status.rpartition(")")[2].split()
    return None if fields[0] == "Z" else fields[19]
