"""Summarises what a folder of weights has, and whether it is complete."""

import collections
import dataclasses
import math
from collections.abc import Mapping

from stepaudio_jax.config import ModelConfig, Part
from stepaudio_jax.errors import CheckpointError
from stepaudio_jax.hub.checkpoint import (
    checkpoint_lora_config,
    is_checkpoint,
    parameters_directory,
    read_checkpoint_config,
)
from stepaudio_jax.hub.hf_folder import HFFolder
from stepaudio_jax.hub.load import read_source_adapter
from stepaudio_jax.hub.orbax_io import OrbaxReader
from stepaudio_jax.hub.tensor_map import PARTS, parameter_shapes
from stepaudio_jax.storage import Path, PathLike, to_path


@dataclasses.dataclass(frozen=True)
class FolderSummary:
    """The content of a folder of weights.

    Attributes:
        kind: what the folder is, in words.
        parts: parts of a model that it has.
        model: its shape, with default values for parts that the folder lacks.
        tensors: their number (in a checkpoint, the number of parameters arrays).
        parameters: the number of their values.
        bytes: size of the tensors.
        dtypes: the number of tensors of each dtype.
        problems: what is wrong, in words; empty if the folder is complete.
        skipped_tensors: names of tensors that are not read, since they follow from others.
    """

    kind: str
    parts: tuple[Part, ...]
    model: ModelConfig
    tensors: int
    parameters: int
    bytes: int
    dtypes: Mapping[str, int]
    problems: tuple[str, ...]
    skipped_tensors: tuple[str, ...] = ()


def inspect_folder(folder: PathLike) -> FolderSummary:
    """Summarises a checkpoint or a Hugging Face folder.

    No weights are read, unless an `lm_head` must be compared with a tied embedding.

    Raises:
        CheckpointError: its config, or the headers of its shards, cannot be read.
    """
    folder = to_path(folder)
    return _inspect_checkpoint(folder) if is_checkpoint(folder) else _inspect_hugging_face(folder)


def _inspect_hugging_face(folder: Path) -> FolderSummary:
    opened = HFFolder.open(folder)
    naming = opened.config.naming
    expected = [
        opened.stored[tensor.name]
        for tensor in opened.tensors(naming.parts)
        if tensor.name in opened.stored
    ]
    return FolderSummary(
        kind=f"Hugging Face folder, {naming.family} (model_type {opened.config.model_type})",
        parts=naming.parts,
        model=opened.model,
        tensors=len(expected),
        parameters=sum(math.prod(tensor.shape) for tensor in expected),
        bytes=sum(tensor.bytes for tensor in expected),
        dtypes=collections.Counter(tensor.dtype_code for tensor in expected),
        problems=tuple(opened.problems(naming.parts)),
        skipped_tensors=tuple(opened.skipped_tensors),
    )


def _inspect_checkpoint(folder: Path) -> FolderSummary:
    config = read_checkpoint_config(folder)
    stored = OrbaxReader(parameters_directory(folder))
    problems: list[str] = []
    dtypes: collections.Counter[str] = collections.Counter()
    parameters = size = 0
    for path, shape in parameter_shapes(config).items():
        try:
            array = stored.array(path)
        except CheckpointError as error:
            problems.append(str(error))
            continue
        dtype = stored.dtype(path)
        dtypes[str(dtype)] += 1
        parameters += math.prod(array.shape)
        size += math.prod(array.shape) * dtype.itemsize
        if array.shape != shape:
            problems.append(
                f"misshapen {'/'.join(path)}: {list(array.shape)}, expected {list(shape)}"
            )
        problems += [f"missing {file}" for file in stored.missing_chunks(path)]
    adapter = checkpoint_lora_config(folder)
    kind = "stepaudio_jax checkpoint"
    if adapter is not None:
        kind += (
            f" with a LoRA adapter beside it (rank {adapter.rank}, alpha {adapter.alpha:g},"
            f" {', '.join(adapter.targets)})"
        )
        try:
            read_source_adapter(folder)
        except CheckpointError as error:
            problems.append(str(error))
    return FolderSummary(
        kind=kind,
        parts=PARTS,
        model=config,
        tensors=sum(dtypes.values()),
        parameters=parameters,
        bytes=size,
        dtypes=dtypes,
        problems=tuple(problems),
    )
