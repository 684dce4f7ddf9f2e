"""This project's checkpoint folder: `config.json`, `tokenizer/`, and `parameters/`, an Orbax checkpoint of the tree.

Where LoRA has trained the decoder, `parameters/` holds the matrices as they were before, and
`adapter/` what it has learnt, in PEFT's form: bf16 weights cannot hold their sum. Whoever reads the
parameters adds it, or keeps it beside them.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from stepaudio_jax.config import ConfigError, LoRAConfig, ModelConfig, build, to_dict
from stepaudio_jax.hub.errors import CheckpointError
from stepaudio_jax.hub.hugging_face_config import CONFIG, read_json
from stepaudio_jax.recognition import COPY_AGAIN, recognize_folder

CHECKPOINT_FORMAT = "stepaudio_jax checkpoint"
CHECKPOINT_VERSION = 1
CHECKPOINT_VERSION_WITH_ADAPTER = (
    2  # so that what knows of no adapters does not take the parameters for all of the model
)
PARAMETERS = "parameters"
TOKENIZER = "tokenizer"
ORBAX_ITEM = "state"  # the name under which ocp.save keeps a tree


def is_checkpoint(folder: pathlib.Path) -> bool:
    """Whether the folder is one of this project's checkpoints."""
    try:
        return json.loads((folder / CONFIG).read_bytes()).get("format") == CHECKPOINT_FORMAT
    except (OSError, ValueError, AttributeError):
        return False


def write_checkpoint_config(
    folder: pathlib.Path,
    config: ModelConfig,
    sources: Mapping[str, str],
    adapter: LoRAConfig | None = None,
) -> None:
    """Writes `config.json`.

    Args:
        folder: an existing one.
        config: the model's shape.
        sources: in words, where each part's weights came from.
        adapter: of the adapter beside the parameters, if any.
    """
    version = CHECKPOINT_VERSION if adapter is None else CHECKPOINT_VERSION_WITH_ADAPTER
    values = {
        "format": CHECKPOINT_FORMAT,
        "version": version,
        "model": to_dict(config),
        "sources": dict(sources),
    }
    if adapter is not None:
        values["adapter"] = {
            name: to_dict(getattr(adapter, name)) for name in ("rank", "alpha", "targets")
        }
    (folder / CONFIG).write_text(json.dumps(values, indent=2) + "\n")


def read_checkpoint_config(folder: pathlib.Path) -> ModelConfig:
    """The model's shape, from `config.json`.

    Raises:
        CheckpointError: naming the file and the key.
    """
    file = folder / CONFIG
    values = _read_versioned(file)
    try:
        return build(ModelConfig, values.get("model", {}), key="model")
    except ConfigError as error:
        raise CheckpointError(f"{file}: {error}") from None


def checkpoint_lora_config(folder: pathlib.Path) -> LoRAConfig | None:
    """Returns rank, alpha and targets of the adapter beside a checkpoint's parameters; None where there is none.

    Raises:
        CheckpointError: `config.json` cannot be read; the message names the key.
    """
    values = _read_versioned(folder / CONFIG).get("adapter")
    try:
        return None if values is None else build(LoRAConfig, values, key="adapter")
    except ConfigError as error:
        raise CheckpointError(f"{folder / CONFIG}: {error}") from None


def _read_versioned(file: pathlib.Path) -> dict[str, Any]:
    values = read_json(file)
    expected = CHECKPOINT_VERSION_WITH_ADAPTER if "adapter" in values else CHECKPOINT_VERSION
    if values.get("version") != expected:
        raise CheckpointError(
            f"{file}: version={values.get('version')!r} is not {expected}; update stepaudio-jax"
        )
    return values


def check_is_checkpoint(folder: pathlib.Path) -> None:
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
    """Returns where a checkpoint folder's tree lies (see `OrbaxReader`).

    Raises:
        CheckpointError: the folder has a configuration and no parameters.
    """
    directory = checkpoint / PARAMETERS / ORBAX_ITEM
    if not directory.is_dir():
        reason = (
            recognize_folder(checkpoint, "weights")
            or f"has no {PARAMETERS}/{ORBAX_ITEM}; {COPY_AGAIN}"
        )
        raise CheckpointError(f"{checkpoint} {reason}")
    return directory
