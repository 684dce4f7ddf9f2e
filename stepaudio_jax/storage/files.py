"""Opens, reads, appends to, renames and fingerprints the files that users name.

Every other module reads and writes users' files through these functions and `to_path`, so that a
path may be local or in a bucket (`gs://`, `s3://`; see `buckets`). What is written appears whole or
not at all. Locally it is written under a temporary name beside its target, and renamed at the end.
In a bucket an object appears when its last byte has arrived; a folder of several is being written
as long as it has an object named `.incomplete`.
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
from typing import BinaryIO, TextIO, cast

from stepaudio_jax.errors import LockHeldError, OutputError, StorageError
from stepaudio_jax.storage import buckets
from stepaudio_jax.storage.bucket_locks import lock_object
from stepaudio_jax.storage.cached_files import CachedFile
from stepaudio_jax.storage.paths import BucketPath, Path, PathLike, to_path
from stepaudio_jax.storage.uris import is_bucket_path

# Of a folder in a bucket that is being written: the lock of its writer.
INCOMPLETE = ".incomplete"
_HOST = re.sub(r"[^A-Za-z0-9_]", "_", socket.gethostname())
# Bytes at the beginning and at the end of each file that make a folder's fingerprint: the edges of
# weights that were trained anew differ.
_FINGERPRINT_BYTES = 1 << 16
_MAX_PREAD_BYTES = 1 << 30  # a system reads at most 2 GiB at a time
_MAX_HASHED_BYTES = 1 << 26  # of a file whose whole content is hashed


def open_read(path: PathLike) -> io.BufferedReader:
    """Opens a file for reading its bytes; of one in a bucket only what is read is fetched."""
    if isinstance(path, CachedFile):
        return path.open()
    if is_bucket_path(path):
        return buckets.reader(os.fspath(path))
    return open(path, "rb")


def read_bytes(path: PathLike) -> bytes:
    """Returns the content of a file."""
    if is_bucket_path(path):
        return buckets.read(os.fspath(path))
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
    if is_bucket_path(path):
        return buckets.read(os.fspath(path), start, stop)
    if stop - start > _MAX_PREAD_BYTES:
        with open_read(path) as file:
            file.seek(start)
            return file.read(stop - start)
    descriptor = os.open(path, os.O_RDONLY)  # containers read every clip so: a file object is slow
    try:
        return os.pread(descriptor, stop - start, start)
    finally:
        os.close(descriptor)


def file_size(path: PathLike) -> int:
    """Returns the number of bytes of a file."""
    if is_bucket_path(path):
        return buckets.find_object(os.fspath(path)).size
    return os.stat(path).st_size


def file_version(path: PathLike) -> tuple[int, str]:
    """Returns the size of a file, and what changes when it is written anew."""
    if is_bucket_path(path):
        entry = buckets.find_object(os.fspath(path))
        return entry.size, entry.version
    status = os.stat(path)
    return status.st_size, str(status.st_mtime_ns)


def list_sizes(folder: PathLike) -> dict[str, int]:
    """Returns the sizes of the files directly in a folder, by name; empty where there is none."""
    if is_bucket_path(folder):
        entries = buckets.list_folder(os.fspath(folder))
        return {BucketPath(entry.path).name: entry.size for entry in entries if not entry.is_folder}
    try:
        with os.scandir(folder) as files:
            return {file.name: file.stat().st_size for file in files if file.is_file()}
    except FileNotFoundError:
        return {}


def open_append(path: PathLike, *, truncate_at: int | None = None) -> io.BufferedRandom:
    """Opens a local file for appending bytes; it is created where it does not exist.

    What is appended to in buckets too is a `JsonLinesFile` or a `StepLog`.

    Args:
        path: of the file.
        truncate_at: where to cut it first, in bytes; None keeps all of it.
    """
    file = open(path, "r+b" if os.path.exists(path) else "w+b")  # noqa: SIM115  returned
    if truncate_at is not None:
        file.truncate(truncate_at)
    file.seek(0, os.SEEK_END)
    return file


def sync_path(path: PathLike) -> None:
    """Waits until a local file, or the names in a local folder, are on the disk.

    It does nothing in a bucket, where what was written is kept.
    """
    if is_bucket_path(path) or os.name == "nt":  # Windows opens no folders
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def rename(source: PathLike, target: PathLike) -> None:
    """Renames a file or folder; replaces a file, or an empty folder, of that name at once.

    In a bucket the objects are copied there one by one, by the service, before those here are
    removed.
    """
    if not is_bucket_path(source):
        os.replace(source, target)
        return
    old, new = BucketPath(source), BucketPath(target)
    entry = buckets.find(str(old))
    if entry is None or not entry.is_folder:
        buckets.copy(str(old), str(new))
        buckets.remove(str(old))
        return
    for inner in buckets.list_objects(str(old)):
        buckets.copy(inner.path, str(new / str(BucketPath(inner.path).relative_to(old))))
    buckets.remove_folder(str(old))


def copy_file(source: PathLike, target: PathLike) -> None:
    """Copies a file, from and to wherever they lie, a MiB at a time."""
    with open_read(source) as file, atomic_binary_writer(target) as copied:
        shutil.copyfileobj(file, copied, 1 << 20)


def remove_folder(path: PathLike) -> None:
    """Removes a folder and what is in it; nothing happens where there is none."""
    if is_bucket_path(path):
        buckets.remove_folder(os.fspath(path))
    else:
        shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def open_write(path: PathLike) -> Iterator[BinaryIO]:
    """Yields a new file of bytes in a folder that is still being written.

    In a bucket the bytes are sent as they are written, and no local copy is made.
    """
    if is_bucket_path(path):
        with buckets.writer(os.fspath(path)) as upload:
            yield cast(BinaryIO, upload)
        return
    with open(path, "wb") as file:
        yield file


@contextlib.contextmanager
def atomic_binary_writer(output: PathLike) -> Iterator[BinaryIO]:
    """Yields a file of bytes that becomes `output` at the end; see `atomic_text_writer`."""
    if is_bucket_path(output):
        with open_write(output) as file:
            yield file
        return
    with _local_writer(output) as temporary, temporary.open("wb") as file:
        yield file


@contextlib.contextmanager
def atomic_text_writer(output: PathLike) -> Iterator[TextIO]:
    """Yields a UTF-8 text file that becomes `output` at the end.

    Two programs that write the same output leave the file of one of them, whole. The target of a
    symbolic link is replaced, not the link. Folders above the output are created. After an
    exception nothing is left behind.
    """
    if is_bucket_path(output):
        with buckets.writer(os.fspath(output)) as upload:
            text = io.TextIOWrapper(cast(BinaryIO, upload), encoding="utf-8", newline="\n")
            try:
                yield text
                text.flush()
            finally:
                text.detach()
        return
    with (
        _local_writer(output) as temporary,
        temporary.open("w", encoding="utf-8", newline="\n") as file,
    ):
        yield file


@contextlib.contextmanager
def _local_writer(output: PathLike) -> Iterator[pathlib.Path]:
    """Yields a temporary path that is renamed to `output` at the end."""
    final = pathlib.Path(os.path.realpath(output))
    remove_stale_temporaries(final)
    created = [folder for folder in final.parents if not folder.exists()]
    temporary = temporary_path(final)
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        rename(temporary, final)
    except BaseException:
        temporary.unlink(missing_ok=True)
        remove_empty_folders([*created])
        raise


def write_text(path: PathLike, text: str) -> None:
    """Writes a file of UTF-8 text; see `atomic_text_writer`."""
    with atomic_text_writer(path) as file:
        file.write(text)


@contextlib.contextmanager
def atomic_directory(output: PathLike, needed_bytes: int = 0) -> Iterator[Path]:
    """Yields a temporary folder beside `output` that is renamed to it at the end.

    An empty folder may exist there already; the target of a symbolic link is written, and the link
    stays. Folders above the output are created. After an exception nothing is left behind.

    In a bucket, where folders cannot be renamed, it yields `output` itself, in which `.incomplete`
    is the first object to appear and the last to go (see `is_finished_folder`). What a writer that
    was killed has left is removed first.

    Args:
        output: the folder to create.
        needed_bytes: how much will be written, to find out before the work that a disk is too full.

    Raises:
        OutputError: the disk has less space left, or another process is writing to the bucket's
            folder.
    """
    if is_bucket_path(output):
        with _bucket_directory(BucketPath(output)) as folder:
            yield folder
        return
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
        remove_empty_folders([*created])
        raise


@contextlib.contextmanager
def _bucket_directory(folder: BucketPath) -> Iterator[BucketPath]:
    if folder.exists() and any(folder.iterdir()) and not (folder / INCOMPLETE).is_file():
        raise OutputError(f"{folder} already exists; choose another output or remove it first")
    try:
        lock = lock_object(folder / INCOMPLETE)
    except LockHeldError:
        raise OutputError(f"{folder}: another process is writing it; choose another") from None
    with contextlib.closing(lock):
        _remove_all_but(folder / INCOMPLETE)
        try:
            yield folder
        except BaseException:
            _remove_all_but(folder / INCOMPLETE)
            raise


def _remove_all_but(kept: BucketPath) -> None:
    """Removes what else is in the folder of an object."""
    for entry in buckets.list_objects(str(kept.parent)):
        if entry.path != str(kept):
            buckets.remove(entry.path)


def folder_is_here(path: PathLike) -> bool:
    """Returns whether a folder can be read from here; without credentials it cannot."""
    try:
        return to_path(path).is_dir()
    except StorageError:
        return False


def is_finished_folder(path: PathLike) -> bool:
    """Returns whether a folder is there, and not one in a bucket that is still being written."""
    folder = to_path(path)
    if isinstance(folder, BucketPath) and (folder / INCOMPLETE).is_file():
        return False
    return folder.exists()


def remove_empty_folders(folders: list[Path]) -> None:
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
        if is_running(process) and (process, thread) != (os.getpid(), threading.get_native_id()):
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
    root = to_path(folder)
    digest = hashlib.sha256()
    files = sorted(_all_files(root), key=lambda path: path.relative_to(root).parts)
    for path in files:
        size = file_size(path)
        digest.update(f"{path.relative_to(root)}\0{size}\0".encode())
        with open_read(path) as file:
            digest.update(file.read(_FINGERPRINT_BYTES))
            file.seek(max(size - _FINGERPRINT_BYTES, 0))
            digest.update(file.read(_FINGERPRINT_BYTES))
    return digest.hexdigest() if files else ""


def _all_files(folder: Path) -> Iterator[Path]:
    if isinstance(folder, BucketPath):
        return folder.rglob("*")
    return (path for path in folder.rglob("*") if path.is_file())


def _check_disk_space(target: pathlib.Path, needed_bytes: int, shown: str) -> None:
    disk = next(parent for parent in target.parents if parent.exists())
    free = shutil.disk_usage(disk).free
    if free < needed_bytes:
        raise OutputError(
            f"{shown} needs {needed_bytes / 1e9:.1f} GB, and {disk} has {free / 1e9:.1f} GB free"
        )


def is_running(process: int) -> bool:
    """Returns whether a process of this machine is running."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it belongs to another user
        return True
    return True
