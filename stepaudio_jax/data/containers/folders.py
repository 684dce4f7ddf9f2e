"""What lies in a folder: all questions to the file system that are not about a file's content."""

import contextlib
import os
from collections.abc import Container

from stepaudio_jax.storage import buckets, file_version, to_path
from stepaudio_jax.storage.uris import is_bucket_path


def exists(path: str) -> bool:
    """Returns whether there is a file or folder of that name."""
    return to_path(path).exists()


def is_folder(path: str) -> bool:
    """Returns whether a path is a folder."""
    return to_path(path).is_dir()


def list_folder(folder: str) -> list[str]:
    """Returns the names of a folder's files and folders, sorted; hidden ones are left out.

    Raises:
        OSError: there is no such folder, or it cannot be read.
    """
    return sorted(entry.name for entry in to_path(folder).iterdir() if not is_hidden(entry.name))


def list_files_below(folder: str) -> list[str]:
    """Returns the paths of all files below a folder, relative to it, sorted.

    Hidden files and folders are left out. The separator is `/`.

    Raises:
        OSError: there is no such folder, or it cannot be read.
    """
    if is_bucket_path(folder):
        return [name for name, _ in _list_objects(folder)]
    files: list[str] = []
    _collect(folder, "", files)
    return sorted(files)


def is_hidden(name: str) -> bool:
    """Returns whether a name is that of a hidden file, as `.git` and macOS's `._a.wav`."""
    return name.startswith(".") or name == "__MACOSX"


def signature(path: str, ignored: Container[str] = ()) -> tuple[int | str, ...]:
    """Returns what changes when a file or anything in a folder does.

    Args:
        path: of a file, or of a folder, of which all files below count.
        ignored: endings of files in a folder that count by their names only, without the dot.

    Raises:
        OSError: there is no such file or folder.
    """
    if not is_folder(path):
        return file_version(path)
    if is_bucket_path(path):
        return (hash(tuple(_list_objects(path))),)
    return (_hash_folder(path, ignored),)


def _list_objects(folder: str) -> list[tuple[str, str]]:
    """Returns the name and the version of each object below a folder in a bucket."""
    entries = buckets.list_objects(folder)
    prefix = len(folder.rstrip("/")) + 1
    named = [(entry.path[prefix:], entry.version) for entry in entries]
    return [each for each in named if not any(map(is_hidden, each[0].split("/")))]


def _hash_folder(folder: str, ignored: Container[str]) -> int:
    seen: list[object] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_hidden(entry.name):
                continue
            seen.append(entry.name)
            if entry.is_dir():
                seen.append(_hash_folder(entry.path, ignored))
            elif entry.name.rpartition(".")[2].lower() not in ignored:
                with contextlib.suppress(FileNotFoundError):  # a link to nothing
                    status = entry.stat()
                    seen.append((status.st_size, status.st_mtime_ns))
    return hash(tuple(sorted(map(str, seen))))


def _collect(folder: str, prefix: str, files: list[str]) -> None:
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_hidden(entry.name):
                continue
            if entry.is_dir():
                _collect(entry.path, f"{prefix}{entry.name}/", files)
            else:
                files.append(prefix + entry.name)
