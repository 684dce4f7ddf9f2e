"""Reads and writes parameters as Orbax checkpoints, a block at a time or from all hosts together.

`import` converts models that are larger than the host's memory: `OrbaxBlockWriter` lets Orbax lay
the checkpoint out, and fills it through TensorStore, with which Orbax stores arrays. A model in
memory is written by Orbax itself, each host its own shards (`write_parameters`). Both give ordinary
Orbax checkpoints, which `orbax.checkpoint` restores into any sharding.
"""

import collections
import dataclasses
import math
import os
import pathlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol

import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint.experimental.v1 as ocp
import tensorstore
from jax.experimental import multihost_utils
from numpy.typing import NDArray

from stepaudio_jax.config import ModelConfig
from stepaudio_jax.errors import CheckpointError, OutputError
from stepaudio_jax.hub.tensor_map import (
    BLOCK_ELEMENTS,
    BlockIndex,
    ParamPath,
    flatten,
    parameter_shapes,
    unflatten,
)
from stepaudio_jax.storage import (
    BucketPath,
    Path,
    copy_file,
    list_sizes,
    read_json,
    truncate_words,
)

ORBAX_ITEM = "state"  # the name under which `ocp.save` keeps a tree
_MAX_PENDING_WRITES = 3
_MAX_CHUNK_BYTES = 2 * BLOCK_ELEMENTS  # a block of bfloat16
_ZARR_DTYPES: Mapping[np.dtype[Any], str] = {
    np.dtype(np.float64): "<f8",
    np.dtype(np.float32): "<f4",
    np.dtype(np.float16): "<f2",
    np.dtype(ml_dtypes.bfloat16): "bfloat16",
}


class ParameterReader(Protocol):
    """Parameters that can be read a block at a time, wherever they are."""

    def shape(self, path: ParamPath) -> tuple[int, ...]:
        """Returns the shape of a parameter; raises CheckpointError if there is none."""

    def dtype(self, path: ParamPath) -> np.dtype[Any]:
        """Returns the dtype of a parameter."""

    def read(self, path: ParamPath, index: BlockIndex) -> NDArray[Any]:
        """Reads a block of a parameter."""


class ArrayReader:
    """Parameters in memory, as numpy or jax arrays that this process can address completely."""

    def __init__(self, parameters: Mapping[str, Any]):
        self._leaves = flatten(parameters)

    def shape(self, path: ParamPath) -> tuple[int, ...]:
        """Returns the shape of a parameter; raises CheckpointError if there is none."""
        return tuple(self._leaf(path).shape)

    def dtype(self, path: ParamPath) -> np.dtype[Any]:
        """Returns the dtype of a parameter."""
        return np.dtype(self._leaf(path).dtype)

    def read(self, path: ParamPath, index: BlockIndex) -> NDArray[Any]:
        """Returns a block of a parameter on the host."""
        return np.asarray(self._leaf(path)[index])

    def _leaf(self, path: ParamPath) -> Any:
        if path not in self._leaves:
            raise CheckpointError(f"the parameters have no {'/'.join(path)}")
        return self._leaves[path]


