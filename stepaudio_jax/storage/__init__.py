"""Paths that users give: home folders, outputs that replace nothing of theirs, and files that one process holds."""

from stepaudio_jax.storage.files import (
    expand_home,
    format_path,
    shorten,
    shorten_words,
    user_path,
)
from stepaudio_jax.storage.locks import LockedFile, lock_file
from stepaudio_jax.storage.outputs import (
    PathLike,
    atomic_directory,
    atomic_text_writer,
    check_not_same_file,
    check_output_directory,
    check_output_file,
    check_parent_writable,
    has_job_mark,
    is_finished_output_of,
    set_job_mark,
)
from stepaudio_jax.storage.recognize_files import (
    CONVERT_SOUND,
    COPY_AGAIN,
    Finding,
    Purpose,
    recognize,
    recognize_file,
    recognize_values,
)
from stepaudio_jax.storage.recognize_folders import (
    recognize_folder,
    recognize_run,
    unfinished_download,
)

__all__ = [
    "CONVERT_SOUND",
    "COPY_AGAIN",
    "Finding",
    "LockedFile",
    "PathLike",
    "Purpose",
    "atomic_directory",
    "atomic_text_writer",
    "check_not_same_file",
    "check_output_directory",
    "check_output_file",
    "check_parent_writable",
    "expand_home",
    "format_path",
    "has_job_mark",
    "is_finished_output_of",
    "lock_file",
    "recognize",
    "recognize_file",
    "recognize_folder",
    "recognize_run",
    "recognize_values",
    "set_job_mark",
    "shorten",
    "shorten_words",
    "unfinished_download",
    "user_path",
]
