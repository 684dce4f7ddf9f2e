"""What determines the lines of an output, its job: known before the model is loaded, so that none is done twice."""

import hashlib
import os
import pathlib
from typing import Any

import jax

from stepaudio_jax import hub
from stepaudio_jax.config import FloatDtype, ModelConfig
from stepaudio_jax.storage import expand_home

PathLike = str | os.PathLike[str]


def describe_job(
    program: str, input_path: PathLike, folder: PathLike, config: ModelConfig, **settings: Any
) -> dict[str, Any]:
    """Returns what determines the output of a program, JSON-ready.

    Args:
        program: its name.
        input_path: the file of dialogues; its content counts, not its name.
        folder: of the model.
        config: the model's shape.
        settings: whatever else changes what is written.
    """
    return {
        "program": program,
        "input": hashlib.sha256(
            pathlib.Path(expand_home(os.fspath(input_path))).read_bytes()
        ).hexdigest(),
        "model": [os.fspath(folder), hub.fingerprint_folder(folder), str(config)],
        "settings": settings,
    }


def default_dtype(dtype: FloatDtype | None) -> FloatDtype:
    """Returns the dtype of weights and computation: by default bfloat16, on a CPU float32, which is faster there."""
    return dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")
