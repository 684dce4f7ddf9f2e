"""Hugging Face folders -> a checkpoint of this project."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepaudio_jax.config import ModelConfig, Part
from stepaudio_jax.hub.adapter import ADAPTER, read_adapter, write_adapter
from stepaudio_jax.hub.checkpoint import PARAMETERS, TOKENIZER, write_checkpoint_config
from stepaudio_jax.hub.errors import CheckpointError
from stepaudio_jax.hub.fresh_weights import init_adaptor, random_rows
from stepaudio_jax.hub.hugging_face_folder import HFFolder
from stepaudio_jax.hub.new_folder import check_output_available, new_checkpoint_directory
from stepaudio_jax.hub.parameter_writer import OrbaxBlockWriter, ParameterSpec
from stepaudio_jax.hub.pipeline import ProgressCallback, ordered_parallel_map
from stepaudio_jax.hub.tensor_names import (
    STEP_AUDIO,
    Block,
    ParamPath,
    Tensor,
    flatten,
    parameter_shapes,
    tensors,
)
from stepaudio_jax.hub.tokenizer_files import (
    check_vocab_size,
    copy_tokenizer,
    load_tokenizer,
    tokenizer_folder,
)


def import_weights(
    source: str | pathlib.Path,
    output: str | pathlib.Path,
    *,
    encoder_source: str | pathlib.Path | None = None,
    tokenizer: str | pathlib.Path | None = None,
    adapter: str | pathlib.Path | None = None,
    dtype: np.dtype[Any] | None = None,
    vocab_size: int | None = None,
    seed: int = 0,
    progress: ProgressCallback = lambda done, total: None,
) -> Mapping[str, str]:
    """Imports a Step-Audio folder, or a Qwen2/Qwen2.5 decoder with the encoder of another folder.

    A decoder that comes without an adaptor gets a newly initialised one. The embedding keeps the
    rows it has: the 152 064 of Qwen2.5 hold every special token that the model reads or writes
    (<audio_patch> is 151690), untrained, though not the codes of an audio vocoder above;
    `vocab_size` (158720 as released) appends rows of random numbers.

    Args:
        source: the decoder, and encoder and adaptor where it has them.
        output: the checkpoint to create.
        encoder_source: where the encoder comes from instead.
        tokenizer: where the tokenizer comes from; `source` if None.
        adapter: a PEFT adapter for the decoder, which the checkpoint keeps beside it.
        dtype: what the weights are cast to; None keeps them as they are.
        vocab_size: rows of the embedding, at least those of the source.
        seed: of whatever is newly initialised.
        progress: called as bytes are written.

    Returns:
        For each part, in words, where its weights came from.

    Raises:
        CheckpointError: a source is incomplete or does not fit; the output exists. Nothing is
            written.
    """
    output = pathlib.Path(output)
    check_output_available(output)
    plan = _plan(
        pathlib.Path(source), pathlib.Path(encoder_source) if encoder_source else None, vocab_size
    )
    beside = read_adapter(adapter, plan.config.decoder) if adapter else None
    described = dict(plan.described)
    if beside is not None:
        described["decoder"] += (
            f", with the LoRA adapter {pathlib.Path(str(adapter)).name} of rank {beside.lora.rank}"
        )
    layout = _storage_specs(plan, dtype)
    tokens = pathlib.Path(tokenizer) if tokenizer else pathlib.Path(source)
    loaded = load_tokenizer(tokens)
    check_vocab_size(loaded, plan.config.decoder.vocab_size)
    with new_checkpoint_directory(
        output, sum(parameter.bytes for parameter in layout.values())
    ) as folder:
        if plan.folders["decoder"].config.naming is STEP_AUDIO and tokenizer is None:
            copy_tokenizer(tokenizer_folder(tokens), folder / TOKENIZER, loaded)
        else:  # plain Qwen2 files lack the special tokens
            loaded.save(folder / TOKENIZER)
        if beside is not None:
            (folder / ADAPTER).mkdir()
            write_adapter(folder / ADAPTER, beside)
        write_checkpoint_config(
            folder, plan.config, described, None if beside is None else beside.lora
        )
        _write_parameters(folder / PARAMETERS, plan, layout, seed, progress)
    return described


@dataclasses.dataclass(frozen=True)
class _ImportPlan:
    """The model that will be, and the folder that each part comes from; the adaptor has none where it is new."""

    config: ModelConfig
    folders: Mapping[Part, HFFolder]
    described: Mapping[str, str]

    @property
    def tensors(self) -> list[tuple[HFFolder, Tensor]]:
        """What is read: each tensor under the name that it has in its folder, in the shape that the model will have."""
        return [
            (folder, tensor)
            for part, folder in self.folders.items()
            for tensor in tensors(self.config, folder.config.naming, [part])
        ]


def _plan(
    source: pathlib.Path, encoder_source: pathlib.Path | None, vocab_size: int | None
) -> _ImportPlan:
    main = HFFolder.open(source)
    main.check_parts(["decoder"])
    if encoder_source is None and "encoder" not in main.parts:
        raise CheckpointError(
            f"{source} ({main.config.naming.family}) has no encoder; say where it is with --encoder-source"
        )
    encoder_folder = HFFolder.open(encoder_source) if encoder_source else main
    encoder_folder.check_parts(["encoder"])
    folders: dict[Part, HFFolder] = {"decoder": main, "encoder": encoder_folder}
    if "adaptor" in main.parts:
        folders["adaptor"] = main
        if main.model.encoder.hidden != encoder_folder.model.encoder.hidden:
            raise CheckpointError(
                f"the adaptor of {source} takes {main.model.encoder.hidden} features, and the encoder of {encoder_folder.path} "
                f"gives {encoder_folder.model.encoder.hidden}"
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
    """How each parameter will be stored; a new adaptor has the dtype of the embedding."""
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
    directory: pathlib.Path,
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
        done = 0
        for path, block, values in ordered_parallel_map(prepare, blocks):
            writer.write(path, block.index, values)
            done += values.nbytes
            progress(done, total)
        for path, leaf in new.items():
            writer.write(
                path,
                tuple(slice(0, size) for size in leaf.shape),
                np.asarray(leaf).astype(layout[path].dtype),
            )


def _rows(folder: HFFolder, tensor: Tensor, rows: slice, seed: int) -> NDArray[Any]:
    """Rows of a stored tensor; those beyond its end (an extended vocabulary) are new."""
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
