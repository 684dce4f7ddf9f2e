"""Append-only files of JSON lines that survive a kill: journals, caches and logs of runs.

A process that is killed while it appends leaves a last line without its line end. Such a line is
never read, and is cut off before the next one is appended. What a damaged line in the middle means
is the reader's decision: its value is None.

In a bucket such a file is a series of numbered objects (see `parts`).
"""

import io
import json
import logging
import os
import threading
from collections.abc import Iterable, Mapping
from typing import Any, BinaryIO, NamedTuple, Protocol

from stepaudio_jax.errors import StepAudioError
from stepaudio_jax.storage.bucket_locks import lock_object
from stepaudio_jax.storage.files import PathLike, atomic_text_writer, open_append, sync_path
from stepaudio_jax.storage.json_files import parse_json
from stepaudio_jax.storage.locks import lock_file
from stepaudio_jax.storage.parts import (
    PartsWriter,
    appended_exists,
    read_appended,
    remove_appended,
    remove_parts,
)
from stepaudio_jax.storage.uris import is_bucket_path

# In a bucket lines are gathered this long before they are sent, since each sending is an object.
_SEND_EVERY_SECONDS = 2.0
_SEND_BYTES = 1 << 20

logger = logging.getLogger(__name__)


class JsonLine(NamedTuple):
    """Holds a complete line of a file: its number, from 1, and its bytes."""

    number: int
    content: bytes

    @property
    def value(self) -> Any:
        """Returns the line's value; None where it is not JSON."""
        return parse_json(self.content)


class JsonLinesFile:
    """Reads a file of JSON lines once, when it is opened, and then appends to it.

    Args:
        path: of the file; it is created where it does not exist. Its folder must exist.
        lock: whether to keep other jobs from opening the file until it is closed. While a file is
            locked, no other handle of this process may open it (see `LockedFile`).

    Attributes:
        lines: the complete lines that the file had.
        unfinished: the last line without a line end, which is cut off at the first `append`.

    Raises:
        LockHeldError: the file is to be locked, and another job has it.
    """

    def __init__(self, path: PathLike, *, lock: bool = False):
        kind = _BucketAppender if is_bucket_path(path) else _LocalAppender
        self._appender: _Appender = kind(path, lock)
        self.lines, self.unfinished = _read_lines(self._appender.open())
        self._end = sum(len(line.content) for line in self.lines)
        self._is_cut = False

    def append(self, value: Mapping[str, Any]) -> None:
        """Appends a line.

        It is flushed when this returns; in a bucket it is sent within two seconds, so that those
        of the last two are lost if the process is killed.
        """
        if not self._is_cut:
            self._appender.cut(self._end)
            self._is_cut = True
        self._appender.append(format_json_line(value).encode())

    def flush(self) -> None:
        """Sends the lines that are gathered for a bucket."""
        self._appender.flush()

    def sync(self) -> None:
        """Waits until the lines are on the disk, or in the bucket: no power failure takes them."""
        self._appender.sync()

    def close(self) -> None:
        """Closes the file, and releases its lock; calling it again does nothing."""
        self._appender.close()

    def remove(self) -> None:
        """Removes the file, and then releases its lock."""
        self._appender.remove()
        self._appender.close()


class _Appender(Protocol):
    """Appends to a `JsonLinesFile`, wherever it lies."""

    def __init__(self, path: PathLike, lock: bool): ...

    def open(self) -> BinaryIO:
        """Opens the file, and returns what it holds."""

    def cut(self, size: int) -> None:
        """Cuts off what is after this size, once, before the first `append`."""

    def append(self, content: bytes) -> None: ...

    def flush(self) -> None: ...

    def sync(self) -> None: ...

    def remove(self) -> None: ...

    def close(self) -> None: ...


class _LocalAppender:
    def __init__(self, path: PathLike, lock: bool):
        self._path = path
        self._lock = lock_file(path) if lock else None
        self._file: BinaryIO = open_append(path) if self._lock is None else self._lock.file
        self._is_synced = False

    def open(self) -> BinaryIO:
        self._file.seek(0)
        return self._file

    def cut(self, size: int) -> None:
        self._file.seek(size)
        self._file.truncate()

    def append(self, content: bytes) -> None:
        self._file.write(content)
        self._file.flush()

    def flush(self) -> None:
        """Does nothing: each line is flushed."""

    def sync(self) -> None:
        os.fsync(self._file.fileno())
        if not self._is_synced:  # a new file is there only once its folder is on the disk too
            sync_path(os.path.dirname(os.path.abspath(self._path)))
            self._is_synced = True

    def remove(self) -> None:
        os.unlink(self._path)

    def close(self) -> None:
        if self._lock is None:
            self._file.close()
        else:
            self._lock.close()


