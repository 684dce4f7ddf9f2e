"""Reads, writes and lists objects in buckets: `gs://BUCKET/KEY` and `s3://BUCKET/KEY`.

The packages gcsfs and s3fs talk to the services, find the credentials, and repeat what fails with a
status of 5xx or 429 or a broken connection, six times with growing pauses. They are imported when
the first path of their scheme is used. STORAGE_EMULATOR_HOST and AWS_ENDPOINT_URL lead them to
another server.

An object appears whole, when its last byte has arrived, and is replaced at once; listings show what
is there. A folder is what has objects under `FOLDER/`, so it need not be made, and an empty one
does not exist. Objects have no locks and cannot be appended to or renamed: `bucket_locks` and
`parts` are for that.

A missing object is a FileNotFoundError. Whatever else goes wrong is a StorageError.
"""

import contextlib
import dataclasses
import datetime
import errno
import fnmatch
import io
import os
import re
from collections.abc import Iterator
from typing import Any, cast

from stepaudio_jax.errors import StorageError
from stepaudio_jax.storage.bucket_clients import (
    check_bucket,
    client_of,
    not_found,
    storage_errors,
)
from stepaudio_jax.storage.uris import split

BUFFER_BYTES = 1 << 20  # that a reader asks for at once, where less is read at a time
_WRITE_BLOCK_BYTES = 1 << 25  # of an upload in blocks, a multiple of what both services ask for
_MAGIC = re.compile(r"[*?[]")
_MARK = "stepaudiojob"  # the name of the objects' attribute that `set_mark` writes


@dataclasses.dataclass(frozen=True)
class Entry:
    """An object or a folder of a bucket.

    Attributes:
        path: with its scheme.
        is_folder: whether it is one.
        size: in bytes; 0 for a folder.
        version: changes with the content; "" where the service says none.
        modified: in seconds since 1970; 0 where the service says none.
    """

    path: str
    is_folder: bool
    size: int = 0
    version: str = ""
    modified: float = 0.0


def read(path: str, start: int | None = None, stop: int | None = None) -> bytes:
    """Returns the bytes `start` to `stop` of an object, fewer where it ends before `stop`."""
    scheme, bucket, key = split(path)
    client = client_of(scheme)
    if start is not None and stop is not None and stop <= start:
        return b""
    with storage_errors(path):
        try:
            return client.fs.cat_file(f"{bucket}/{key}", start=start, end=stop)
        except client.errors as error:
            if start and _is_past_end(error):
                return b""
            raise


def find(path: str) -> Entry | None:
    """Returns what is at a path: an object, a folder, or None."""
    scheme, bucket, key = split(path)
    with storage_errors(path):
        try:
            return _entry(scheme, client_of(scheme).fs.info(f"{bucket}/{key}" if key else bucket))
        except FileNotFoundError:
            check_bucket(path)
            return None


def find_object(path: str) -> Entry:
    """Returns an object.

    Raises:
        FileNotFoundError: there is none.
        IsADirectoryError: there is a folder of that name.
    """
    scheme, bucket, key = split(path)
    with storage_errors(path):
        try:
            entry = _entry(scheme, client_of(scheme).object_info(bucket, key)) if key else None
        except FileNotFoundError:
            entry = find(path)
    if entry is None:
        raise not_found(path)
    if entry.is_folder:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    return entry


def is_still(entry: Entry) -> bool:
    """Returns whether what was read under an entry's version is of that version.

    A read of `gs://` names the version; after one of `s3://` it is asked for again.
    """
    return split(entry.path)[0] == "gs" or find_object(entry.path).version == entry.version


def list_folder(path: str) -> list[Entry]:
    """Returns what is directly in a folder, sorted by name; nothing where there is no folder."""
    scheme, bucket, key = split(path)
    prefix = f"{bucket}/{key}" if key else bucket
    with storage_errors(path):
        try:
            listed = client_of(scheme).fs.ls(prefix, detail=True)
        except FileNotFoundError:
            check_bucket(path)
            return []
    entries = {
        entry.path: entry
        for entry in (_entry(scheme, info) for info in listed)
        if entry.path.startswith(f"{scheme}://{prefix}/")
    }
    return [entries[name] for name in sorted(entries)]


