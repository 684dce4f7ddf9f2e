"""Parameters in memory -> a checkpoint folder."""

import contextlib
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from jax.experimental import multihost_utils

from stepaudio_jax.config import LoRAConfig, ModelConfig
from stepaudio_jax.hub.adapter import ADAPTER, Adapter, write_adapter
from stepaudio_jax.hub.checkpoint import PARAMETERS, TOKENIZER, write_checkpoint_config
from stepaudio_jax.hub.errors import CheckpointError
from stepaudio_jax.hub.new_folder import new_checkpoint_directory
from stepaudio_jax.hub.parameter_reader import ArrayReader, check_parameters
from stepaudio_jax.hub.parameter_writer import OrbaxBlockWriter, ParameterSpec, write_tree_structure
from stepaudio_jax.hub.tensor_names import STEP_AUDIO, parameter_shapes, tensors
from stepaudio_jax.parallel import broadcast_json
from stepaudio_jax.text import Tokenizer


def save_checkpoint(
    target: str | pathlib.Path,
    parameters: Mapping[str, Any],
    config: ModelConfig,
    tokenizer: Tokenizer,
    *,
    source: str,
    adapter: Adapter | None = None,
) -> None:
    """Writes a checkpoint folder, whole or not at all.

    With several processes every one calls this, and the first one writes.

    Args:
        target: must not exist, or be an empty folder.
        parameters: the model's tree; every part must be there.
        config: its shape.
        tokenizer: its tokenizer.
        source: in words, where the weights came from.
        adapter: what is to stay beside the decoder's matrices, which are then those without it.

    Raises:
        CheckpointError: the target exists, or a parameter is missing or misshapen.
    """
    reader = ArrayReader(parameters)
    check_parameters(reader, config)
    shapes = parameter_shapes(config)
    layout = {
        tensor.path: ParameterSpec(
            shapes[tensor.path], reader.dtype(tensor.path), tensor.chunk_shape()
        )
        for tensor in tensors(config, STEP_AUDIO)
    }
    if jax.process_index() != 0:
        told = broadcast_json(None)
        if "problem" in told:
            raise CheckpointError(told["problem"])
        write_tree_structure(pathlib.Path(told["folder"]) / PARAMETERS, layout)
        for tensor in tensors(config, STEP_AUDIO):
            for block in tensor.blocks():
                reader.read(tensor.path, block.index)
        multihost_utils.sync_global_devices("checkpoint written")
        return
    with _broadcast_new_directory(
        pathlib.Path(target), sum(parameter.bytes for parameter in layout.values())
    ) as folder:
        with OrbaxBlockWriter(folder / PARAMETERS, layout) as writer:
            for tensor in tensors(config, STEP_AUDIO):
                for block in tensor.blocks():
                    writer.write(tensor.path, block.index, reader.read(tensor.path, block.index))
        tokenizer.save(folder / TOKENIZER)
        if adapter is not None:
            (folder / ADAPTER).mkdir()
            write_adapter(folder / ADAPTER, adapter)
        lora = None if adapter is None else adapter.lora
        write_checkpoint_config(folder, config, dict.fromkeys(parameters, source), lora)
    multihost_utils.sync_global_devices("checkpoint written")


def save_config_and_tokenizer(
    target: pathlib.Path,
    config: ModelConfig,
    tokenizer: Tokenizer,
    adapter: LoRAConfig | None = None,
) -> None:
    """Writes a checkpoint folder without parameters, for those that lie elsewhere, in place of one that is there already.

    `read_model_config`, `load_tokenizer` and `checkpoint_lora_config` read it.
    """
    shutil.rmtree(target, ignore_errors=True)
    with new_checkpoint_directory(target, needed_bytes=0) as folder:
        tokenizer.save(folder / TOKENIZER)
        write_checkpoint_config(folder, config, {}, adapter)


@contextlib.contextmanager
def _broadcast_new_directory(target: pathlib.Path, needed_bytes: int) -> Iterator[pathlib.Path]:
    """`new_checkpoint_directory`; the other processes are told where it is, or why it is not."""
    with contextlib.ExitStack() as stack:
        try:
            folder = stack.enter_context(new_checkpoint_directory(target, needed_bytes))
        except CheckpointError as error:
            broadcast_json({"problem": str(error)})
            raise
        broadcast_json({"folder": str(folder)})
        yield folder
