"""The bytes of a sound file: a small one in memory, a large one through a window."""

import contextlib
import io
import os
import stat
from collections.abc import Iterator
from typing import BinaryIO

from stepaudio_jax.errors import AudioError, StorageError
from stepaudio_jax.storage import PathLike, format_path, open_read, recognize_file

# Files up to this size are read in one piece: a clip of 2 minutes at 16 kHz and 16 bits.
MAX_BYTES_IN_MEMORY = 1 << 22
_WINDOW_BYTES = 1 << 18
_HEADER_WINDOW_BYTES = 1 << 14
COPY_AGAIN_HINT = "get the whole file again, or remove it"


class FileBytes:
    """Gives the bytes of an open file by position, as a `bytes` object does, from a window of it.

    Args:
        file: open for reading, and seekable; its position is moved.
        size: its length in bytes.
        window_bytes: how many bytes are read at a time.
    """

    def __init__(self, file: BinaryIO, size: int, window_bytes: int):
        self._file = file
        self._size = size
        self._window_bytes = window_bytes
        self._start = 0
        self._window = b""

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, where: slice) -> bytes:
        """Returns the bytes of a slice without a step; fewer where the file ends before it does."""
        start, stop, _ = where.indices(self._size)
        if stop <= start:
            return b""
        self._load(start, stop - start)
        return self._window[start - self._start : stop - self._start]

    def find(self, pattern: bytes, start: int = 0) -> int:
        """Returns the position of the first occurrence at or after `start`, or -1."""
        while start + len(pattern) <= self._size:
            self._load(start, len(pattern))
            offset = self._window.find(pattern, start - self._start)
            if offset >= 0:
                return self._start + offset
            # The pattern may begin at the end of this window.
            start = self._start + len(self._window) - len(pattern) + 1
        return -1

    def _load(self, start: int, count: int) -> None:
        """Moves the window so that it holds `count` bytes from `start` on."""
        offset = start - self._start
        if offset < 0 or offset + count > len(self._window):
            self._file.seek(start)
            self._window = self._file.read(max(count, self._window_bytes))
            self._start = start


Content = bytes | FileBytes


class InputFile:
    """Holds a sound file that is open for reading.

    Attributes:
        name: of the file in error messages.
        content: its bytes by position.
        size: their number, not 0.
    """

    def __init__(self, name: str, content: Content, file: BinaryIO | None):
        self.name = name
        self.content = content
        self.size = len(content)
        self._file = file

    def stream(self) -> BinaryIO:
        """Returns a seekable file of the content, at its beginning; `content` may move it."""
        if self._file is None:
            assert isinstance(self.content, bytes)
            return io.BytesIO(self.content)
        self._file.seek(0)
        return self._file

    def error(self, reason: str) -> AudioError:
        """Returns the error that names this file and a reason."""
        return AudioError(self.name, reason)


@contextlib.contextmanager
def open_input(source: PathLike | bytes, *, in_memory: bool = True) -> Iterator[InputFile]:
    """Opens a sound file of a path, or of its content.

    Args:
        source: the path, or the content.
        in_memory: whether to read a small file in one piece; without it only what is asked for.

    Raises:
        AudioError: it is missing, a folder, no regular file, empty, or cannot be read.
        StorageError: its bucket cannot be used.
    """
    if isinstance(source, bytes):
        yield _not_empty(InputFile("<bytes>", source, None))
        return
    path = os.fspath(source)
    name = format_path(path)
    with _open(source, path) as file:
        try:
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            content = file.read() if in_memory and size <= MAX_BYTES_IN_MEMORY else None
        except StorageError:  # not of this clip alone: it must not be skipped as bad sound
            raise
        except OSError as error:
            raise AudioError(name, f"cannot be read ({error.strerror or error})") from None
        if content is not None:
            yield _not_empty(InputFile(name, content, None))
        else:
            window = _WINDOW_BYTES if in_memory else _HEADER_WINDOW_BYTES
            yield _not_empty(InputFile(name, FileBytes(file, size, window), file))


def _not_empty(file: InputFile) -> InputFile:
    if not file.size:
        raise file.error(f"is empty (0 bytes); {COPY_AGAIN_HINT}")
    return file


def _open(source: PathLike, path: str) -> BinaryIO:
    """Opens a regular file, or raises an AudioError that says why it cannot be opened."""
    try:
        if "://" in path:  # of a bucket, which holds no folders and no other kinds of files
            return open_read(source)
        mode = os.stat(path).st_mode
        if stat.S_ISREG(mode):
            return open_read(path)
    except FileNotFoundError:
        finding = recognize_file(path, "sound")  # it may be a broken link
        raise AudioError(
            format_path(path), str(finding or "does not exist; correct the path")
        ) from None
    except StorageError:  # not of this clip alone: it must not be skipped as bad sound
        raise
    except OSError as error:
        raise AudioError(format_path(path), f"cannot be read ({error.strerror or error})") from None
    except ValueError as error:
        raise AudioError(
            format_path(path), f"is not a path that can exist ({error}); correct it"
        ) from None
    reason = (
        "is a folder; name a file in it"
        if stat.S_ISDIR(mode)
        else "is not a regular file; name a sound file"
    )
    raise AudioError(format_path(path), reason)
