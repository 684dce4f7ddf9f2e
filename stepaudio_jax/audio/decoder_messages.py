"""Keeps a decoder's notes about good files off the terminal.

libmpg123 prints them to C's stderr, and libsndfile gives no way to silence it. Skip this module
unless such messages appear.
"""

import contextlib
import ctypes
import functools
import os
import platform
import re
import sys
import threading
from collections.abc import Iterator

_MPG123_MESSAGE = re.compile(
    rb"^(\[src/libmpg123/[^\n]*|Warning: Xing stream size off [^\n]*"
    rb"|Note: (Illegal Audio-MPEG-Header|Trying to resync|Skipped|Hit end of)[^\n]*)(\n|$)",
    re.MULTILINE,
)
_STDERR = 2


@contextlib.contextmanager
def suppress_decoder_messages() -> Iterator[None]:
    """Drops libmpg123's lines from what is written to C's `stderr` within, and forwards the rest.

    Any number of threads may be inside at once. It needs glibc and does nothing elsewhere.
    """
    stream = _stream()
    if stream is None:
        yield
        return
    stream.enter()
    try:
        yield
    finally:
        stream.leave()


@functools.cache
def _stream() -> "_MemoryStream | None":
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return None
    return _MemoryStream()


class _MemoryStream:
    """Puts a stream in memory in the place of C's `stderr` while any thread is inside."""

    def __init__(self) -> None:
        library = ctypes.CDLL(None, use_errno=True)
        library.fdopen.restype = ctypes.c_void_p
        library.fdopen.argtypes = [ctypes.c_int, ctypes.c_char_p]
        library.fflush.argtypes = [ctypes.c_void_p]
        self._flush = library.fflush
        self._variable = ctypes.c_void_p.in_dll(library, "stderr")
        self._original = self._variable.value
        self._descriptor = os.memfd_create("stepaudio-stderr")
        # Never closed: another thread may be about to write.
        self._stream = library.fdopen(self._descriptor, b"a")
        if not self._stream:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        self._lock = threading.Lock()
        self._active = 0
        self._bytes_forwarded = 0  # bytes read so far, libmpg123's included

    def enter(self) -> None:
        with self._lock:
            self._active += 1
            self._variable.value = self._stream

    def leave(self) -> None:
        with self._lock:
            self._active -= 1
            if not self._active:
                self._variable.value = self._original
            self._flush(self._stream)
            text = os.pread(
                self._descriptor,
                os.fstat(self._descriptor).st_size - self._bytes_forwarded,
                self._bytes_forwarded,
            )
            self._bytes_forwarded += len(text)
            if not self._active and self._bytes_forwarded:
                os.ftruncate(self._descriptor, 0)
                self._bytes_forwarded = 0
            if kept := _MPG123_MESSAGE.sub(b"", text):
                os.write(_STDERR, kept)
