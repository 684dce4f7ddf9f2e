"""A model -> a Hugging Face folder in the Step-Audio format; its adapter -> a PEFT folder."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepaudio_jax.config import ModelConfig
from stepaudio_jax.hub.adapter import Adapter, matrices_by_path, merge_lora_block, write_adapter
from stepaudio_jax.hub.checkpoint import parameters_directory, read_checkpoint_config
from stepaudio_jax.hub.errors import CheckpointError
from stepaudio_jax.hub.hugging_face_config import CONFIG, HFConfigForm, to_hf_config
from stepaudio_jax.hub.new_folder import new_checkpoint_directory
from stepaudio_jax.hub.parameter_reader import OrbaxReader, ParameterReader, check_parameters
from stepaudio_jax.hub.pipeline import ProgressCallback, ordered_parallel_map
from stepaudio_jax.hub.read_weights import read_source_adapter
from stepaudio_jax.hub.safetensors_reader import SAFETENSORS_DTYPES
from stepaudio_jax.hub.safetensors_writer import ShardWriter, TensorSpec
from stepaudio_jax.hub.tensor_names import STEP_AUDIO, Block, BlockIndex, ParamPath, Tensor, tensors
from stepaudio_jax.hub.tokenizer_files import (
    check_vocab_size,
    copy_tokenizer,
    load_tokenizer,
    tokenizer_folder,
)
from stepaudio_jax.text import Tokenizer

MAX_SHARD_BYTES = 5 * 10**9
_TEMPERATURE = 0.7  # the released generation setting


def export_weights(
    source: str | pathlib.Path,
    output: str | pathlib.Path,
    *,
    dtype: np.dtype[Any] | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    form: HFConfigForm = "nested",
    remote_code: str = "",
    progress: ProgressCallback = lambda done, total: None,
) -> None:
    """Exports one of this project's checkpoint folders; the rest as in `export_parameters`.

    An adapter beside its decoder is merged into it in fp32. Where no `dtype` is named all weights
    are then exported in fp32, for in bf16 what is small beside a weight would be lost.
    """
    source = pathlib.Path(source)
    adapter = read_source_adapter(source)
    reader: ParameterReader = OrbaxReader(parameters_directory(source))
    if adapter is not None:
        reader, dtype = LoRAMergingReader(reader, adapter), dtype or np.dtype(np.float32)
    export_parameters(
        reader,
        read_checkpoint_config(source),
        tokenizer_folder(source),
        output,
        dtype=dtype,
        max_shard_bytes=max_shard_bytes,
        form=form,
        remote_code=remote_code,
        progress=progress,
    )


def export_adapter(
    source: str | pathlib.Path, output: str | pathlib.Path, *, base: str = ""
) -> Adapter:
    """Writes the adapter of one of this project's checkpoint folders as a PEFT folder; returns it.

    Args:
        source: the checkpoint.
        output: the folder to create.
        base: the model that the adapter is for, as PEFT is to name it; what the checkpoint says if
            empty.

    Raises:
        CheckpointError: the checkpoint has no adapter, or the output exists. Nothing is written.
    """
    adapter = read_source_adapter(pathlib.Path(source))
    if adapter is None:
        raise CheckpointError(
            f"{source} has no adapter: LoRA has not trained its decoder, or a later stage has merged it "
            "(launch.checkpoint RUN_DIR --stage NAME takes the model out of the stage that has one)"
        )
    adapter = dataclasses.replace(adapter, base=base or adapter.base)
    size = sum(leaf.nbytes for pair in matrices_by_path(adapter).values() for leaf in pair.values())
    with new_checkpoint_directory(pathlib.Path(output), size) as folder:
        write_adapter(folder, adapter)
    return adapter


class LoRAMergingReader:
    """Parameters with an adapter added to those that it adapts, in fp32, as they are read.

    Args:
        parameters: without it.
        adapter: on the host.
    """

    def __init__(self, parameters: ParameterReader, adapter: Adapter):
        self._parameters = parameters
        self._pairs = matrices_by_path(adapter)
        self._scale = adapter.lora.scale

    def shape(self, path: ParamPath) -> tuple[int, ...]:
        """Returns the shape of a parameter; CheckpointError where there is none."""
        return self._parameters.shape(path)

    def dtype(self, path: ParamPath) -> np.dtype[Any]:
        """Returns the dtype of a parameter."""
        return np.dtype(np.float32) if path in self._pairs else self._parameters.dtype(path)

    def read(self, path: ParamPath, index: BlockIndex) -> NDArray[Any]:
        """A block of a parameter."""
        block = self._parameters.read(path, index)
        return (
            merge_lora_block(block, self._pairs[path], self._scale, index)
            if path in self._pairs
            else block
        )


def export_parameters(
    parameters: ParameterReader,
    config: ModelConfig,
    tokenizer: Tokenizer | pathlib.Path,
    output: str | pathlib.Path,
    *,
    dtype: np.dtype[Any] | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    form: HFConfigForm = "nested",
    remote_code: str = "",
    progress: ProgressCallback = lambda done, total: None,
) -> None:
    """Exports parameters, wherever they are, to a folder that Hugging Face and vLLM loaders accept.

    Writes safetensors shards and their index, `config.json`, `generation_config.json` and the
    tokenizer's files.

    Args:
        parameters: read a block at a time (`ArrayReader` for a tree in memory, `OrbaxReader` for an
        Orbax checkpoint).
        config: the shape of the model.
        tokenizer: the tokenizer, or a folder whose tokenizer files are copied as they are.
        output: the folder to create.
        dtype: what the weights are cast to; None keeps them as they are.
        max_shard_bytes: of the tensors in one shard; a tensor that is larger gets a shard of its
        own.
        form: of `config.json`, "nested" (Step-Audio-2) or "flat" (Step-Audio-R1).
        remote_code: a Hub repository with the modelling code, named in `config.json` for
        `trust_remote_code`.
        progress: called as bytes are written.

    Raises:
        CheckpointError: a parameter is missing or misshapen, or the output exists. Nothing is
            written.
    """
    loaded = load_tokenizer(tokenizer) if isinstance(tokenizer, pathlib.Path) else tokenizer
    check_vocab_size(loaded, config.decoder.vocab_size)
    check_parameters(parameters, config)
    planned = [
        TensorSpec(
            tensor.name, tensor.shape, dtype or _supported(parameters.dtype(tensor.path), tensor)
        )
        for tensor in tensors(config, STEP_AUDIO)
    ]
    with new_checkpoint_directory(
        pathlib.Path(output), sum(tensor.bytes for tensor in planned)
    ) as folder:
        if isinstance(tokenizer, pathlib.Path):
            copy_tokenizer(tokenizer, folder, loaded)
        else:
            tokenizer.save(folder)
        name = str(
            next(tensor.dtype for tensor in planned if tensor.name == "model.embed_tokens.weight")
        )
        write_config_files(folder, config, loaded, dtype=name, form=form, remote_code=remote_code)
        _write_tensors(folder, parameters, config, planned, max_shard_bytes, progress)


def write_config_files(
    folder: pathlib.Path,
    config: ModelConfig,
    tokenizer: Tokenizer,
    *,
    dtype: str,
    form: HFConfigForm,
    remote_code: str = "",
) -> None:
    """Writes `config.json` and `generation_config.json`."""
    special = tokenizer.special
    described = to_hf_config(
        config, dtype=dtype, eos=special.pad, pad=special.pad, form=form, remote_code=remote_code
    )
    generation = {
        "do_sample": True,
        "temperature": _TEMPERATURE,
        "eos_token_id": [special.eot],
        "pad_token_id": special.pad,
    }
    _write_json(folder / CONFIG, described)
    _write_json(folder / "generation_config.json", generation)


def _write_tensors(
    folder: pathlib.Path,
    parameters: ParameterReader,
    config: ModelConfig,
    planned: list[TensorSpec],
    max_shard_bytes: int,
    progress: ProgressCallback,
) -> None:
    def prepare(item: tuple[Tensor, np.dtype[Any], Block]) -> NDArray[Any]:
        tensor, dtype, block = item
        values = parameters.read(tensor.path, block.index)
        return tensor.from_parameter(values.astype(dtype, copy=False), block)

    blocks = (
        (tensor, plan.dtype, block)
        for tensor, plan in zip(tensors(config, STEP_AUDIO), planned, strict=True)
        for block in tensor.blocks()
    )
    total = sum(plan.bytes for plan in planned)
    done = 0
    with ShardWriter(folder, planned, max_shard_bytes) as writer:
        for rows in ordered_parallel_map(prepare, blocks):
            writer.append(rows)
            done += rows.nbytes
            progress(done, total)


def _supported(dtype: np.dtype[Any], tensor: Tensor) -> np.dtype[Any]:
    if dtype not in SAFETENSORS_DTYPES.values():
        raise CheckpointError(
            f"parameter {'/'.join(tensor.path)} is {dtype}; choose a dtype to export in"
        )
    return dtype


def _write_json(file: pathlib.Path, values: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(values, indent=2) + "\n")