class _BucketAppender:
    """Gathers lines and sends them as parts, from a thread so that the caller need not wait."""

    def __init__(self, path: PathLike, lock: bool):
        self._path = path
        self._lock = lock_object(f"{os.fspath(path)}.lock") if lock else None
        self._content = b""
        self._gathered: list[bytes] = []
        self._num_gathered = 0  # bytes of these
        self._problem: StepAudioError | OSError | None = None  # of the thread
        self._was_raised = False
        self._mutex, self._sending = threading.Lock(), threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def open(self) -> BinaryIO:
        self._content = read_appended(self._path) if appended_exists(self._path) else b""
        self._parts = PartsWriter(self._path, shared=self._lock is None)
        return io.BytesIO(self._content)

    def cut(self, size: int) -> None:
        if size < len(self._content):
            self._parts.replace(self._content[:size])
        self._content = b""
        self._thread = threading.Thread(target=self._send_until_stopped, daemon=True)
        self._thread.start()

    def append(self, content: bytes) -> None:
        self._raise_problem()
        with self._mutex:
            self._gathered.append(content)
            self._num_gathered += len(content)
            is_much = self._num_gathered >= _SEND_BYTES
        if is_much:
            self.flush()

    def flush(self) -> None:
        with self._sending:
            with self._mutex:
                content = b"".join(self._gathered)
                self._gathered.clear()
                self._num_gathered = 0
            if content:
                self._parts.append(content)

    def sync(self) -> None:
        self._raise_problem()
        self.flush()

    def remove(self) -> None:
        self._end_thread()
        self._gathered.clear()
        remove_appended(self._path)

    def close(self) -> None:
        try:
            self._end_thread()
            if not self._was_raised:
                self._raise_problem()
                self.flush()
        finally:
            if self._lock is not None:
                self._lock.close()

    def _end_thread(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _raise_problem(self) -> None:
        if self._problem is not None:
            self._was_raised = True
            raise self._problem

    def _send_until_stopped(self) -> None:
        while not self._stop.wait(_SEND_EVERY_SECONDS):
            try:
                self.flush()
            except (StepAudioError, OSError) as error:  # raised where the next line is appended
                self._problem = error
                return


class StepLog:
    """Logs JSON lines of a run step by step, each with its stage and step.

    A run that resumes from a step drops what was logged after it, so that the lines stay in order.
    The file is opened for each write, since mounted buckets store a file when it is closed; in a
    bucket each write is there when it returns.

    Args:
        path: of the file; its folder must exist.
        stage: the stage that writes.
        resume_step: lines of the stage after this step are dropped.
    """

    def __init__(self, path: PathLike, stage: str, resume_step: int):
        self._path, self._stage = path, stage
        self._parts = PartsWriter(path) if is_bucket_path(path) else None
        if appended_exists(path):
            self.drop_after(resume_step)

    def append(self, step: int, *lines: Mapping[str, Any]) -> None:
        """Appends lines of a step.

        Raises:
            LockHeldError: another job is writing to the same bucket.
        """
        keys = {"stage": self._stage, "step": step}
        content = "".join(format_json_line({**keys, **line}) for line in lines).encode()
        if self._parts is not None:
            if content:
                self._parts.append(content)
            return
        with open_append(self._path) as file:
            file.write(content)

    def find(self, step: int, key: str = "step") -> dict[str, Any] | None:
        """Returns the first line of a step that has a key; None where there is none."""
        if appended_exists(self._path):
            for line in read_step_lines(self._path):
                if (line["stage"], line["step"]) == (self._stage, step) and key in line:
                    return line
        return None

    def drop_after(self, step: int) -> None:
        """Rewrites the file without the lines of the stage after a step."""
        kept = [
            line
            for line in read_step_lines(self._path)
            if line["stage"] != self._stage or line["step"] <= step
        ]
        if self._parts is not None:
            self._parts.replace("".join(map(format_json_line, kept)).encode())
        else:
            write_json_lines(self._path, kept)
            # The parts of a run folder that was copied out of a bucket are in the file now.
            remove_parts(self._path)


def read_step_lines(path: PathLike) -> list[dict[str, Any]]:
    """Reads the lines of a `StepLog`.

    A last line without its line end is kept if it is JSON. Damaged lines are left out, with a
    warning.
    """
    lines, unfinished = _read_lines(io.BytesIO(read_appended(path)))
    if parse_json(unfinished) is not None:
        lines.append(JsonLine(len(lines) + 1, unfinished))
    values = []
    for line in lines:
        value = line.value
        if (
            isinstance(value, dict)
            and isinstance(value.get("stage"), str)
            and type(value.get("step")) is int
        ):
            values.append(value)
        else:
            logger.warning("%s:%d is damaged, and left out", path, line.number)
    return values


def read_json_lines(path: PathLike) -> list[JsonLine]:
    """Reads the complete lines of a file of JSON lines, in a bucket also of its parts."""
    return _read_lines(io.BytesIO(read_appended(path)))[0]


def write_json_lines(path: PathLike, values: Iterable[Mapping[str, Any]]) -> None:
    """Writes a file of JSON lines, which appears whole or not at all."""
    with atomic_text_writer(path) as file:
        file.writelines(map(format_json_line, values))


def format_json_line(value: Mapping[str, Any]) -> str:
    """Returns a value as a line of JSON, with its line end."""
    line = json.dumps(value, ensure_ascii=False) + "\n"
    try:
        line.encode()
    except UnicodeEncodeError:  # half a surrogate pair, which can be written as an escape only
        line = json.dumps(value) + "\n"
    return line


def _read_lines(file: BinaryIO) -> tuple[list[JsonLine], bytes]:
    """Returns the complete lines from here to the end of a file, and the bytes after the last."""
    lines: list[JsonLine] = []
    for number, content in enumerate(file, 1):
        if not content.endswith(b"\n"):
            return lines, content
        lines.append(JsonLine(number, content))
    return lines, b""
