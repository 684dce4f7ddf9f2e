"""Paths of files and folders, local or in buckets, with one set of methods.

`to_path` gives a `pathlib.Path` for a local path and a `BucketPath` for one in a bucket. pathlib
itself would take `gs://bucket/x` for the relative path `gs:/bucket/x`.
"""

import argparse
import dataclasses
import fnmatch
import functools
import glob
import os
import pathlib
import posixpath
from collections.abc import Iterator, Sequence
from typing import Union

from stepaudio_jax.errors import StorageError
from stepaudio_jax.storage import buckets
from stepaudio_jax.storage.uris import is_bucket_path, split

PathLike = str | os.PathLike[str]
Path = Union[pathlib.Path, "BucketPath"]


def to_path(path: PathLike) -> Path:
    """Returns a path with the methods of pathlib, wherever it lies.

    Raises:
        StorageError: it is an address of another kind than `gs://` and `s3://`.
    """
    if isinstance(path, pathlib.Path | BucketPath):
        return path
    text = os.fspath(path)
    return BucketPath(text) if is_bucket_path(text) else pathlib.Path(text)


def expand_home(path: str) -> str:
    """Returns a path with `~` or `~user` at its start replaced by that home folder."""
    return os.path.expanduser(path)


def user_path(text: str) -> Path:
    """Parses a path of the command line (argparse's `type`).

    No shell expands the `~` of `--output=~/x`.
    """
    try:
        return to_path(expand_home(text))
    except StorageError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def glob_paths(pattern: str) -> list[str]:
    """Returns the paths that match a pattern of `*`, `?`, `[..]` and `**`, sorted."""
    if is_bucket_path(pattern):
        return buckets.glob(pattern)
    return sorted(glob.glob(pattern, recursive=True))


@dataclasses.dataclass(frozen=True)
class BucketStat:
    """Holds what `BucketPath.stat` knows, under the names of `os.stat_result`."""

    st_size: int
    st_mtime: float


@functools.total_ordering
class BucketPath(os.PathLike[str]):
    """Names a path in a bucket, `gs://BUCKET/KEY` or `s3://..`, with the methods of pathlib.

    Folders need not be made: `mkdir` does nothing, and a folder exists while it has objects.
    """

    def __init__(self, path: PathLike):
        scheme, bucket, key = split(path)
        self._root, self._key = f"{scheme}://{bucket}", key

    def __fspath__(self) -> str:
        return f"{self._root}/{self._key}" if self._key else self._root

    __str__ = as_posix = __fspath__

    def __repr__(self) -> str:
        return f"BucketPath({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BucketPath) and str(self) == str(other)

    def __lt__(self, other: "BucketPath") -> bool:
        return str(self) < str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def __truediv__(self, name: PathLike) -> "BucketPath":
        return BucketPath(f"{self}/{os.fspath(name)}")

    def joinpath(self, *names: PathLike) -> "BucketPath":
        """Returns the path with more parts at its end."""
        return BucketPath("/".join([str(self), *(os.fspath(name) for name in names)]))

    @property
    def address(self) -> tuple[str, str, str]:
        """Returns scheme, bucket and key."""
        return split(str(self))

    @property
    def name(self) -> str:
        """Returns the last part."""
        return posixpath.basename(self._key)

    @property
    def stem(self) -> str:
        """Returns the last part without its ending."""
        return pathlib.PurePosixPath(self.name).stem

    @property
    def suffix(self) -> str:
        """Returns the ending, with its point."""
        return pathlib.PurePosixPath(self.name).suffix

    @property
    def parts(self) -> tuple[str, ...]:
        """Returns the bucket, with its scheme, and the parts of the key."""
        return (self._root, *self._key.split("/")) if self._key else (self._root,)

    @property
    def parent(self) -> "BucketPath":
        """Returns the folder; that of the bucket is itself."""
        return BucketPath(f"{self._root}/{posixpath.dirname(self._key)}")

    @property
    def parents(self) -> Sequence["BucketPath"]:
        """Returns the folders above, innermost first, down to the bucket."""
        folders = [self]
        while folders[-1]._key:
            folders.append(folders[-1].parent)
        return folders[1:]

    def with_name(self, name: str) -> "BucketPath":
        """Returns the path with another last part."""
        return self.parent / name

    def with_suffix(self, suffix: str) -> "BucketPath":
        """Returns the path with another ending."""
        return self.parent / f"{self.stem}{suffix}"

    def relative_to(self, other: PathLike) -> pathlib.PurePosixPath:
        """Returns the rest of the path below a folder.

        Raises:
            ValueError: it is not below it.
        """
        folder = f"{BucketPath(other)}/"
        if not f"{self}/".startswith(folder):
            raise ValueError(f"{self} is not in {folder}")
        return pathlib.PurePosixPath(str(self)[len(folder) :])

    def absolute(self) -> "BucketPath":
        """Returns the path itself."""
        return self

    def resolve(self) -> "BucketPath":
        """Returns the path itself: buckets have no links."""
        return self

    def exists(self) -> bool:
        """Returns whether there is an object or a folder."""
        return buckets.find(str(self)) is not None

    def is_file(self) -> bool:
        """Returns whether there is an object."""
        entry = buckets.find(str(self))
        return entry is not None and not entry.is_folder

    def is_dir(self) -> bool:
        """Returns whether there is a folder; a bucket is one, also an empty one."""
        entry = buckets.find(str(self))
        return not self._key or (entry is not None and entry.is_folder)

    def is_symlink(self) -> bool:
        """Returns False: buckets have no links."""
        return False

    def stat(self) -> BucketStat:
        """Returns size and time of an object.

        Raises:
            FileNotFoundError: there is none.
        """
        entry = buckets.find_object(str(self))
        return BucketStat(entry.size, entry.modified)

    def iterdir(self) -> Iterator["BucketPath"]:
        """Yields what is in the folder."""
        return (BucketPath(entry.path) for entry in buckets.list_folder(str(self)))

    def glob(self, pattern: str) -> Iterator["BucketPath"]:
        """Yields what matches a pattern below the folder."""
        return map(BucketPath, buckets.glob(f"{glob.escape(str(self))}/{pattern}"))

    def rglob(self, pattern: str) -> Iterator["BucketPath"]:
        """Yields the objects in the folder and those below it whose names match."""
        for entry in buckets.list_objects(str(self)):
            path = BucketPath(entry.path)
            if fnmatch.fnmatchcase(path.name, pattern):
                yield path

    def read_bytes(self) -> bytes:
        """Returns the object's content."""
        return buckets.read(str(self))

    def read_text(self, encoding: str = "utf-8") -> str:
        """Returns the object's content as text."""
        return self.read_bytes().decode(encoding)

    def write_bytes(self, content: bytes) -> None:
        """Writes the object."""
        buckets.write(str(self), content)

    def write_text(self, text: str, encoding: str = "utf-8") -> None:
        """Writes the object as text."""
        buckets.write(str(self), text.encode(encoding))

    def unlink(self, missing_ok: bool = False) -> None:
        """Removes the object."""
        try:
            buckets.remove(str(self))
        except FileNotFoundError:
            if not missing_ok:
                raise

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        """Does nothing: a folder exists once it has an object."""

    def rmdir(self) -> None:
        """Does nothing: a folder ends with its last object."""