def list_objects(path: str) -> list[Entry]:
    """Returns all objects in a folder and the folders in it, sorted by name."""
    scheme, bucket, key = split(path)
    prefix = f"{bucket}/{key}" if key else bucket
    with storage_errors(path):
        listed = client_of(scheme).fs.find(prefix, detail=True).values()
        if not listed:
            check_bucket(path)
    entries = (_entry(scheme, info) for info in listed)
    inside = [entry for entry in entries if entry.path.startswith(f"{scheme}://{prefix}/")]
    return sorted((entry for entry in inside if not entry.is_folder), key=lambda entry: entry.path)


def glob(pattern: str) -> list[str]:
    """Returns the paths that match a pattern of `*`, `?`, `[..]` and `**`, sorted."""
    scheme, bucket, key = split(pattern)
    return sorted(set(_expand(f"{scheme}://{bucket}", key.split("/"))))


def write(path: str, content: bytes) -> None:
    """Writes an object; it replaces one that exists."""
    scheme, bucket, key = split(path)
    with storage_errors(path):
        client_of(scheme).fs.pipe_file(f"{bucket}/{key}", content)


def write_if(path: str, content: bytes, version: str | None) -> str | None:
    """Writes an object only if its version is still this one; None: only if there is none.

    Returns:
        The new version; None where the object's version is another.
    """
    scheme, bucket, key = split(path)
    client = client_of(scheme)
    with storage_errors(path):
        written = client.write_if(bucket, key, content, version)
        if written is None:
            # The first attempt may have succeeded although its answer was lost.
            with contextlib.suppress(FileNotFoundError):
                entry = _entry(scheme, client.fs.info(f"{bucket}/{key}"))
                if client.fs.cat_file(f"{bucket}/{key}") == content:
                    return entry.version
        return written


@contextlib.contextmanager
def writer(path: str) -> Iterator[io.BufferedIOBase]:
    """Yields a file whose bytes become an object at the end, in blocks as they are written.

    After an exception there is no object, and one that was there stays.
    """
    scheme, bucket, key = split(path)
    client = client_of(scheme)
    with storage_errors(path):
        file = client.fs.open(f"{bucket}/{key}", "wb", block_size=_WRITE_BLOCK_BYTES)
    try:
        yield cast(io.BufferedIOBase, _Writer(file, path))
    except BaseException:
        with contextlib.suppress(*client.errors):
            file.discard()
        file.closed = True  # otherwise it is uploaded when it is freed
        raise
    with storage_errors(path):
        try:
            file.close()
        except BaseException:
            file.closed = True
            raise


def reader(path: str) -> io.BufferedReader:
    """Opens an object for reading: seekable, by ranges, as it is now.

    Raises:
        FileNotFoundError: there is none.
    """
    return buffered(ObjectReader(find_object(path)))


def buffered(file: "ObjectReader") -> io.BufferedReader:
    """Returns a file from which little can be read at a time."""
    return io.BufferedReader(file, BUFFER_BYTES)


def copy(source: str, target: str) -> None:
    """Copies an object in the service, without its passing through this machine."""
    scheme, bucket, key = split(source)
    _, target_bucket, target_key = split(target)
    with storage_errors(source):
        client_of(scheme).fs.cp_file(f"{bucket}/{key}", f"{target_bucket}/{target_key}")


def remove(path: str) -> None:
    """Removes an object.

    Raises:
        FileNotFoundError: there is none; S3 does not tell.
    """
    scheme, bucket, key = split(path)
    with storage_errors(path):
        client_of(scheme).fs.rm_file(f"{bucket}/{key}")


def remove_folder(path: str) -> None:
    """Removes all objects in a folder, the last ones of the list first."""
    for entry in reversed(list_objects(path)):
        with contextlib.suppress(FileNotFoundError):
            remove(entry.path)


