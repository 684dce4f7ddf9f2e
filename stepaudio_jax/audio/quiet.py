"""Keeps what libmpg123 prints about good files out of sight: libsndfile gives no way to ask it to be quiet.

It writes to C's `stderr`, for example of files that LAME itself made ("error: part2_3_length (992)
too large for available bit count"). While a file is decoded, that variable names a stream in memory
instead. Python's `sys.stderr` and what writes to the descriptor itself go on as ever; what other
native code writes to C's `stderr` meanwhile is passed on when the decoding ends.
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

_OF_MPG123 = re.compile(
    rb"^(\[src/libmpg123/[^\n]*|Warning: Xing stream size off [^\n]*"
    rb"|Note: (Illegal Audio-MPEG-Header|Trying to resync|Skipped|Hit end of)[^\n]*)(\n|$)",
    re.MULTILINE,
)
_STDERR = 2


@contextlib.contextmanager
def suppress_decoder_messages() -> Iterator[None]:
    """Passes on what is written to C's `stderr` within, but for libmpg123's lines; any number of threads may be inside.

    Only where C's library is glibc: elsewhere it does nothing.
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
    """A stream of C's in memory, which takes the place of `stderr` while any thread is inside."""

    def __init__(self) -> None:
        library = ctypes.CDLL(None, use_errno=True)
        library.fdopen.restype = ctypes.c_void_p
        library.fdopen.argtypes = [ctypes.c_int, ctypes.c_char_p]
        library.fflush.argtypes = [ctypes.c_void_p]
        self._flush = library.fflush
        self._variable = ctypes.c_void_p.in_dll(library, "stderr")
        self._original = self._variable.value
        self._descriptor = os.memfd_create("stepaudio-stderr")
        self._stream = library.fdopen(
            self._descriptor, b"a"
        )  # never closed: another thread may be about to write
        if not self._stream:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        self._lock = threading.Lock()
        self._active = 0
        self._bytes_forwarded = 0  # bytes looked at so far

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
            if kept := _OF_MPG123.sub(b"", text):
                os.write(_STDERR, kept)
