"""Reads and writes this project's checkpoint folders, and the tokenizers in folders of weights.

A checkpoint has `config.json`, `tokenizer/`, and `parameters/`, an Orbax checkpoint of the tree. If
LoRA has trained the decoder, `parameters/` has the matrices as they were before, and `adapter/` has
the trained LoRA matrices in PEFT's form, since bf16 weights cannot represent the sum. The reader
of the parameters merges the adapter, or keeps it separate.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from jax.experimental import multihost_utils

from stepaudio_jax.config import LoRAConfig, ModelConfig, build, to_dict
from stepaudio_jax.errors import CheckpointError, ConfigError, OutputError
from stepaudio_jax.hub.hf_config import CONFIG
from stepaudio_jax.hub.orbax_io import ORBAX_ITEM, ArrayReader, check_parameters, write_parameters
from stepaudio_jax.hub.peft_adapter import ADAPTER, Adapter, write_adapter
from stepaudio_jax.hub.tensor_map import flatten, parameter_shapes, unflatten
from stepaudio_jax.parallel import broadcast_json
from stepaudio_jax.storage import (
    COPY_AGAIN,
    BucketPath,
    Path,
    PathLike,
    atomic_directory,
    check_output_directory,
    copy_file,
    is_finished_folder,
    read_json,
    read_json_or_none,
    recognize_folder,
    remove_folder,
    to_path,
    write_json,
)
from stepaudio_jax.text import Tokenizer

CHECKPOINT_FORMAT = "stepaudio_jax checkpoint"
CHECKPOINT_VERSION = 1
# Readers that know no adapters must not take the parameters for the whole model.
CHECKPOINT_VERSION_WITH_ADAPTER = 2
PARAMETERS = "parameters"
TOKENIZER = "tokenizer"
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
)


def load_tokenizer(folder: PathLike) -> Tokenizer:
    """Loads the tokenizer of a checkpoint, a Hugging Face folder, or a folder of tokenizer files.

    Raises:
        TextError: the folder has none, or it cannot be read.
    """
    return Tokenizer.from_folder(tokenizer_folder(to_path(folder)))


def tokenizer_folder(folder: Path) -> Path:
    """Returns the folder of the tokenizer's files."""
    return folder / TOKENIZER if is_checkpoint(folder) else folder


def copy_tokenizer(source: Path, target: Path, tokenizer: Tokenizer) -> None:
    """Copies a tokenizer's files unchanged, and writes this project's chat template.

    Args:
        source: the folder of the files.
        target: the folder to copy to, created if it does not exist.
        tokenizer: the one in `source`.

    Raises:
        CheckpointError: there are no files.
    """
    files = [source / name for name in _TOKENIZER_FILES if (source / name).is_file()]
    if not files:
        raise CheckpointError(f"{source} has no tokenizer files")
    target.mkdir(exist_ok=True)
    for file in files:
        copy_file(file, target / file.name)
    tokenizer.save_chat_template(target)


def check_vocab_size(tokenizer: Tokenizer, vocab_size: int) -> None:
    """Checks that every token of a tokenizer has a row in the embedding.

    Raises:
        CheckpointError: says how many rows it needs.
    """
    if tokenizer.required_vocab_size > vocab_size:
        raise CheckpointError(
            f"the tokenizer writes tokens up to {tokenizer.required_vocab_size - 1} and the"
            f" vocabulary has {vocab_size} rows; it needs at least"
            f" {tokenizer.required_vocab_size}: choose another tokenizer, or a model with a larger"
            " decoder.vocab_size"
        )


def is_checkpoint(folder: Path) -> bool:
    """Returns whether a folder is one of this project's checkpoints.

    Raises:
        CheckpointError: it is in a bucket, and still being written.
    """
    check_finished_folder(folder)
    values = read_json_or_none(folder / CONFIG)
    return isinstance(values, dict) and values.get("format") == CHECKPOINT_FORMAT


def check_finished_folder(folder: Path) -> None:
    """Checks that a folder in a bucket is not still being written.

    Raises:
        CheckpointError: it is, or its writer was killed.
    """
    if isinstance(folder, BucketPath) and not is_finished_folder(folder) and folder.is_dir():
        raise CheckpointError(f"{folder} {recognize_folder(folder, 'weights')}")


