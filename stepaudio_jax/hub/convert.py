"""Converts Hugging Face folders to checkpoints of this project, and back.

Weights are read and written a block at a time, so memory does not grow with the model.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepaudio_jax.config import ModelConfig, Part
from stepaudio_jax.errors import CheckpointError
from stepaudio_jax.hub.checkpoint import (
    PARAMETERS,
    TOKENIZER,
    check_vocab_size,
    copy_tokenizer,
    load_tokenizer,
    parameters_directory,
    read_checkpoint_config,
    tokenizer_folder,
    write_checkpoint_config,
)
from stepaudio_jax.hub.hf_config import HFConfigForm, write_config_files
from stepaudio_jax.hub.hf_folder import HFFolder
from stepaudio_jax.hub.io import ProgressCallback, ordered_parallel_map, read_ahead
from stepaudio_jax.hub.load import read_source_adapter
from stepaudio_jax.hub.orbax_io import (
    OrbaxBlockWriter,
    OrbaxReader,
    ParameterReader,
    ParameterSpec,
    check_parameters,
)
from stepaudio_jax.hub.peft_adapter import (
    ADAPTER,
    Adapter,
    matrices_by_path,
    merge_lora_block,
    read_adapter,
    write_adapter,
)
from stepaudio_jax.hub.random_weights import init_adaptor, random_rows
from stepaudio_jax.hub.safetensors import (
    MAX_SHARD_BYTES,
    SAFETENSORS_DTYPES,
    ShardWriter,
    TensorSpec,
)
from stepaudio_jax.hub.tensor_map import (
    STEP_AUDIO,
    Block,
    BlockIndex,
    ParamPath,
    Tensor,
    flatten,
    parameter_shapes,
    tensors,
)
from stepaudio_jax.storage import (
    Path,
    PathLike,
    atomic_directory,
    check_output_directory,
    to_path,
)
from stepaudio_jax.text import Tokenizer


def import_weights(
    source: PathLike,
    output: PathLike,
    *,
    encoder_source: PathLike | None = None,
    tokenizer: PathLike | None = None,
    adapter: PathLike | None = None,
    dtype: np.dtype[Any] | None = None,
    vocab_size: int | None = None,
    seed: int = 0,
    progress: ProgressCallback = lambda done, total: None,
) -> Mapping[str, str]:
    """Imports a Step-Audio folder, or a Qwen2/Qwen2.5 decoder with the encoder of another folder.

    A decoder without an adaptor gets a newly initialised one. The embedding keeps its rows: the
    152 064 of Qwen2.5 include every special token that the model reads or writes (<audio_patch> is
    151690), untrained, but not the codes of an audio vocoder above them. `vocab_size` (158720 in
    the released models) appends random rows.

    Args:
        source: the folder of the decoder, and of encoder and adaptor if it has them.
        output: the checkpoint to create.
        encoder_source: the folder of the encoder, if not `source`.
        tokenizer: the folder of the tokenizer; `source` if None.
        adapter: a PEFT adapter for the decoder, which the checkpoint keeps beside it.
        dtype: dtype to which the weights are cast; None keeps their dtypes.
        vocab_size: rows of the embedding, at least those of the source; None keeps them.
        seed: decides newly initialised weights.
        progress: called as bytes are written.

    Returns:
        For each part, in words, where its weights came from.

    Raises:
        CheckpointError: a source is incomplete or does not fit. Nothing is written.
        OutputError: the output exists, or cannot be written.
    """
    output = to_path(output)
    check_output_directory(output)
    plan = _plan(to_path(source), to_path(encoder_source) if encoder_source else None, vocab_size)
    lora_adapter = read_adapter(adapter, plan.config.decoder) if adapter else None
    described = dict(plan.described)
    if lora_adapter is not None:
        name, rank = to_path(str(adapter)).name, lora_adapter.lora.rank
        described["decoder"] += f", with the LoRA adapter {name} of rank {rank}"
    layout = _storage_specs(plan, dtype)
    tokenizer_source = to_path(tokenizer) if tokenizer else to_path(source)
    loaded = load_tokenizer(tokenizer_source)
    check_vocab_size(loaded, plan.config.decoder.vocab_size)
    with atomic_directory(output, sum(spec.bytes for spec in layout.values())) as folder:
        if plan.folders["decoder"].config.naming is STEP_AUDIO and tokenizer is None:
            copy_tokenizer(tokenizer_folder(tokenizer_source), folder / TOKENIZER, loaded)
        else:  # plain Qwen2 files lack the special tokens
            loaded.save(folder / TOKENIZER)
        if lora_adapter is not None:
            (folder / ADAPTER).mkdir()
            write_adapter(folder / ADAPTER, lora_adapter)
        write_checkpoint_config(
            folder, plan.config, described, None if lora_adapter is None else lora_adapter.lora
        )
        _write_parameters(folder / PARAMETERS, plan, layout, seed, progress)
    return described


@dataclasses.dataclass(frozen=True)
class _ImportPlan:
    """The shape of an imported model, and the folder of each part; a new adaptor has none."""

    config: ModelConfig
    folders: Mapping[Part, HFFolder]
    described: Mapping[str, str]

    @property
    def tensors(self) -> list[tuple[HFFolder, Tensor]]:
        """Returns the tensors that are read, with the shapes of the imported model."""
        return [
            (folder, tensor)
            for part, folder in self.folders.items()
            for tensor in tensors(self.config, folder.config.naming, [part])
        ]


def _plan(source: Path, encoder_source: Path | None, vocab_size: int | None) -> _ImportPlan:
    main = HFFolder.open(source)
    main.check_parts(["decoder"])
    if encoder_source is None and "encoder" not in main.parts:
        raise CheckpointError(
            f"{source} ({main.config.naming.family}) has no encoder; say where it is with"
            " --encoder-source"
        )
    encoder_folder = HFFolder.open(encoder_source) if encoder_source else main
    encoder_folder.check_parts(["encoder"])
    folders: dict[Part, HFFolder] = {"decoder": main, "encoder": encoder_folder}
    if "adaptor" in main.parts:
        folders["adaptor"] = main
        if main.model.encoder.hidden != encoder_folder.model.encoder.hidden:
            raise CheckpointError(
                f"the adaptor of {source} takes {main.model.encoder.hidden} features, and the"
                f" encoder of {encoder_folder.path} gives {encoder_folder.model.encoder.hidden}"
            )
    for folder in dict.fromkeys(folders.values()):
        folder.check([part for part, of in folders.items() if of is folder])
    decoder = main.model.decoder
    described: dict[str, str] = {
        part: f"{of.config.naming.family} folder {of.path.name}" for part, of in folders.items()
    }
    described.setdefault("adaptor", "newly initialised")
    if vocab_size is not None and vocab_size != decoder.vocab_size:
        if vocab_size < decoder.vocab_size:
            raise CheckpointError(
                f"vocab_size={vocab_size} is less than the {decoder.vocab_size} rows of {source}"
            )
        described["decoder"] += (
            f", rows {decoder.vocab_size} to {vocab_size - 1} of the vocabulary newly initialised"
        )
        decoder = dataclasses.replace(decoder, vocab_size=vocab_size)
    config = dataclasses.replace(encoder_folder.model, adaptor=main.adaptor, decoder=decoder)
    return _ImportPlan(config, folders, described)


def _storage_specs(
    plan: _ImportPlan, dtype: np.dtype[Any] | None
) -> dict[ParamPath, ParameterSpec]:
    """Returns how each parameter is stored; a new adaptor has the dtype of the embedding."""
    dtypes: dict[ParamPath, np.dtype[Any]] = {}
    if dtype is None:
        for part, folder in plan.folders.items():
            dtypes |= folder.parameter_dtypes([part])
    shapes = parameter_shapes(plan.config)
    return {
        tensor.path: ParameterSpec(
            shapes[tensor.path],
            dtype or dtypes.get(tensor.path) or dtypes["decoder", "embedding"],
            tensor.chunk_shape(),
        )
        for tensor in tensors(plan.config, STEP_AUDIO)
    }


def _write_parameters(
    directory: Path,
    plan: _ImportPlan,
    layout: Mapping[ParamPath, ParameterSpec],
    seed: int,
    progress: ProgressCallback,
) -> None:
    new = {} if "adaptor" in plan.folders else flatten(init_adaptor(plan.config, seed))
    blocks = [
        (folder, tensor, block) for folder, tensor in plan.tensors for block in tensor.blocks()
    ]

    def prepare(item: tuple[HFFolder, Tensor, Block]) -> tuple[ParamPath, Block, NDArray[Any]]:
        folder, tensor, block = item
        values = tensor.to_parameter(_rows(folder, tensor, block.rows, seed), block)
        return tensor.path, block, values.astype(layout[tensor.path].dtype, copy=False)

    with OrbaxBlockWriter(directory, layout) as writer:
        total = sum(parameter.bytes for parameter in layout.values())
        written = 0
        ahead = read_ahead(plan.folders["decoder"].path)
        for path, block, values in ordered_parallel_map(prepare, blocks, **ahead):
            writer.write(path, block.index, values)
            written += values.nbytes
            progress(written, total)
        for path, leaf in new.items():
            writer.write(
                path,
                tuple(slice(0, size) for size in leaf.shape),
                np.asarray(leaf).astype(layout[path].dtype),
            )


def _rows(folder: HFFolder, tensor: Tensor, rows: slice, seed: int) -> NDArray[Any]:
    """Reads rows of a tensor; rows beyond its end (an extended vocabulary) are drawn."""
    stored = folder.stored[tensor.name]
    known = stored.shape[0]
    values = stored.read(slice(rows.start, min(rows.stop, known))) if rows.start < known else None
    if rows.stop <= known and values is not None:
        return values
    start = max(rows.start, known)
    new = random_rows(
        seed, tensor.name, start, (rows.stop - start, *stored.shape[1:]), stored.dtype
    )
    return new if values is None else np.concatenate([values, new])


def export_weights(
    source: PathLike,
    output: PathLike,
    *,
    dtype: np.dtype[Any] | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    form: HFConfigForm = "nested",
    remote_code: str = "",
    progress: ProgressCallback = lambda done, total: None,
) -> None:
    """Exports one of this project's checkpoints; the other arguments are `export_parameters`'s.

    Its adapter is merged into the decoder in fp32. Unless a `dtype` is given, all weights are then
    exported in fp32, since bf16 would round away what is small beside a weight.
    """
    source = to_path(source)
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


def export_adapter(source: PathLike, output: PathLike, *, base: str = "") -> Adapter:
    """Writes the adapter of one of this project's checkpoints as a PEFT folder; returns it.

    Args:
        source: the checkpoint.
        output: the folder to create.
        base: the name of the adapter's base model, for PEFT; if empty, that in the checkpoint.

    Raises:
        CheckpointError: the checkpoint has no adapter. Nothing is written.
        OutputError: the output exists, or cannot be written.
    """
    adapter = read_source_adapter(to_path(source))
    if adapter is None:
        raise CheckpointError(
            f"{source} has no adapter: LoRA has not trained its decoder, or a later stage has"
            " merged it (launch.checkpoint RUN_DIR --stage NAME takes the model out of the stage"
            " that has one)"
        )
    adapter = dataclasses.replace(adapter, base=base or adapter.base)
    size = sum(leaf.nbytes for pair in matrices_by_path(adapter).values() for leaf in pair.values())
    check_output_directory(to_path(output))
    with atomic_directory(to_path(output), size) as folder:
        write_adapter(folder, adapter)
    return adapter


class LoRAMergingReader:
    """Parameters to which an adapter is added in fp32 as they are read.

    Args:
        parameters: without the adapter.
        adapter: the adapter that is added.
    """

    def __init__(self, parameters: ParameterReader, adapter: Adapter):
        self._parameters = parameters
        self._pairs = matrices_by_path(adapter)
        self._scale = adapter.lora.scale

    def shape(self, path: ParamPath) -> tuple[int, ...]:
        """Returns the shape of a parameter; raises CheckpointError if there is none."""
        return self._parameters.shape(path)

    def dtype(self, path: ParamPath) -> np.dtype[Any]:
        """Returns the dtype of a parameter."""
        return np.dtype(np.float32) if path in self._pairs else self._parameters.dtype(path)

    def read(self, path: ParamPath, index: BlockIndex) -> NDArray[Any]:
        """Reads a block of a parameter."""
        block = self._parameters.read(path, index)
        return (
            merge_lora_block(block, self._pairs[path], self._scale, index)
            if path in self._pairs
            else block
        )


def export_parameters(
    parameters: ParameterReader,
    config: ModelConfig,
    tokenizer: Tokenizer | Path,
    output: PathLike,
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
        parameters: `ArrayReader` for a tree in memory, `OrbaxReader` for an Orbax checkpoint.
        config: the shape of the model.
        tokenizer: the tokenizer, or a folder whose tokenizer files are copied unchanged.
        output: the folder to create.
        dtype: dtype to which the weights are cast; None keeps their dtypes.
        max_shard_bytes: of the tensors in one shard; a larger tensor gets a shard of its own.
        form: of `config.json`, "nested" (Step-Audio-2) or "flat" (Step-Audio-R1).
        remote_code: a Hub repository with the modelling code, named in `config.json` for
            `trust_remote_code`.
        progress: called as bytes are written.

    Raises:
        CheckpointError: a parameter is missing or misshapen. Nothing is written.
        OutputError: the output exists, or cannot be written.
    """
    loaded = tokenizer if isinstance(tokenizer, Tokenizer) else load_tokenizer(tokenizer)
    check_vocab_size(loaded, config.decoder.vocab_size)
    check_parameters(parameters, config)
    planned = [
        TensorSpec(
            tensor.name, tensor.shape, dtype or _supported(parameters.dtype(tensor.path), tensor)
        )
        for tensor in tensors(config, STEP_AUDIO)
    ]
    check_output_directory(to_path(output))
    with atomic_directory(to_path(output), sum(tensor.bytes for tensor in planned)) as folder:
        if isinstance(tokenizer, Tokenizer):
            tokenizer.save(folder)
        else:
            copy_tokenizer(tokenizer, folder, loaded)
        name = str(
            next(tensor.dtype for tensor in planned if tensor.name == "model.embed_tokens.weight")
        )
        write_config_files(folder, config, loaded, dtype=name, form=form, remote_code=remote_code)
        _write_tensors(folder, parameters, config, planned, max_shard_bytes, progress)


def _write_tensors(
    folder: Path,
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
    written = 0
    with ShardWriter(folder, planned, max_shard_bytes) as writer:
        for rows in ordered_parallel_map(prepare, blocks):
            writer.append(rows)
            written += rows.nbytes
            progress(written, total)


def _supported(dtype: np.dtype[Any], tensor: Tensor) -> np.dtype[Any]:
    if dtype not in SAFETENSORS_DTYPES.values():
        raise CheckpointError(
            f"parameter {'/'.join(tensor.path)} is {dtype}; choose a dtype to export in"
        )
    return dtype
