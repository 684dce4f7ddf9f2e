"""Opens, reads, appends to, renames and fingerprints the files that users name.

Every other module reads and writes users' files through these functions, so that a path that is
not local needs support in this module only. What is written appears whole or not at all: it is
written under a temporary name beside its target, and renamed at the end.
"""

import contextlib
import glob
import hashlib
import io
import os
import pathlib
import re
import shutil
import socket
import threading
from collections.abc import Iterator
from typing import TextIO

from stepaudio_jax.errors import OutputError

PathLike = str | os.PathLike[str]

_HOST = re.sub(r"[^A-Za-z0-9_]", "_", socket.gethostname())
# Bytes at the beginning and at the end of each file that make a folder's fingerprint: the edges of
# weights that were trained anew differ.
_FINGERPRINT_BYTES = 1 << 16
_MAX_HASHED_BYTES = 1 << 26  # of a file whose whole content is hashed


def expand_home(path: str) -> str:
    """Returns a path with `~` or `~user` at its start replaced by that home folder."""
    return os.path.expanduser(path)


def user_path(text: str) -> pathlib.Path:
    """Parses a path of the command line (argparse's `type`).

    No shell expands the `~` of `--output=~/x`.
    """
    return pathlib.Path(expand_home(text))


def open_read(path: PathLike) -> io.BufferedReader:
    """Opens a file for reading its bytes."""
    return open(path, "rb")


def read_bytes(path: PathLike) -> bytes:
    """Returns the content of a file."""
    with open_read(path) as file:
        return file.read()


def read_text(path: PathLike) -> str:
    """Returns the content of a file of UTF-8 text, all its line ends as newline characters.

    Raises:
        UnicodeDecodeError: it is not UTF-8.
    """
    text = read_bytes(path).decode("utf-8")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_range(path: PathLike, start: int, stop: int) -> bytes:
    """Returns the bytes `start` to `stop` of a file, fewer where it ends before `stop`."""
    with open_read(path) as file:
        file.seek(start)
        return file.read(stop - start)


def file_size(path: PathLike) -> int:
    """Returns the number of bytes of a file."""
    return os.stat(path).st_size


def open_append(path: PathLike, *, truncate_at: int | None = None) -> io.BufferedRandom:
    """Opens a file for appending bytes; it is created where it does not exist.

    Args:
        path: of the file.
        truncate_at: where to cut it first, in bytes; None keeps all of it.
    """
    file = open(path, "r+b" if os.path.exists(path) else "w+b")  # noqa: SIM115  returned
    if truncate_at is not None:
        file.truncate(truncate_at)
    file.seek(0, os.SEEK_END)
    return file


def rename(source: PathLike, target: PathLike) -> None:
    """Renames a file or folder; replaces a file, or an empty folder, of that name at once."""
    os.replace(source, target)


@contextlib.contextmanager
def atomic_text_writer(output: PathLike) -> Iterator[TextIO]:
    """Yields a UTF-8 text file that becomes `output` at the end.

    Two programs that write the same output leave the file of one of them, whole. The target of a
    symbolic link is replaced, not the link. Folders above the output are created. After an
    exception nothing is left behind.
    """
    final = pathlib.Path(os.path.realpath(output))
    remove_stale_temporaries(final)
    created = [folder for folder in final.parents if not folder.exists()]
    temporary = temporary_path(final)
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            yield file
        rename(temporary, final)
    except BaseException:
        temporary.unlink(missing_ok=True)
        remove_empty_folders(created)
        raise


def write_text(path: PathLike, text: str) -> None:
    """Writes a file of UTF-8 text; see `atomic_text_writer`."""
    with atomic_text_writer(path) as file:
        file.write(text)


@contextlib.contextmanager
def atomic_directory(output: PathLike, needed_bytes: int = 0) -> Iterator[pathlib.Path]:
    """Yields a temporary folder beside `output` that is renamed to it at the end.

    An empty folder may exist there already; the target of a symbolic link is written, and the link
    stays. Folders above the output are created. After an exception nothing is left behind.

    Args:
        output: the folder to create.
        needed_bytes: how much will be written, to find out before the work that a disk is too full.

    Raises:
        OutputError: the disk has less space left.
    """
    target = pathlib.Path(os.path.realpath(output))
    remove_stale_temporaries(target)
    created = [parent for parent in target.parents if not parent.exists()]
    if needed_bytes:
        _check_disk_space(target, needed_bytes, os.fspath(output))
    temporary = temporary_path(target)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        rename(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        remove_empty_folders(created)
        raise


def remove_empty_folders(folders: list[pathlib.Path]) -> None:
    """Removes folders, innermost first; those that another program has filled meanwhile stay."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def temporary_path(target: pathlib.Path) -> pathlib.Path:
    """Returns a hidden name beside a target that no other process or thread, on any host, uses."""
    return target.with_name(
        f".{target.name}.{_HOST}-{threading.get_native_id()}-{os.getpid()}.incomplete"
    )


def remove_stale_temporaries(target: pathlib.Path) -> None:
    """Removes temporary files and folders of a target that dead processes of this host left.

    A restarted container may reuse process ids, so those under the id of this process and thread
    are removed too.
    """
    for path in target.parent.glob(f".{glob.escape(target.name)}.*.incomplete"):
        match = re.fullmatch(
            rf"{re.escape(_HOST)}-(\d+)-(\d+)",
            path.name.removesuffix(".incomplete").rpartition(".")[2],
        )
        if match is None:
            continue
        thread, process = int(match[1]), int(match[2])
        if _is_running(process) and (process, thread) != (os.getpid(), threading.get_native_id()):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def hash_file(path: PathLike) -> str:
    """Returns the SHA-256 of a file's content, in hexadecimal."""
    return hashlib.sha256(read_bytes(path)).hexdigest()


def fingerprint_file(path: PathLike) -> str:
    """Returns a hash of a file's size and content; of one beyond 64 MiB, of both ends only."""
    size = file_size(path)
    if size <= _MAX_HASHED_BYTES:
        return hash_file(path)
    digest = hashlib.sha256(str(size).encode())
    digest.update(read_range(path, 0, _FINGERPRINT_BYTES))
    digest.update(read_range(path, size - _FINGERPRINT_BYTES, size))
    return digest.hexdigest()


def fingerprint_folder(folder: PathLike) -> str:
    """Returns a hash of the names and sizes of a folder's files, and of both ends of each.

    A copy of a folder has the same fingerprint; a model that was trained anew into the same folder
    has another. Empty where there is no such folder, or no file in it.
    """
    root = pathlib.Path(folder)
    digest = hashlib.sha256()
    files = sorted(path for path in root.rglob("*") if path.is_file())
    for path in files:
        size = file_size(path)
        digest.update(f"{path.relative_to(root)}\0{size}\0".encode())
        with open_read(path) as file:
            digest.update(file.read(_FINGERPRINT_BYTES))
            file.seek(max(size - _FINGERPRINT_BYTES, 0))
            digest.update(file.read(_FINGERPRINT_BYTES))
    return digest.hexdigest() if files else ""


def _check_disk_space(target: pathlib.Path, needed_bytes: int, shown: str) -> None:
    disk = next(parent for parent in target.parents if parent.exists())
    free = shutil.disk_usage(disk).free
    if free < needed_bytes:
        raise OutputError(
            f"{shown} needs {needed_bytes / 1e9:.1f} GB, and {disk} has {free / 1e9:.1f} GB free"
        )


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it belongs to another user
        return True
    return True