class OrbaxReader:
    """Parameters in an Orbax checkpoint on disk, in any of Orbax's array formats.

    Args:
        directory: the folder of the tree, which holds `_METADATA`.
        prefix: the path of the parameters in that tree.
    """

    def __init__(self, directory: Path, prefix: ParamPath = ()):
        metadata = read_json(directory / "_METADATA", CheckpointError)
        self._directory = directory.absolute()
        self._prefix = prefix
        self._ocdbt = bool(metadata.get("use_ocdbt"))
        self._driver = "zarr3" if metadata.get("use_zarr3") else "zarr"
        self._arrays: dict[ParamPath, tensorstore.TensorStore] = {}

    def shape(self, path: ParamPath) -> tuple[int, ...]:
        """Returns the shape of a parameter; raises CheckpointError if there is none."""
        return tuple(self.array(path).shape)

    def dtype(self, path: ParamPath) -> np.dtype[Any]:
        """Returns the dtype of a parameter."""
        return np.dtype(self.array(path).dtype.numpy_dtype)

    def read(self, path: ParamPath, index: BlockIndex) -> NDArray[Any]:
        """Reads a block of a parameter."""
        try:
            return np.asarray(self.array(path)[index].read().result())
        except ValueError as error:
            raise CheckpointError(
                f"cannot read {'/'.join(path)} of {self._directory}: {error}"
            ) from None

    def array(self, path: ParamPath) -> tensorstore.TensorStore:
        """Returns the stored array of a parameter.

        Raises:
            CheckpointError: there is none.
        """
        if path not in self._arrays:
            name = ".".join((*self._prefix, *path)) + "/"
            store = key_value_store(self._directory / name)
            if self._ocdbt:
                store = {"driver": "ocdbt", "base": key_value_store(self._directory), "path": name}
            # By default a missing chunk reads as zeros.
            spec = {"driver": self._driver, "kvstore": store, "fill_missing_data_reads": False}
            try:
                self._arrays[path] = tensorstore.open(spec, open=True, read=True).result()
            except ValueError as error:  # TensorStore's message quotes all its settings
                missing = "/".join((*self._prefix, *path))
                raise CheckpointError(
                    f"{self._directory} has no readable parameter {missing}; copy or convert the"
                    " folder again"
                ) from error
        return self._arrays[path]

    def missing_chunks(self, path: ParamPath) -> Iterator[str]:
        """Yields the files of a parameter that do not exist, or do not have their full size.

        It knows the layout of this project's model folders, one uncompressed file a chunk; of
        other layouts nothing is yielded, and reading them fails.
        """
        if self._ocdbt or self._driver != "zarr":
            return
        array = self.array(path)
        chunk_shape = array.chunk_layout.read_chunk.shape or ()
        chunks = [chunk or size for chunk, size in zip(chunk_shape, array.shape, strict=True)]
        expected = math.prod(chunks) * array.dtype.numpy_dtype.itemsize
        folder = self._directory / ".".join((*self._prefix, *path))
        counts = [-(-size // chunk) for size, chunk in zip(array.shape, chunks, strict=True)]
        sizes = list_sizes(folder)
        for position in np.ndindex(*counts):
            file = folder / ".".join(map(str, position))
            if sizes.get(file.name) != expected:
                yield str(file)


def is_s3(folder: Path) -> bool:
    """Returns whether a folder is in `s3://`, which Orbax neither reads nor writes."""
    return isinstance(folder, BucketPath) and folder.address[0] == "s3"


def key_value_store(folder: Path) -> dict[str, Any]:
    """Returns TensorStore's specification of a folder, wherever it lies."""
    if not isinstance(folder, BucketPath):
        return {"driver": "file", "path": f"{folder}/"}
    scheme, bucket, key = folder.address
    driver = {"gs": "gcs", "s3": "s3"}[scheme]
    store: dict[str, Any] = {"driver": driver, "bucket": bucket, "path": f"{key}/"}
    if scheme == "s3" and (endpoint := os.environ.get("AWS_ENDPOINT_URL")):
        region = os.environ.get("AWS_DEFAULT_REGION", "us-east-1")
        store |= {"endpoint": endpoint, "aws_region": region}
    if scheme == "s3" and "AWS_ACCESS_KEY_ID" in os.environ:
        # Otherwise it looks for files and for Amazon's metadata server first, for each array.
        store["aws_credentials"] = {"type": "environment"}
    return store


def check_parameters(parameters: ParameterReader, config: ModelConfig) -> None:
    """Checks that parameters are those of a model of this shape.

    Raises:
        CheckpointError: listing every one that is missing or misshapen.
    """
    problems = []
    for path, expected in parameter_shapes(config).items():
        try:
            shape = parameters.shape(path)
        except CheckpointError as error:
            problems.append(str(error))
            continue
        if shape != expected:
            problems.append(f"{'/'.join(path)} is {shape}, expected {expected}")
    if problems:
        raise CheckpointError(f"these are not the parameters of the model: {'; '.join(problems)}")


def write_parameters(directory: Path, parameters: Mapping[str, Any]) -> None:
    """Writes a tree of arrays as an Orbax checkpoint, each process the shards that it holds.

    All processes of a run call it with the same tree; of replicated data one replica is written. To
    `s3://`, to which Orbax cannot write, TensorStore writes the same files.

    Args:
        directory: the checkpoint to create.
        parameters: nested dicts of numpy or jax arrays, sharded in any way.
    """
    if not is_s3(directory):
        with _uncompressed_zarr(max_chunk_bytes=_MAX_CHUNK_BYTES):
            ocp.save(directory, dict(parameters))
        return
    leaves = flatten(parameters)
    specs = {
        path: ParameterSpec(tuple(leaf.shape), np.dtype(leaf.dtype), _chunks_of_shards(leaf))
        for path, leaf in leaves.items()
    }
    if jax.process_index() == 0:
        with OrbaxBlockWriter(directory, specs):
            pass
    multihost_utils.sync_global_devices("arrays created")
    with OrbaxBlockWriter(directory, specs, creates=False) as writer:
        for path, leaf in leaves.items():
            for index, values in _owned_shards(leaf):
                writer.write_all(path, index, values)


@dataclasses.dataclass(frozen=True)
class ParameterSpec:
    """Shape and dtype of a stored parameter, and the shape of the chunks it is stored in."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunks: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class OrbaxBlockWriter:
    """Writes an Orbax checkpoint a block at a time, from one process.

    Use it as a context manager; leaving it waits for the last writes. Blocks that are whole chunks
    are written without reading the chunk first.

    Args:
        directory: the checkpoint to create.
        parameters: every parameter, by path.
        creates: whether the checkpoint is created, without any block; otherwise it is there.
    """

    def __init__(
        self,
        directory: Path,
        parameters: Mapping[ParamPath, ParameterSpec],
        *,
        creates: bool = True,
    ):
        if creates:
            _write_tree_structure(directory, parameters)
        self._directory, self._parameters = directory, parameters
        self._arrays = {
            path: _open_array(directory, path, parameter, creates=creates)
            for path, parameter in parameters.items()
        }
        self._writes: collections.deque[Any] = collections.deque()

    def write(self, path: ParamPath, index: BlockIndex, values: NDArray[Any]) -> None:
        """Writes a block; `values` must not change afterwards."""
        self._wait(_MAX_PENDING_WRITES)
        self._writes.append(
            self._arrays[path][index].write(values, can_reference_source_data_indefinitely=True)
        )

    def write_all(self, path: ParamPath, start: Sequence[int], values: NDArray[Any]) -> None:
        """Writes a large part of a parameter, some chunks of it at a time.

        Args:
            path: of the parameter.
            start: where the part begins, in each dimension, of which there is one at least.
            values: of the part, which must not change afterwards.
        """
        rows = self._parameters[path].chunks[0]
        for first in range(0, values.shape[0], rows):
            block = values[first : first + rows]
            starts = (start[0] + first, *start[1:])
            bounds = zip(starts, block.shape, strict=True)
            self.write(path, tuple(slice(at, at + size) for at, size in bounds), block)

    def _wait(self, max_pending: int) -> None:
        while len(self._writes) > max_pending:
            try:
                self._writes.popleft().result()
            except ValueError as error:  # TensorStore's message quotes all its settings
                reason = " ".join(str(error).split())
                raise OutputError(
                    f"{self._directory} cannot be written: {truncate_words(reason)}"
                ) from None

    def __enter__(self) -> "OrbaxBlockWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None:
            for write in self._writes:  # all must end before the folder is removed
                write.exception()
            return
        self._wait(0)


def _write_tree_structure(directory: Path, parameters: Mapping[ParamPath, ParameterSpec]) -> None:
    """Lets Orbax write the tree, with a scalar in the place of every parameter.

    Orbax does not record the shapes, so the arrays can be replaced.
    """
    tree = unflatten(
        {path: np.zeros((), parameter.dtype) for path, parameter in parameters.items()}
    )
    if not is_s3(directory):
        with _uncompressed_zarr():
            ocp.save(directory, tree)
        return
    with tempfile.TemporaryDirectory() as local:
        written = pathlib.Path(local) / "tree"
        context = _uncompressed_zarr()
        context.multiprocessing_options.active_processes = {jax.process_index()}
        context.multiprocessing_options.primary_host = jax.process_index()
        with context:
            ocp.save(written, tree)
        for file in written.rglob("*"):
            if file.is_file():
                copy_file(file, directory / file.relative_to(written).as_posix())


def _open_array(
    directory: Path, path: ParamPath, parameter: ParameterSpec, *, creates: bool
) -> tensorstore.TensorStore:
    """Opens the array of a parameter; creates an empty one in place of its scalar on request."""
    spec = {
        "driver": "zarr",
        "kvstore": key_value_store(directory / ORBAX_ITEM / ".".join(path)),
        "metadata": {
            "shape": list(parameter.shape),
            "chunks": list(parameter.chunks),
            "dtype": _ZARR_DTYPES[parameter.dtype],
            "compressor": None,
            "fill_value": None,
            "dimension_separator": ".",
        },
        # Leaves flushing to the system, as cp does: syncing every chunk would take longer than
        # writing it.
        "context": {"file_io_sync": False},
    }
    if not creates:
        return tensorstore.open(spec, open=True).result()
    return tensorstore.open(spec, create=True, delete_existing=True).result()


def _chunks_of_shards(leaf: Any) -> tuple[int, ...]:
    """Returns the shape of the chunks of an array: of a size to write, and each in one shard."""
    is_sharded = isinstance(leaf, jax.Array)
    chunk = list(leaf.sharding.shard_shape(leaf.shape) if is_sharded else leaf.shape)
    for axis, size in enumerate(chunk):
        excess = math.prod(chunk) * np.dtype(leaf.dtype).itemsize / _MAX_CHUNK_BYTES
        parts = next((n for n in range(1, size) if size % n == 0 and n >= excess), max(size, 1))
        chunk[axis] = size // parts
    return tuple(chunk)


def _owned_shards(leaf: Any) -> Iterator[tuple[tuple[int, ...], NDArray[Any]]]:
    """Yields the shards of an array that this process writes: where each begins, and its values."""
    if not isinstance(leaf, jax.Array):
        if jax.process_index() == 0:
            yield (0,) * leaf.ndim, leaf
        return
    for shard in leaf.addressable_shards:
        if shard.replica_id == 0:
            yield tuple(part.start or 0 for part in shard.index), np.asarray(shard.data)


def _uncompressed_zarr(max_chunk_bytes: int | None = None) -> ocp.Context:
    """Returns the Orbax context in which arrays are stored as this project's folders have them.

    They are Zarr 2 arrays with one uncompressed file a chunk: weights do not compress, a file of
    known size shows that it is complete, and Orbax warns when it loads Zarr 3 outside of OCDBT.
    """
    context = ocp.Context()
    saving = context.array_options.saving
    saving.use_ocdbt = False
    saving.use_zarr3 = False
    saving.use_compression = False
    saving.storage_options.chunk_byte_size = max_chunk_bytes
    return context
