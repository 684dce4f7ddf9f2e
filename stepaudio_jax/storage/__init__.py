"""Paths that users give: home folders, outputs that replace nothing of theirs, and files that one process holds."""

from stepaudio_jax.storage.folders import atomic_directory, check_output_directory
from stepaudio_jax.storage.locks import LockedFile, LockHeldError, lock_file
from stepaudio_jax.storage.marks import has_job_mark, is_finished_output_of, set_job_mark
from stepaudio_jax.storage.outputs import (
    OutputError,
    atomic_text_writer,
    check_not_same_file,
    check_output_file,
    check_parent_writable,
)
from stepaudio_jax.storage.paths import expand_home, shorten, shorten_words, user_path

__all__ = [
    "LockHeldError",
    "LockedFile",
    "OutputError",
    "atomic_directory",
    "atomic_text_writer",
    "check_not_same_file",
    "check_output_directory",
    "check_output_file",
    "check_parent_writable",
    "expand_home",
    "has_job_mark",
    "is_finished_output_of",
    "lock_file",
    "set_job_mark",
    "shorten",
    "shorten_words",
    "user_path",
]
