"""Publishes a trained model as a folder that ships with the project."""

import contextlib
import pathlib
import shutil
from collections.abc import Iterable, Iterator

import numpy as np

from stepaudio_jax import hub
from stepaudio_jax.errors import OutputError
from stepaudio_jax.storage import Path, check_not_same_file, check_output_directory


def check_replaceable_model(output: pathlib.Path, inputs: Iterable[str | None] = ()) -> None:
    """Checks that a folder can be written: it is a model, an empty folder, or does not exist.

    Args:
        output: the folder.
        inputs: folders that are read, which `output` must not be; None is ignored.

    Raises:
        OutputError: it is another folder or a file, is one of the inputs, or cannot be created.
    """
    for source in filter(None, inputs):
        check_not_same_file(output, source)
    if output.is_dir() and any(output.iterdir()):
        is_model = hub.is_checkpoint(output) or (
            (output / "config.json").is_file() and any(output.glob("*.safetensors"))
        )
        if not is_model:
            raise OutputError(
                f"{output} exists and holds no model that could be replaced: name another folder, "
                "or remove it"
            )
        return
    check_output_directory(output)


@contextlib.contextmanager
def publish_model(trained: Path, output: pathlib.Path) -> Iterator[pathlib.Path]:
    """Exports a checkpoint in bfloat16 and replaces `output` by it when the block ends.

    Yields:
        The exported folder, to which the block can add files.
    """
    check_replaceable_model(output)
    exported = output.with_name(f".{output.name}.new")
    shutil.rmtree(exported, ignore_errors=True)
    hub.export_weights(trained, exported, dtype=np.dtype("bfloat16"))
    yield exported
    check_replaceable_model(output)
    shutil.rmtree(output, ignore_errors=True)
    output.parent.mkdir(parents=True, exist_ok=True)
    exported.rename(output)
