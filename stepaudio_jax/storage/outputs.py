"""Checks outputs before the work: they can be written, and replace nothing of the user's."""

import contextlib
import hashlib
import json
import os
import pathlib
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TextIO

from stepaudio_jax.errors import OutputError
from stepaudio_jax.storage import buckets
from stepaudio_jax.storage.files import INCOMPLETE, atomic_text_writer, read_bytes
from stepaudio_jax.storage.messages import truncate
from stepaudio_jax.storage.paths import BucketPath, Path, PathLike, to_path
from stepaudio_jax.storage.uris import is_bucket_path

_JOB_ATTRIBUTE = "user.stepaudio_jax.job"


def check_output_file(
    output: PathLike,
    inputs: Iterable[PathLike] = (),
    *,
    may_replace: Callable[[Path], bool] = lambda path: False,
    option: str = "--output",
) -> None:
    """Checks that a file can be written and replaces nothing of the user's, without touching it.

    Args:
        output: the file to write. Folders above it that do not exist will be created.
        inputs: what the program reads, as files or folders; those that do not exist are ignored.
        may_replace: whether an existing file may be replaced, since the program wrote it.
        option: the option by which the user named the output, for the message.

    Raises:
        OutputError: the output is one of the inputs (by whatever link or spelling), a folder, not a
            regular file, or in a folder that cannot be written; or it exists and may not be
            replaced.
    """
    text = os.fspath(output)
    shown = f"{option}={truncate(text)!r}"
    if not text or text.endswith(os.sep):
        raise OutputError(f"{shown} names no file: give the file to write")
    for input_path in inputs:
        check_not_same_file(text, input_path, option=option)
    path = to_path(text)
    if isinstance(path, BucketPath):
        _check_bucket_output(path, shown, may_replace)
        return
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        check_parent_writable(path, shown)
        return
    except NotADirectoryError:
        raise OutputError(
            f"{shown}: a part of it before its last one is a file; name another file"
        ) from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise OutputError(f"{shown} cannot be looked at ({reason}); name another file") from None
    if stat.S_ISDIR(mode):
        raise OutputError(f"{shown} is a folder: name a file, such as one in it")
    if not stat.S_ISREG(mode):
        raise OutputError(f"{shown} is not a regular file: name another")
    if not may_replace(path):
        raise OutputError(
            f"{shown} exists already, and would be replaced: name another file, or remove it first"
        )
    check_parent_writable(path, shown)


def check_output_directory(output: PathLike) -> None:
    """Checks that a folder can be created and replaces nothing, without touching it.

    Raises:
        OutputError: it exists and is not an empty folder, or the folder above it cannot be written.
    """
    path = to_path(output)
    shown = truncate(os.fspath(output))
    if isinstance(path, BucketPath):
        # One that is incomplete is of a writer that was killed, or `atomic_directory` refuses it.
        if path.exists() and any(path.iterdir()) and not (path / INCOMPLETE).is_file():
            raise OutputError(f"{shown} already exists; choose another output or remove it first")
        return
    try:
        is_empty_folder = path.is_dir() and not any(path.iterdir())
        is_absent = not (path.exists() or path.is_symlink())
    except OSError as error:
        raise OutputError(
            f"{shown} cannot be looked at ({error.strerror}); name another folder"
        ) from None
    if not (is_empty_folder or is_absent):
        raise OutputError(f"{shown} already exists; choose another output or remove it first")
    check_parent_writable(path, shown)


def check_not_same_file(
    output: PathLike, input_path: PathLike, *, option: str = "--output"
) -> None:
    """Checks that an output is not a file or folder that the program reads.

    Raises:
        OutputError: it is, by the same path or by another that leads to it.
    """
    try:
        if is_bucket_path(output) and is_bucket_path(input_path):
            same = BucketPath(output) == BucketPath(input_path)
        else:
            same = os.path.samefile(output, input_path)
    except (OSError, ValueError):  # one of them does not exist, so they are not the same
        return
    if same:
        name, other = (truncate(os.fspath(path)) for path in (output, input_path))
        spelling = "" if name == other else f" {other!r}, by another name"
        raise OutputError(
            f"{option}={name!r} is the input{spelling}, and would replace it: name another file"
        )


def check_parent_writable(path: PathLike, shown: str) -> None:
    """Checks that the folder of an output can be created and written.

    Of one in a bucket it checks that the bucket is there and may be read.

    Args:
        path: the output.
        shown: how messages name it.

    Raises:
        OutputError: it cannot.
    """
    if is_bucket_path(path):
        buckets.find(os.fspath(path))
        return
    resolved = pathlib.Path(os.path.realpath(path))
    folder = next(parent for parent in resolved.parents if parent.exists())
    if not folder.is_dir():
        raise OutputError(
            f"{shown}: {str(folder)!r} is a file, and no folder can be made in it;"
            " name another output"
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(
            f"{shown}: the folder {str(folder)!r} cannot be written; name an output in another"
        )


def _check_bucket_output(path: BucketPath, shown: str, may_replace: Callable[[Path], bool]) -> None:
    """Checks an output in a bucket, which shows only when it is written whether it may be."""
    entry = buckets.find(str(path))
    if entry is not None and entry.is_folder:
        raise OutputError(f"{shown} is a folder: name a file, such as one in it")
    if entry is not None and not may_replace(path):
        raise OutputError(
            f"{shown} exists already, and would be replaced: name another file, or remove it first"
        )


@contextlib.contextmanager
def finished_output(output: PathLike, job: Mapping[str, Any]) -> Iterator[TextIO]:
    """Yields a text file that becomes `output`, marked as the finished output of a job."""
    is_in_bucket = is_bucket_path(output)
    with atomic_text_writer(output) as file:
        yield file
        if not is_in_bucket:
            file.flush()
            set_job_mark(file.name, job)
    if is_in_bucket:
        set_job_mark(output, job)


def set_job_mark(path: PathLike, job: Mapping[str, Any]) -> None:
    """Marks a file as the finished output of a job, where the file system keeps attributes."""
    if is_bucket_path(path):
        buckets.set_mark(os.fspath(path), _job_mark(path, job).decode())
    elif hasattr(os, "setxattr"):
        with contextlib.suppress(OSError):  # the file system keeps none
            os.setxattr(path, _JOB_ATTRIBUTE, _job_mark(path, job))


def has_job_mark(path: PathLike) -> bool:
    """Returns whether some job marked a file as its output."""
    return bool(_read_mark(path))


def is_finished_output_of(path: PathLike, job: Mapping[str, Any]) -> bool:
    """Returns whether a file exists and is the unchanged output of this very job.

    Raises:
        OutputError: it exists, and is something else.
    """
    if not to_path(path).exists():
        return False
    if _read_mark(path) == _job_mark(path, job):
        return True
    raise OutputError(
        f"--output={truncate(os.fspath(path))!r} exists already, and is not what this job makes"
        " (another input, model or setting, or changed since): name another file, or remove it"
        " first"
    )


def _read_mark(path: PathLike) -> bytes:
    if is_bucket_path(path):
        return buckets.read_mark(os.fspath(path)).encode()
    if hasattr(os, "getxattr"):
        with contextlib.suppress(OSError):  # the file has none
            return os.getxattr(path, _JOB_ATTRIBUTE)
    return b""


def _job_mark(path: PathLike, job: Mapping[str, Any]) -> bytes:
    """Returns a hash of the job and of the file's content."""
    digest = hashlib.sha256(json.dumps(job, sort_keys=True).encode())
    digest.update(read_bytes(path))
    return digest.hexdigest().encode()
