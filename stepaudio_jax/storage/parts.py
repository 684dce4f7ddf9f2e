"""Files that grow, in buckets: each append is an object of its own, a numbered part.

The parts of `metrics.jsonl` are `metrics.jsonl.parts/00000007-00000007`, and so on: the numbers of
the first and the last append that a part holds. Whenever 32 parts of the same length are the last
ones, they are merged into one, so that a run of 10,000 steps leaves a few dozen objects. A merged
part is written before those that it replaces are removed; a part whose numbers another one has too
is not read, so a reader, or a run that resumes after a kill in between, finds every line once.

A part is written only where none of its name exists. Of two writers that both take the file for
theirs, the second one to write a number is refused: no line is lost in silence.

Files are read the same way wherever they lie: PATH itself if it is there (a run folder that was
copied into a bucket has it), and then its parts (also of a run folder copied out of one).
"""

import concurrent.futures
import errno
import os
import re
import threading

from stepaudio_jax.errors import LockHeldError
from stepaudio_jax.storage import buckets
from stepaudio_jax.storage.paths import Path, PathLike, to_path

_MERGED_PARTS = 32
_READ_THREADS = 16
_READ_ATTEMPTS = 5  # to read parts that are merged meanwhile

_Part = tuple[int, int]  # the numbers of its first and last append


def parts_folder(path: PathLike) -> Path:
    """Returns the folder of a file's parts."""
    return to_path(f"{os.fspath(path)}.parts")


def appended_exists(path: PathLike) -> bool:
    """Returns whether a file that is appended to exists, whole or in parts."""
    return to_path(path).exists() or bool(_list_parts(path))


def read_appended(path: PathLike) -> bytes:
    """Returns the content of a file that is appended to, whole or in parts.

    Raises:
        FileNotFoundError: there is none.
    """
    for attempts_left in reversed(range(_READ_ATTEMPTS)):
        parts = _list_parts(path)
        begins = to_path(path)
        if not parts:
            return begins.read_bytes()
        try:
            content = _read_parts(parts_folder(path), parts)
        except FileNotFoundError:  # merged since they were listed
            if not attempts_left:
                raise
            continue
        # Number 0 is of a part that replaces what was there before.
        return (begins.read_bytes() if parts[0][0] and begins.is_file() else b"") + content
    raise AssertionError("the last attempt returns or raises")


def remove_appended(path: PathLike) -> None:
    """Removes a file that is appended to, and its parts."""
    to_path(path).unlink(missing_ok=True)
    remove_parts(path)


def remove_parts(path: PathLike) -> None:
    """Removes the parts of a file, and not the file."""
    folder = parts_folder(path)
    parts = _list_parts(path, covered=True)
    for part in parts:
        (folder / _name(part)).unlink(missing_ok=True)
    if parts:
        folder.rmdir()


class PartsWriter:
    """Appends to a file in a bucket.

    Args:
        path: of the file, in a bucket.
        shared: whether others may append too. Their parts are interleaved, and none are merged;
            otherwise this is the only writer, and another one is an error.
    """

    def __init__(self, path: PathLike, *, shared: bool = False):
        self._path, self._folder, self._is_shared = os.fspath(path), parts_folder(path), shared
        self._mutex = threading.Lock()
        self._parts = _list_parts(path)

    def append(self, content: bytes) -> None:
        """Appends bytes, which are in the bucket when this returns.

        Raises:
            LockHeldError: another job is writing the file too.
        """
        with self._mutex:
            while True:
                number = self._next_number
                if self._try_write((number, number), content):
                    break
                if not self._is_shared:
                    raise self._other_writer()
                self._parts = _list_parts(self._path)
            if not self._is_shared:
                self._merge()

    def replace(self, content: bytes) -> None:
        """Replaces all of the file."""
        with self._mutex:
            self._write((0, self._next_number), content)
            kept = self._parts[-1]
            for part in _list_parts(self._path, covered=True):
                if part != kept:
                    self._remove(part)
            self._parts = [kept]
            to_path(self._path).unlink(missing_ok=True)

    @property
    def _next_number(self) -> int:
        return self._parts[-1][1] + 1 if self._parts else 1

    def _write(self, part: _Part, content: bytes) -> None:
        if not self._try_write(part, content):
            raise self._other_writer()

    def _try_write(self, part: _Part, content: bytes) -> bool:
        if buckets.write_if(str(self._folder / _name(part)), content, None) is None:
            return False
        self._parts.append(part)
        return True

    def _other_writer(self) -> LockHeldError:
        return LockHeldError(
            f"{self._path}: another job is writing it; stop one of the two, and start the same "
            "command again"
        )

    def _remove(self, part: _Part) -> None:
        (self._folder / _name(part)).unlink(missing_ok=True)

    def _merge(self) -> None:
        """Merges the last parts while 32 of them have the same length."""
        while True:
            tail = self._parts[-_MERGED_PARTS:]
            lengths = {last - first for first, last in tail}
            if len(tail) < _MERGED_PARTS or len(lengths) > 1:
                return
            content = _read_parts(self._folder, tail)
            del self._parts[-_MERGED_PARTS:]
            self._write((tail[0][0], tail[-1][1]), content)
            for part in tail:
                self._remove(part)


def _list_parts(path: PathLike, *, covered: bool = False) -> list[_Part]:
    """Returns the parts of a file in order.

    Args:
        path: of the file.
        covered: whether to return those too whose numbers another part has.
    """
    try:
        names = [entry.name for entry in parts_folder(path).iterdir()]
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR):
            raise
        return []
    matches = (re.fullmatch(r"(\d{8})-(\d{8})", name) for name in names)
    parts = [(int(match[1]), int(match[2])) for match in matches if match]
    # Of those that begin with the same number the longest comes first.
    parts.sort(key=lambda part: (part[0], -part[1]))
    if covered:
        return parts
    kept: list[_Part] = []
    for part in parts:
        if not kept or part[1] > kept[-1][1]:
            kept.append(part)
    return kept


def _read_parts(folder: Path, parts: list[_Part]) -> bytes:
    with concurrent.futures.ThreadPoolExecutor(_READ_THREADS) as pool:
        return b"".join(pool.map(lambda part: (folder / _name(part)).read_bytes(), parts))


def _name(part: _Part) -> str:
    return f"{part[0]:08d}-{part[1]:08d}"
