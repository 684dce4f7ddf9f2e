"""Text files, plain or compressed with gzip, whose bytes can be read at any place."""

import contextlib
import gzip
import io
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from typing import Any

from stepaudio_jax.errors import DataError
from stepaudio_jax.storage import (
    COPY_AGAIN,
    file_size,
    format_path,
    open_read,
    read_range,
    recognize_file,
)

GZIP_SIGNATURE = b"\x1f\x8b"
_BLOCK_BYTES = 1 << 20
_GZIP_FORMAT = 31  # of zlib: gzip's header, with any size of window


class TextFile:
    """Reads any part of a text file; one in gzip is decompressed once, when it is opened.

    The decompressed text lies in a temporary file without a name, not in memory, and is gone when
    the object is.

    Args:
        path: of the file.
        kind: what it should be, with its article, for error messages.

    Attributes:
        path: of the file.
        size: of the decompressed text, in bytes.

    Raises:
        DataError: it cannot be read, or its compressed content is cut off or damaged.
    """

    def __init__(self, path: str, kind: str):
        self.path = path
        self._spool: Spool | None = None
        with reading(path, kind):
            if read_range(path, 0, len(GZIP_SIGNATURE)) == GZIP_SIGNATURE:
                self._spool = _decompress(path)
                self.size = self._spool.size
            else:
                self.size = file_size(path)

    def open(self) -> io.BufferedReader:
        """Opens the text for reading its bytes in order."""
        return open_read(self.path) if self._spool is None else self._spool.open()

    def read(self, start: int, stop: int) -> bytes:
        """Returns the bytes `start` to `stop` of the text; safe from any thread."""
        if self._spool is None:
            return read_range(self.path, start, stop)
        return self._spool.read(start, stop)


def read_head(path: str, num_bytes: int) -> bytes:
    """Returns the beginning of a file, decompressed as far as that can be read.

    Raises:
        OSError: there is no such file, or it cannot be read.
    """
    head = read_range(path, 0, num_bytes)
    if not head.startswith(GZIP_SIGNATURE):
        return head
    try:
        return zlib.decompressobj(wbits=_GZIP_FORMAT).decompress(head, num_bytes)
    except zlib.error:  # the container that reads all of it says what is wrong
        return b""


class Spool:
    """Keeps bytes in a temporary file without a name, which is gone when the object is.

    Attributes:
        size: how many bytes have been written.
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(buffering=_BLOCK_BYTES)  # noqa: SIM115  kept open
        self.size = 0

    def write(self, content: bytes) -> None:
        """Appends bytes; `flush` must follow before they are read."""
        with _writing():
            self._file.write(content)
        self.size += len(content)

    def flush(self) -> None:
        """Makes what was written readable."""
        with _writing():
            self._file.flush()

    def read(self, start: int, stop: int) -> bytes:
        """Returns the bytes `start` to `stop`; safe from any thread."""
        return os.pread(self._file.fileno(), stop - start, start)

    def open(self) -> io.BufferedReader:
        """Opens the content for reading its bytes in order."""
        return io.BufferedReader(_SpoolReader(self), _BLOCK_BYTES)


@contextlib.contextmanager
def reading(path: str, kind: str) -> Iterator[None]:
    """Turns what goes wrong with a file into a DataError that names it.

    Args:
        path: of the file.
        kind: what it should be, with its article.
    """
    shown = format_path(path)
    try:
        yield
    except gzip.BadGzipFile as error:
        raise DataError(f"{shown}: is damaged ({error}); {COPY_AGAIN}") from None
    except (EOFError, zlib.error):
        raise DataError(
            f"{shown}: is cut off or damaged: its compressed content has no end; {COPY_AGAIN}"
        ) from None
    except OSError as error:
        finding = recognize_file(path, "sound") if isinstance(error, FileNotFoundError) else None
        reason = finding or f"{error.strerror or error}; give the path of {kind}"
        raise DataError(f"{shown}: cannot be read: {reason}") from None


@contextlib.contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{tempfile.gettempdir()}: text cannot be written to this folder of temporary files:"
            f" {error.strerror}; make room, or name another folder in TMPDIR"
        ) from None


class _SpoolReader(io.RawIOBase):
    """Reads a spool in order; several readers do not disturb each other."""

    def __init__(self, spool: Spool):
        self._spool = spool
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        origins = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._spool.size}
        self._position = origins[whence] + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        content = self._spool.read(self._position, self._position + len(buffer))
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)


def _decompress(path: str) -> Spool:
    spool = Spool()
    with open_read(path) as file, gzip.open(file) as text:
        shutil.copyfileobj(text, spool, _BLOCK_BYTES)
    spool.flush()
    return spool
