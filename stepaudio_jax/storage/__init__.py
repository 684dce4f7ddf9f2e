"""Paths that users give: home folders, outputs that replace nothing of theirs, and files that one process holds."""

from stepaudio_jax.storage.folders import atomic_folder, check_output_folder
from stepaudio_jax.storage.locks import HeldFile, LockHeldError, hold_file
from stepaudio_jax.storage.marks import has_mark, is_output_of, mark_output
from stepaudio_jax.storage.outputs import OutputError, atomic_writer, check_output_file, check_parent, check_same_file
from stepaudio_jax.storage.paths import expand_home, shorten, shorten_words, user_path

__all__ = [
    "HeldFile",
    "LockHeldError",
    "OutputError",
    "atomic_folder",
    "atomic_writer",
    "check_output_file",
    "check_output_folder",
    "check_parent",
    "check_same_file",
    "expand_home",
    "has_mark",
    "hold_file",
    "is_output_of",
    "mark_output",
    "shorten",
    "shorten_words",
    "user_path",
]
