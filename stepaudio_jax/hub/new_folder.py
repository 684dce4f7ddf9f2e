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
def new_folder(target: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a temporary folder beside the target, renamed to it at the end, removed if anything is raised.

    Raises:
        CheckpointError: the target exists and is not an empty folder.
    """
    require_absent(target)
    target = target.absolute()
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
