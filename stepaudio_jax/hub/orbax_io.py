"""Writing an Orbax checkpoint a block at a time.

Orbax lays the checkpoint out, and TensorStore, which Orbax stores arrays with, fills it, so no
parameter is ever held whole. What results is an ordinary Orbax checkpoint: `orbax.checkpoint`
restores it into any sharding.
"""

import collections
import dataclasses
import math
import pathlib
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, Protocol

import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint.experimental.v1 as ocp
import tensorstore
from numpy.typing import NDArray

from stepaudio_jax.config import ModelConfig
from stepaudio_jax.errors import CheckpointError
from stepaudio_jax.hub.tensor_map import BlockIndex, ParamPath, flatten, parameter_shapes, unflatten
from stepaudio_jax.parallel import replicated_block
from stepaudio_jax.storage import read_json

# Reading parameters a block at a time, from memory or from an Orbax checkpoint.


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
        metadata = read_json(directory / "_METADATA", CheckpointError)
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


_MAX_PENDING_WRITES = 3
_ZARR_DTYPES: Mapping[np.dtype[Any], str] = {
    np.dtype(np.float64): "<f8",
    np.dtype(np.float32): "<f4",
    np.dtype(np.float16): "<f2",
    np.dtype(ml_dtypes.bfloat16): "bfloat16",
}


@dataclasses.dataclass(frozen=True)
class ParameterSpec:
    """How a parameter is stored. A block that is a whole chunk is written at once."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunks: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class OrbaxBlockWriter:
    """Writes an Orbax checkpoint a block at a time. Use as a context manager; leaving it waits for the last writes.

    Args:
        directory: the checkpoint to create.
        parameters: every parameter, by path.
    """

    def __init__(self, directory: pathlib.Path, parameters: Mapping[ParamPath, ParameterSpec]):
        write_tree_structure(directory, parameters)
        self._arrays = {
            path: _open(directory, path, parameter) for path, parameter in parameters.items()
        }
        self._writes: collections.deque[Any] = collections.deque()

    def write(self, path: ParamPath, index: BlockIndex, values: NDArray[Any]) -> None:
        """Writes a block; `values` must not change afterwards."""
        self._wait(_MAX_PENDING_WRITES)
        self._writes.append(
            self._arrays[path][index].write(values, can_reference_source_data_indefinitely=True)
        )

    def _wait(self, left: int) -> None:
        while len(self._writes) > left:
            self._writes.popleft().result()

    def __enter__(self) -> "OrbaxBlockWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None:
            for write in self._writes:  # nothing may be written any more once the folder is removed
                write.exception()
            return
        self._wait(0)


def write_tree_structure(
    directory: pathlib.Path, parameters: Mapping[ParamPath, ParameterSpec]
) -> None:
    """Lets Orbax write its part of a checkpoint: the tree with a scalar for every parameter, whose shape it does not record.

    Orbax waits for all processes of a run: those that do not write call this too.
    """
    tree = unflatten(
        {path: np.zeros((), parameter.dtype) for path, parameter in parameters.items()}
    )
    context = ocp.Context()
    context.array_options.saving.use_ocdbt = False
    context.array_options.saving.use_zarr3 = False
    with context:
        ocp.save(directory, tree)


def _open(
    directory: pathlib.Path, path: ParamPath, parameter: ParameterSpec
) -> tensorstore.TensorStore:
    """A parameter's array, created anew with the shape meant and nothing in it.

    Zarr 2, since Orbax warns of missing data when it loads Zarr 3 outside of OCDBT.
    """
    spec = {
        "driver": "zarr",
        "kvstore": {"driver": "file", "path": f"{directory / ORBAX_ITEM / '.'.join(path)}/"},
        "metadata": {
            "shape": list(parameter.shape),
            "chunks": list(parameter.chunks),
            "dtype": _ZARR_DTYPES[parameter.dtype],
            "compressor": None,  # weights do not compress
            "fill_value": None,
            "dimension_separator": ".",
        },
        # Like cp, leaves flushing to the system: a sync for each chunk would take longer than the
        # writing.
        "context": {"file_io_sync": False},
    }
    return tensorstore.open(spec, create=True, delete_existing=True).result()


ORBAX_ITEM = "state"  # the name under which ocp.save keeps a tree