def set_mark(path: str, mark: str) -> None:
    """Writes this project's attribute of an object."""
    scheme, bucket, key = split(path)
    with storage_errors(path):
        client_of(scheme).set_attribute(f"{bucket}/{key}", _MARK, mark)


def read_mark(path: str) -> str:
    """Returns this project's attribute of an object; "" where it has none."""
    scheme, bucket, key = split(path)
    with storage_errors(path):
        return client_of(scheme).attributes(f"{bucket}/{key}").get(_MARK, "")


class ObjectReader(io.RawIOBase):
    """An object as a raw file; each read is one request.

    Args:
        entry: of the object.
    """

    def __init__(self, entry: Entry):
        self.name = entry.path
        self.entry, self._position = entry, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.entry.size}
        if start[whence] + offset < 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), self.name)
        self._position = start[whence] + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        content = self._read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def readall(self) -> bytes:
        return self._read(self.entry.size - self._position)

    def read_range(self, start: int, stop: int) -> bytes:
        """Returns the bytes `start` to `stop`, which the object has.

        Raises:
            StorageError: it has been changed since it was opened, or the bucket cannot be used.
        """
        scheme, bucket, key = split(self.entry.path)
        with storage_errors(self.entry.path):
            content = client_of(scheme).read_version(bucket, key, self.entry.version, start, stop)
        if len(content) != stop - start:
            raise StorageError(f"{self.name} was changed while it was being read")
        return content

    def _read(self, count: int) -> bytes:
        start = self._position
        stop = min(start + count, self.entry.size)
        if stop <= start:
            return b""
        content = self.read_range(start, stop)
        self._position += len(content)
        return content


class _Writer(io.RawIOBase):
    """The file of an upload, whose errors are this module's."""

    def __init__(self, file: Any, path: str):
        self._upload, self.name = file, path

    def writable(self) -> bool:
        return True

    def write(self, content: Any) -> int:
        with storage_errors(self.name):
            return self._upload.write(content)

    def tell(self) -> int:
        return self._upload.tell()


def _entry(scheme: str, info: dict[str, Any]) -> Entry:
    is_folder = info["type"] == "directory"
    modified = info.get("mtime") or info.get("LastModified")
    return Entry(
        path=f"{scheme}://{info['name'].rstrip('/')}",
        is_folder=is_folder,
        size=0 if is_folder else int(info.get("size") or 0),
        version=str(info.get("generation") or info.get("ETag") or ""),
        modified=modified.timestamp() if isinstance(modified, datetime.datetime) else 0.0,
    )


def _expand(folder: str, parts: list[str]) -> Iterator[str]:
    """Yields what matches a pattern, given as its parts, below a folder."""
    literal = next((n for n, part in enumerate(parts) if _MAGIC.search(part)), len(parts))
    folder = "/".join([folder, *parts[:literal]]) if literal else folder
    if literal == len(parts):
        if find(folder) is not None:
            yield folder
        return
    part, rest = parts[literal], parts[literal + 1 :]
    if part == "**":
        for entry in list_objects(folder):
            if _matches(entry.path[len(folder) + 1 :].split("/"), ["**", *rest]):
                yield entry.path
        return
    for entry in list_folder(folder):
        if fnmatch.fnmatchcase(entry.path.rpartition("/")[2], part):
            if not rest:
                yield entry.path
            elif entry.is_folder:
                yield from _expand(entry.path, rest)


def _matches(names: list[str], parts: list[str]) -> bool:
    """Returns whether the names of a path match the parts of a pattern."""
    if not names or not parts:
        return names == parts
    if parts[0] == "**":
        return _matches(names, parts[1:] or ["*"]) or _matches(names[1:], parts)
    return fnmatch.fnmatchcase(names[0], parts[0]) and _matches(names[1:], parts[1:])


def _is_past_end(error: Exception) -> bool:
    return getattr(error, "code", None) in (416, "416") or (
        re.search(r"range.{0,20} not satisfiable|InvalidRange", str(error)) is not None
    )
