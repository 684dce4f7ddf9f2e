"""A folder that appears whole or not at all."""

import contextlib
import os
import pathlib
import shutil
from collections.abc import Iterator

from stepaudio_jax.hub.errors import CheckpointError


def require_absent(target: pathlib.Path) -> None:
    """Refuses to write over anything but an empty folder.

    Raises:
        CheckpointError: the target exists and is not an empty folder.
    """
    if target.is_dir() and not any(target.iterdir()):
        return
    if target.exists() or target.is_symlink():
        raise CheckpointError(f"{target} already exists; choose another output or remove it first")


@contextlib.contextmanager
def new_folder(target: pathlib.Path, needed_bytes: int) -> Iterator[pathlib.Path]:
    """Yields a temporary folder beside the target, renamed to it at the end, removed if anything is raised.

    Args:
        target: the folder that will be.
        needed_bytes: what will be written, so that a disk that is too full is found before the work.

    Raises:
        CheckpointError: the target exists and is not an empty folder, or does not fit the disk.
    """
    require_absent(target)
    target = target.absolute()
    _remove_what_killed_processes_left(target)
    disk = next(parent for parent in target.parents if parent.exists())
    free = shutil.disk_usage(disk).free
    if free < needed_bytes:
        raise CheckpointError(f"{target} needs {needed_bytes / 1e9:.1f} GB, and {disk} has {free / 1e9:.1f} GB free")
    created = [parent for parent in target.parents if not parent.exists()]
    temporary = target.with_name(f".{target.name}.{os.getpid()}.incomplete")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        temporary.rename(target)  # over an empty folder too
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        for parent in created:
            with contextlib.suppress(OSError):  # another program may have put something there meanwhile
                parent.rmdir()
        raise


def _remove_what_killed_processes_left(target: pathlib.Path) -> None:
    """Temporary folders of the target whose process is no more: one was killed, and a container gives numbers again."""
    for left in target.parent.glob(f".{target.name}.*.incomplete"):
        number = left.name.removesuffix(".incomplete").rpartition(".")[2]
        if number.isdigit() and (int(number) == os.getpid() or not _is_running(int(number))):
            shutil.rmtree(left, ignore_errors=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True
