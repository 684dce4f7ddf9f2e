"""Outputs: nothing of the user's is replaced by one, and each appears when it is complete."""

import contextlib
import glob
import hashlib
import json
import os
import pathlib
import re
import shutil
import socket
import stat
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TextIO

from stepaudio_jax.errors import OutputError
from stepaudio_jax.storage.files import shorten

_HOST = re.sub(r"[^A-Za-z0-9_]", "_", socket.gethostname())

PathLike = str | os.PathLike[str]


def check_output_file(
    output: PathLike,
    inputs: Iterable[PathLike] = (),
    *,
    may_replace: Callable[[pathlib.Path], bool] = lambda path: False,
    option: str = "--output",
) -> None:
    """Checks, before the work and without touching anything, that a file can be written and replaces nothing of the user's.

    Args:
        output: the file to write. Folders above it that do not exist will be made.
        inputs: what the program reads, as files or folders. Those that do not exist are passed
        over.
        may_replace: whether a file that is there already may be replaced, for the program made it.
        option: by which the user named the output, for the message.

    Raises:
        OutputError: the output is one of the inputs (by whatever link or spelling), a folder, no
            regular file, or in a folder that cannot be written; or it exists and may not be
            replaced.
    """
    text = os.fspath(output)
    shown = f"{option}={shorten(text)!r}"
    if not text or text.endswith(os.sep):
        raise OutputError(f"{shown} names no file: give the file to write")
    path = pathlib.Path(text)
    for input_path in inputs:
        check_not_same_file(text, input_path, option=option)
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        check_parent_writable(pathlib.Path(os.path.realpath(path)), shown)
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
    check_parent_writable(pathlib.Path(os.path.realpath(path)), shown)


def check_not_same_file(
    output: PathLike, input_path: PathLike, *, option: str = "--output"
) -> None:
    """Checks that an output is not a file or folder that the program reads.

    Raises:
        OutputError: it is, by the same path or by another that leads to it.
    """
    try:
        same = os.path.samefile(output, input_path)
    except (OSError, ValueError):  # one of them does not exist, so they are not the same
        return
    if same:
        name, other = (shorten(os.fspath(path)) for path in (output, input_path))
        spelling = "" if name == other else f" {other!r}, by another name"
        raise OutputError(
            f"{option}={name!r} is the input{spelling}, and would replace it: name another file"
        )


