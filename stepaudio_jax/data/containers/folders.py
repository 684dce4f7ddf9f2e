"""What lies in a folder: all questions to the file system that are not about a file's content."""

import contextlib
import os
from collections.abc import Container


def exists(path: str) -> bool:
    """Returns whether there is a file or folder of that name."""
    return os.path.exists(path)


def is_folder(path: str) -> bool:
    """Returns whether a path is a folder."""
    return os.path.isdir(path)


def list_folder(folder: str) -> list[str]:
    """Returns the names of a folder's files and folders, sorted; hidden ones are left out.

    Raises:
        OSError: there is no such folder, or it cannot be read.
    """
    return sorted(name for name in os.listdir(folder) if not is_hidden(name))


def list_files_below(folder: str) -> list[str]:
    """Returns the paths of all files below a folder, relative to it, sorted.

    Hidden files and folders are left out. The separator is `/`.

    Raises:
        OSError: there is no such folder, or it cannot be read.
    """
    files: list[str] = []
    _collect(folder, "", files)
    return sorted(files)


def is_hidden(name: str) -> bool:
    """Returns whether a name is that of a hidden file, as `.git` and macOS's `._a.wav`."""
    return name.startswith(".") or name == "__MACOSX"


def file_signature(path: str) -> tuple[int, int]:
    """Returns what changes when a file does: its size, and its time of change in nanoseconds.

    Raises:
        OSError: there is no such file.
    """
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns


def signature(path: str, ignored: Container[str] = ()) -> tuple[int, ...]:
    """Returns what changes when a file or anything in a folder does.

    Args:
        path: of a file, or of a folder, of which all files below count.
        ignored: endings of files in a folder that count by their names only, without the dot.

    Raises:
        OSError: there is no such file or folder.
    """
    return (_hash_folder(path, ignored),) if is_folder(path) else file_signature(path)


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