def write_checkpoint_config(
    folder: Path,
    config: ModelConfig,
    sources: Mapping[str, str],
    adapter: LoRAConfig | None = None,
) -> None:
    """Writes `config.json`.

    Args:
        folder: an existing one.
        config: the model's shape.
        sources: in words, where the weights of each part came from.
        adapter: rank, alpha and targets of the checkpoint's adapter, if it has one.
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
    write_json(folder / CONFIG, values)


def read_checkpoint_config(folder: Path) -> ModelConfig:
    """Reads the model's shape from `config.json`.

    Raises:
        CheckpointError: names the file and the key.
    """
    file = folder / CONFIG
    values = _read_versioned(file)
    try:
        return build(ModelConfig, values.get("model", {}), key="model")
    except ConfigError as error:
        raise CheckpointError(f"{file}: {error}") from None


def checkpoint_lora_config(folder: Path) -> LoRAConfig | None:
    """Returns rank, alpha and targets of a checkpoint's adapter; None if it has none.

    Raises:
        CheckpointError: `config.json` cannot be read; the message names the key.
    """
    values = _read_versioned(folder / CONFIG).get("adapter")
    try:
        return None if values is None else build(LoRAConfig, values, key="adapter")
    except ConfigError as error:
        raise CheckpointError(f"{folder / CONFIG}: {error}") from None


def _read_versioned(file: Path) -> dict[str, Any]:
    values = read_json(file, CheckpointError)
    expected = CHECKPOINT_VERSION_WITH_ADAPTER if "adapter" in values else CHECKPOINT_VERSION
    if values.get("version") != expected:
        raise CheckpointError(
            f"{file}: version={values.get('version')!r} is not {expected}; update stepaudio-jax"
        )
    return values


def check_is_checkpoint(folder: Path) -> None:
    """Checks that a folder is one of this project's checkpoints.

    Raises:
        CheckpointError: says what it is instead, and what to do.
    """
    if is_checkpoint(folder):
        return
    finding = recognize_folder(folder, "weights")
    reason = f": it {finding}" if finding else ""
    raise CheckpointError(f"{folder} is not a checkpoint made by `import` or by training{reason}")


def parameters_directory(checkpoint: Path) -> Path:
    """Returns the folder of a checkpoint's parameter tree (see `OrbaxReader`).

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


def save_checkpoint(
    target: PathLike,
    parameters: Mapping[str, Any],
    config: ModelConfig,
    tokenizer: Tokenizer,
    *,
    source: str,
    adapter: Adapter | None = None,
) -> None:
    """Writes a model in memory as a checkpoint folder, which appears whole or not at all.

    All processes of a run call it, and each writes the shards of the parameters that it holds.

    Args:
        target: must not exist, or be an empty folder.
        parameters: the model's tree; every part must be there.
        config: its shape.
        tokenizer: its tokenizer.
        source: in words, where the weights came from.
        adapter: a LoRA adapter that is not merged into `parameters`, to be kept beside them.

    Raises:
        CheckpointError: a parameter is missing or misshapen.
        OutputError: the target exists, or cannot be written.
    """
    reader = ArrayReader(parameters)
    check_parameters(reader, config)
    shapes = parameter_shapes(config)
    needed_bytes = sum(
        math.prod(shape) * reader.dtype(path).itemsize for path, shape in shapes.items()
    )
    leaves = flatten(parameters)
    with _broadcast_directory(to_path(target), needed_bytes) as folder:
        write_parameters(folder / PARAMETERS, unflatten({path: leaves[path] for path in shapes}))
        if jax.process_index() == 0:
            tokenizer.save(folder / TOKENIZER)
            if adapter is not None:
                (folder / ADAPTER).mkdir()
                write_adapter(folder / ADAPTER, adapter)
            lora = None if adapter is None else adapter.lora
            write_checkpoint_config(folder, config, dict.fromkeys(parameters, source), lora)


def save_config_and_tokenizer(
    target: Path,
    config: ModelConfig,
    tokenizer: Tokenizer,
    adapter: LoRAConfig | None = None,
) -> None:
    """Writes a checkpoint folder without parameters, for parameters that are stored elsewhere.

    It replaces a folder that exists. `read_model_config`, `load_tokenizer` and
    `checkpoint_lora_config` read it.
    """
    remove_folder(target)
    with atomic_directory(target) as folder:
        tokenizer.save(folder / TOKENIZER)
        write_checkpoint_config(folder, config, {}, adapter)


@contextlib.contextmanager
def _broadcast_directory(target: Path, needed_bytes: int) -> Iterator[Path]:
    """Yields the same temporary folder to all processes, which becomes `target` at the end.

    The first process creates and renames it; where it cannot, all processes raise its error.
    """
    if jax.process_index() == 0:
        with contextlib.ExitStack() as stack:
            try:
                check_output_directory(target)
                folder = stack.enter_context(atomic_directory(target, needed_bytes))
            except (OutputError, OSError) as error:
                broadcast_json({"problem": str(error)})
                raise
            broadcast_json({"folder": str(folder)})
            yield folder
            multihost_utils.sync_global_devices("checkpoint written")
    else:
        reply = broadcast_json(None)
        if "problem" in reply:
            raise OutputError(reply["problem"])
        yield to_path(reply["folder"])
        multihost_utils.sync_global_devices("checkpoint written")
    multihost_utils.sync_global_devices("checkpoint renamed")
