"""Reading parameters a block at a time, from memory or from an Orbax checkpoint.

A parameter stacked over layers is larger than a host wants to hold (18 GB for one feed-forward
matrix of 32 B). TensorStore, which Orbax stores arrays with, reads any block of it.
"""

import math
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import jax
import numpy as np
import tensorstore
from numpy.typing import NDArray

from stepaudio_jax.config import ModelConfig
from stepaudio_jax.hub.errors import CheckpointError
from stepaudio_jax.hub.hugging_face_config import read_json
from stepaudio_jax.hub.tensor_names import BlockIndex, ParamPath, flatten, parameter_shapes
from stepaudio_jax.parallel import replicated_block


class ParameterReader(Protocol):
    """Parameters that can be read a block at a time, wherever they are."""

    def shape(self, path: ParamPath) -> tuple[int, ...]:
        """The shape of a parameter; CheckpointError where there is none."""

    def dtype(self, path: ParamPath) -> np.dtype[Any]:
        """The dtype of a parameter."""

    def read(self, path: ParamPath, index: BlockIndex) -> NDArray[Any]:
        """A block of a parameter."""


class ArrayReader:
    """Parameters in memory, numpy or jax arrays, sharded or not."""

    def __init__(self, parameters: Mapping[str, Any]):
        self._leaves = flatten(parameters)

    def shape(self, path: ParamPath) -> tuple[int, ...]:
        """The shape of a parameter; CheckpointError where there is none."""
        return tuple(self._leaf(path).shape)

    def dtype(self, path: ParamPath) -> np.dtype[Any]:
        """The dtype of a parameter."""
        return np.dtype(self._leaf(path).dtype)

    def read(self, path: ParamPath, index: BlockIndex) -> NDArray[Any]:
        """A block of a parameter. What other processes hold of it they send, so all of them read the same blocks in turn."""
        leaf = self._leaf(path)
        if isinstance(leaf, jax.Array):
            starts, sizes = (
                tuple(part.start for part in index),
                tuple(part.stop - part.start for part in index),
            )
            return np.asarray(replicated_block(leaf, starts, sizes))
        return np.asarray(leaf[index])

    def _leaf(self, path: ParamPath) -> Any:
        if path not in self._leaves:
            raise CheckpointError(f"the parameters have no {'/'.join(path)}")
        return self._leaves[path]


class OrbaxReader:
    """Parameters in an Orbax checkpoint on disk, whatever array format Orbax was told to write.

    Args:
        directory: the folder of the tree, the one that holds `_METADATA`.
        prefix: the path of the parameters in that tree.
    """

    def __init__(self, directory: pathlib.Path, prefix: ParamPath = ()):
        metadata = read_json(directory / "_METADATA")
        self._directory = directory.absolute()
        self._prefix = prefix
        self._ocdbt = bool(metadata.get("use_ocdbt"))
        self._driver = "zarr3" if metadata.get("use_zarr3") else "zarr"
        self._arrays: dict[ParamPath, tensorstore.TensorStore] = {}

    def shape(self, path: ParamPath) -> tuple[int, ...]:
        """The shape of a parameter; CheckpointError where there is none."""
        return tuple(self.array(path).shape)

    def dtype(self, path: ParamPath) -> np.dtype[Any]:
        """The dtype of a parameter."""
        return np.dtype(self.array(path).dtype.numpy_dtype)

    def read(self, path: ParamPath, index: BlockIndex) -> NDArray[Any]:
        """A block of a parameter."""
        try:
            return np.asarray(self.array(path)[index].read().result())
        except ValueError as error:
            raise CheckpointError(
                f"cannot read {'/'.join(path)} of {self._directory}: {error}"
            ) from None

    def array(self, path: ParamPath) -> tensorstore.TensorStore:
        """The stored array of a parameter.

        Raises:
            CheckpointError: there is none.
        """
        if path not in self._arrays:
            name = ".".join((*self._prefix, *path)) + "/"
            store: dict[str, Any] = {"driver": "file", "path": f"{self._directory}/{name}"}
            if self._ocdbt:
                store = {
                    "driver": "ocdbt",
                    "base": {"driver": "file", "path": f"{self._directory}/"},
                    "path": name,
                }
            # Unlike the default, a chunk that is not there is an error, not zeros.
            spec = {"driver": self._driver, "kvstore": store, "fill_missing_data_reads": False}
            try:
                self._arrays[path] = tensorstore.open(spec, open=True, read=True).result()
            except ValueError as error:  # of TensorStore, which goes on to quote all its settings
                missing = "/".join((*self._prefix, *path))
                raise CheckpointError(
                    f"{self._directory} has no readable parameter {missing}; copy or convert the folder again"
                ) from error
        return self._arrays[path]

    def missing_chunks(self, path: ParamPath) -> Iterator[str]:
        """The files of a parameter written by `OrbaxBlockWriter` that are not there, or have not their full size."""
        array = self.array(path)
        chunks = [
            chunk or size
            for chunk, size in zip(
                array.chunk_layout.read_chunk.shape or (), array.shape, strict=True
            )
        ]
        expected = math.prod(chunks) * array.dtype.numpy_dtype.itemsize
        for position in np.ndindex(
            *[-(-size // chunk) for size, chunk in zip(array.shape, chunks, strict=True)]
        ):
            file = self._directory / ".".join((*self._prefix, *path)) / ".".join(map(str, position))
            if not file.is_file() or file.stat().st_size != expected:
                yield str(file)


def check_parameters(parameters: ParameterReader, config: ModelConfig) -> None:
    """Refuses parameters that are not those of a model of this shape.

    Raises:
        CheckpointError: listing every one that is missing or misshapen.
    """
    problems = []
    for path, shape in parameter_shapes(config).items():
        try:
            found = parameters.shape(path)
        except CheckpointError as error:
            problems.append(str(error))
            continue
        if found != shape:
            problems.append(f"{'/'.join(path)} is {found}, expected {shape}")
    if problems:
        raise CheckpointError(f"these are not the parameters of the model: {'; '.join(problems)}")
