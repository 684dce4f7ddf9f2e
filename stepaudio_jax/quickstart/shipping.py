"""A trained model as a folder that comes with the project."""

import contextlib
import pathlib
import shutil
from collections.abc import Iterator

import numpy as np

from stepaudio_jax import hub


@contextlib.contextmanager
def shipped(trained: pathlib.Path, output: pathlib.Path) -> Iterator[pathlib.Path]:
    """Exports a checkpoint in bfloat16; what it yields, with what is added to it, takes the place of `output` at the end."""
    fresh = output.with_name(f"{output.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    hub.export_weights(trained, fresh, dtype=np.dtype("bfloat16"))
    yield fresh
    shutil.rmtree(output, ignore_errors=True)
    output.parent.mkdir(parents=True, exist_ok=True)
    fresh.rename(output)
