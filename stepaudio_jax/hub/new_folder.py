"""A folder of weights that appears whole or not at all."""

import contextlib
import os
import pathlib
import shutil
from collections.abc import Iterator

from stepaudio_jax.errors import CheckpointError, OutputError
from stepaudio_jax.storage import atomic_directory, check_output_directory


def check_output_available(target: pathlib.Path) -> None:
    """Refuses to write over anything but an empty folder, and where nothing can be written.

    Raises:
        CheckpointError: the target exists and is not an empty folder, or the folder above it cannot
            be written.
    """
    try:
        check_output_directory(target)
    except OutputError as error:
        raise CheckpointError(str(error)) from None


@contextlib.contextmanager
def new_checkpoint_directory(target: pathlib.Path, needed_bytes: int) -> Iterator[pathlib.Path]:
    """Yields a temporary folder beside the target, renamed to it at the end, removed if anything is raised.

    Args:
        target: the folder that will be.
        needed_bytes: what will be written, so that a disk that is too full is found before the
            work.

    Raises:
        CheckpointError: the target exists and is not an empty folder, or does not fit the disk.
    """
    check_output_available(target)
    disk = next(
        parent for parent in pathlib.Path(os.path.realpath(target)).parents if parent.exists()
    )
    free = shutil.disk_usage(disk).free
    if free < needed_bytes:
        raise CheckpointError(
            f"{target} needs {needed_bytes / 1e9:.1f} GB, and {disk} has {free / 1e9:.1f} GB free"
        )
    with atomic_directory(target) as temporary:
        yield temporary
