"""What a file or a folder really is, where it is not what its name promises, and the one thing to do about it.

Readers of weights, tokenizers and sound ask here once they have failed, and only then: a good file
is never looked at twice.
"""

from stepaudio_jax.recognition.files import (
    CONVERT_SOUND,
    COPY_AGAIN,
    recognize,
    recognize_file,
    recognize_values,
)
from stepaudio_jax.recognition.finding import Finding, Purpose
from stepaudio_jax.recognition.folders import recognize_folder, recognize_run, unfinished_download

__all__ = [
    "CONVERT_SOUND",
    "COPY_AGAIN",
    "Finding",
    "Purpose",
    "recognize",
    "recognize_file",
    "recognize_folder",
    "recognize_run",
    "recognize_values",
    "unfinished_download",
]
