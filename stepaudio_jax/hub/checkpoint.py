"""This project's checkpoint folder: `config.json`, `tokenizer/`, and `parameters/`, an Orbax checkpoint of the tree."""

import json
import pathlib
from collections.abc import Mapping

from stepaudio_jax.config import ConfigError, ModelConfig, build, to_dict
from stepaudio_jax.hub.errors import CheckpointError
from stepaudio_jax.hub.hugging_face_config import CONFIG, read_json
from stepaudio_jax.recognition import COPY_AGAIN, recognize_folder

FORMAT = "stepaudio_jax checkpoint"
VERSION = 1
PARAMETERS = "parameters"
TOKENIZER = "tokenizer"
ORBAX_ITEM = "state"  # the name under which ocp.save keeps a tree


def is_checkpoint(folder: pathlib.Path) -> bool:
    """Whether the folder is one of this project's checkpoints."""
    try:
        return json.loads((folder / CONFIG).read_bytes()).get("format") == FORMAT
    except (OSError, ValueError, AttributeError):
        return False


def write_checkpoint_config(folder: pathlib.Path, config: ModelConfig, sources: Mapping[str, str]) -> None:
    """Writes `config.json`; `sources` says in words where each part's weights came from."""
    values = {"format": FORMAT, "version": VERSION, "model": to_dict(config), "sources": dict(sources)}
    (folder / CONFIG).write_text(json.dumps(values, indent=2) + "\n")


def read_checkpoint_config(folder: pathlib.Path) -> ModelConfig:
    """The model's shape, from `config.json`.

    Raises:
        CheckpointError: naming the file and the key.
    """
    file = folder / CONFIG
    values = read_json(file)
    if values.get("version") != VERSION:
        raise CheckpointError(f"{file}: version={values.get('version')!r} is not {VERSION}; update stepaudio-jax")
    try:
        return build(ModelConfig, values.get("model", {}), key="model")
    except ConfigError as error:
        raise CheckpointError(f"{file}: {error}") from None


def require_checkpoint(folder: pathlib.Path) -> None:
    """Refuses a folder that is not one of this project's checkpoints.

    Raises:
        CheckpointError: saying what it is instead, and what to do.
    """
    if is_checkpoint(folder):
        return
    finding = recognize_folder(folder, "weights")
    reason = f": it {finding}" if finding else ""
    raise CheckpointError(f"{folder} is not a checkpoint made by `import` or by training{reason}")


def parameters_directory(checkpoint: pathlib.Path) -> pathlib.Path:
    """Where a checkpoint folder's tree lies (see `StoredReader`).

    Raises:
        CheckpointError: the folder has a configuration and no parameters.
    """
    directory = checkpoint / PARAMETERS / ORBAX_ITEM
    if not directory.is_dir():
        reason = recognize_folder(checkpoint, "weights") or f"has no {PARAMETERS}/{ORBAX_ITEM}; {COPY_AGAIN}"
        raise CheckpointError(f"{checkpoint} {reason}")
    return directory
