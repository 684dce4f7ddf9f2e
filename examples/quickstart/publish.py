"""A trained model as a folder that comes with the project."""

import contextlib
import pathlib
import shutil
from collections.abc import Iterable, Iterator

import numpy as np

from stepaudio_jax import hub
from stepaudio_jax.errors import OutputError
from stepaudio_jax.storage import check_not_same_file, check_output_directory


def check_replaceable_model(output: pathlib.Path, inputs: Iterable[str] = ()) -> None:
    """Checks that a folder is a model's, which a new one may replace, or is not there; and that nothing is read from it.

    Raises:
        OutputError: it is another folder or a file, one of the inputs, or cannot be made.
    """
    for given in filter(None, inputs):
        check_not_same_file(output, given)
    if output.is_dir() and any(output.iterdir()):
        is_model = hub.is_checkpoint(output) or (
            (output / "config.json").is_file() and any(output.glob("*.safetensors"))
        )
        if not is_model:
            raise OutputError(
                f"{output} exists and holds no model that could be replaced: name another folder, or remove it"
            )
        return
    check_output_directory(output)


@contextlib.contextmanager
def publish_model(trained: pathlib.Path, output: pathlib.Path) -> Iterator[pathlib.Path]:
    """Exports a checkpoint in bfloat16; what it yields, with what is added to it, takes the place of `output` at the end."""
    check_replaceable_model(output)
    fresh = output.with_name(f".{output.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    hub.export_weights(trained, fresh, dtype=np.dtype("bfloat16"))
    yield fresh
    check_replaceable_model(output)
    shutil.rmtree(output, ignore_errors=True)
    output.parent.mkdir(parents=True, exist_ok=True)
    fresh.rename(output)
