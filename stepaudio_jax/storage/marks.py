"""Marks of finished outputs: which job made a file, and that it holds what the job wrote.

A mark is an extended attribute of the file, so it leaves nothing beside the output and goes where
the file goes. Some file systems keep none, and some programs do not copy them: such a file is taken
for another job's, and not replaced.
"""

import contextlib
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from stepaudio_jax.storage.outputs import OutputError, PathLike
from stepaudio_jax.storage.paths import shorten

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
