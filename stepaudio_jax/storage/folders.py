"""Folders that appear whole or not at all."""

import contextlib
import os
import pathlib
import shutil
from collections.abc import Iterator

from stepaudio_jax.storage.outputs import (
    OutputError,
    PathLike,
    check_parent_writable,
    remove_stale_temporaries,
    temporary_path,
)
from stepaudio_jax.storage.paths import shorten


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