def check_parent_writable(path: pathlib.Path, shown: str) -> None:
    """Checks that the folder of an output can be made and written.

    Args:
        path: the output, links resolved.
        shown: how messages name it.

    Raises:
        OutputError: it cannot.
    """
    folder = next(parent for parent in path.parents if parent.exists())
    if not folder.is_dir():
        raise OutputError(
            f"{shown}: {str(folder)!r} is a file, and no folder can be made in it; name another output"
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(
            f"{shown}: the folder {str(folder)!r} cannot be written; name an output in another"
        )


@contextlib.contextmanager
def atomic_text_writer(output: PathLike) -> Iterator[TextIO]:
    """Yields a text file that becomes `output` at the end; where anything is raised, nothing is left behind.

    Written under a name of its own beside it, so that two programs with one output leave the file
    of one of them, whole. A link stays one: what it names is replaced. Folders above the output are
    made.
    """
    final = pathlib.Path(os.path.realpath(output))
    remove_stale_temporaries(final)
    created = [folder for folder in final.parents if not folder.exists()]
    temporary = temporary_path(final)
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            yield file
        os.replace(temporary, final)
    except BaseException:
        temporary.unlink(missing_ok=True)
        for folder in created:
            with contextlib.suppress(
                OSError
            ):  # another program may have put something there meanwhile
                folder.rmdir()
        raise


def temporary_path(target: pathlib.Path) -> pathlib.Path:
    """Returns a hidden name beside a target that no other process or thread, on any host, uses."""
    return target.with_name(
        f".{target.name}.{_HOST}-{threading.get_native_id()}-{os.getpid()}.incomplete"
    )


def remove_stale_temporaries(target: pathlib.Path) -> None:
    """Removes temporary files and folders of a target that a process of this host left, if it is no more.

    A restarted container may reuse process ids, so those under this process's own id and this
    thread's are removed too.
    """
    for left in target.parent.glob(f".{glob.escape(target.name)}.*.incomplete"):
        match = re.fullmatch(
            rf"{re.escape(_HOST)}-(\d+)-(\d+)",
            left.name.removesuffix(".incomplete").rpartition(".")[2],
        )
        if match is None:
            continue
        thread, process = int(match[1]), int(match[2])
        if _is_running(process) and (process, thread) != (os.getpid(), threading.get_native_id()):
            continue
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


# Marks of finished outputs: which job made a file, and that it holds what the job wrote.

_ATTRIBUTE = "user.stepaudio_jax.job"


def set_job_mark(path: PathLike, job: Mapping[str, Any]) -> None:
    """Marks a file that a job has written to its end, where the file system keeps marks."""
    if hasattr(os, "setxattr"):
        with contextlib.suppress(OSError):  # the file system keeps none
            os.setxattr(path, _ATTRIBUTE, _mark(path, job))


def has_job_mark(path: PathLike) -> bool:
    """Returns whether some job marked a file."""
    return bool(_read(path))


def is_finished_output_of(path: PathLike, job: Mapping[str, Any]) -> bool:
    """Returns whether a file is there already and is what this very job made, unchanged since.

    Raises:
        OutputError: it is there, and is not.
    """
    if not pathlib.Path(path).exists():
        return False
    if _read(path) == _mark(path, job):
        return True
    raise OutputError(
        f"--output={shorten(os.fspath(path))!r} exists already, and is not what this job makes (another input, model or "
        "setting, or changed since): name another file, or remove it first"
    )


def _read(path: PathLike) -> bytes:
    if hasattr(os, "getxattr"):
        with contextlib.suppress(OSError):  # it has none
            return os.getxattr(path, _ATTRIBUTE)
    return b""


def _mark(path: PathLike, job: Mapping[str, Any]) -> bytes:
    """Follows from the job and from what the file holds."""
    digest = hashlib.sha256(json.dumps(job, sort_keys=True).encode())
    digest.update(pathlib.Path(path).read_bytes())
    return digest.hexdigest().encode()


def check_output_directory(output: PathLike) -> None:
    """Checks, before the work and without touching anything, that a folder can be made and replaces nothing.

    Raises:
        OutputError: it exists and is not an empty folder, or the folder above it cannot be written.
    """
    path = pathlib.Path(output)
    shown = shorten(os.fspath(output))
    try:
        free = (path.is_dir() and not any(path.iterdir())) or not (
            path.exists() or path.is_symlink()
        )
    except OSError as error:
        raise OutputError(
            f"{shown} cannot be looked at ({error.strerror}); name another folder"
        ) from None
    if not free:
        raise OutputError(f"{shown} already exists; choose another output or remove it first")
    check_parent_writable(pathlib.Path(os.path.realpath(path)), shown)


@contextlib.contextmanager
def atomic_directory(output: PathLike) -> Iterator[pathlib.Path]:
    """Yields a temporary folder beside `output`, renamed to it at the end, removed if anything is raised.

    An empty folder may be there already; a link to one stays. Folders above the output are made.
    What processes that were killed left of earlier attempts is removed.
    """
    target = pathlib.Path(os.path.realpath(output))
    remove_stale_temporaries(target)
    created = [parent for parent in target.parents if not parent.exists()]
    temporary = temporary_path(target)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        temporary.rename(target)  # over an empty folder too
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        for parent in created:
            with contextlib.suppress(
                OSError
            ):  # another program may have put something there meanwhile
                parent.rmdir()
        raise
