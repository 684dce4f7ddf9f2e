"""Append-only files of JSON lines that survive a kill: journals, caches and logs of runs.

A process that is killed while it appends leaves a last line without its line end. Such a line is
never read, and is cut off before the next one is appended. What a damaged line in the middle means
is the reader's decision: its value is None.
"""

import json
import logging
import os
from collections.abc import Iterable, Mapping
from typing import Any, BinaryIO, NamedTuple

from stepaudio_jax.storage.files import (
    PathLike,
    atomic_text_writer,
    open_append,
    open_read,
)
from stepaudio_jax.storage.json_files import parse_json
from stepaudio_jax.storage.locks import lock_file

logger = logging.getLogger(__name__)


class JsonLine(NamedTuple):
    """One complete line of a file: its number, from 1, and its bytes."""

    number: int
    content: bytes

    @property
    def value(self) -> Any:
        """Returns the line's value; None where it is not JSON."""
        return parse_json(self.content)


class JsonLinesFile:
    """A file of JSON lines that is read once, when it is opened, and then appended to.

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
        self._lock = lock_file(path) if lock else None
        self._file = open_append(path) if self._lock is None else self._lock.file
        self._file.seek(0)
        self.lines, self.unfinished = _read_lines(self._file)
        self._end = sum(len(line.content) for line in self.lines)
        self._is_at_end = False

    def append(self, value: Mapping[str, Any]) -> None:
        """Appends a line, which is flushed when this returns."""
        if not self._is_at_end:
            self._file.seek(self._end)
            self._file.truncate()
            self._is_at_end = True
        self._file.write(format_json_line(value).encode())
        self._file.flush()

    def close(self) -> None:
        """Closes the file, and releases its lock; calling it again does nothing."""
        if self._lock is None:
            self._file.close()
        else:
            self._lock.close()


class StepLog:
    """A file in which a run logs JSON lines step by step, each with its stage and step.

    A run that resumes from a step drops what was logged after it, so that the lines stay in order.
    The file is opened for each write, since mounted buckets store a file when it is closed.

    Args:
        path: of the file; its folder must exist.
        stage: the stage that writes.
        resume_step: lines of the stage after this step are dropped.
    """

    def __init__(self, path: PathLike, stage: str, resume_step: int):
        self._path, self._stage = path, stage
        if os.path.exists(path):
            self.drop_after(resume_step)

    def append(self, step: int, *lines: Mapping[str, Any]) -> None:
        """Appends lines of a step."""
        keys = {"stage": self._stage, "step": step}
        with open_append(self._path) as file:
            file.writelines(format_json_line({**keys, **line}).encode() for line in lines)

    def find(self, step: int, key: str = "step") -> dict[str, Any] | None:
        """Returns the first line of a step that has a key; None where there is none."""
        if os.path.exists(self._path):
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
        write_json_lines(self._path, kept)


def read_step_lines(path: PathLike) -> list[dict[str, Any]]:
    """Reads the lines of a `StepLog`.

    A last line without its line end is kept if it is JSON. Damaged lines are left out, with a
    warning.
    """
    with open_read(path) as file:
        lines, unfinished = _read_lines(file)
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
    """Reads the complete lines of a file of JSON lines."""
    with open_read(path) as file:
        return _read_lines(file)[0]


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
