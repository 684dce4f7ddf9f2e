"""Writing safetensors shards and their index, tensor by tensor, without holding more than what is passed in.

A shard's header comes before its data, so the tensors are planned first (names, shapes, dtypes) and
then appended in order.
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from stepaudio_jax.hub.errors import CheckpointError
from stepaudio_jax.hub.safetensors_reader import SAFETENSORS_DTYPES, SAFETENSORS_INDEX

_DTYPE_CODES = {dtype: code for code, dtype in SAFETENSORS_DTYPES.items()}


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """A tensor that will be written."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class ShardWriter:
    """Writes the planned tensors, in order, into numbered shards and their index.

    Use as a context manager; `append` the rows of each tensor in turn. Leaving it checks that every
    byte was written.

    Args:
        folder: an existing folder.
        tensors: what will be written, in order.
        max_shard_bytes: no shard's data is larger, except where a single tensor is.
    """

    def __init__(self, folder: pathlib.Path, tensors: Sequence[TensorSpec], max_shard_bytes: int):
        self._folder = folder
        self._shards = list(_split_into_shards(tensors, max_shard_bytes))
        self._tensors = (
            (number, tensor)
            for number, shard in enumerate(self._shards, start=1)
            for tensor in shard
        )
        self._file: BinaryIO | None = None
        self._number = 0
        self._tensor: TensorSpec | None = None
        self._due = 0  # bytes of the current tensor still to come

    def file_name(self, number: int) -> str:
        """The name of the shard `number`, counted from 1."""
        return f"model-{number:05d}-of-{len(self._shards):05d}.safetensors"

    def append(self, rows: NDArray[Any]) -> None:
        """Writes the next rows, of the tensor whose turn it is."""
        if not self._due:
            number, self._tensor = next(self._tensors)
            self._due = self._tensor.bytes
            if number != self._number:
                self._open(number)
        if (
            self._file is None
            or self._tensor is None
            or rows.nbytes > self._due
            or rows.dtype != self._tensor.dtype
        ):
            raise CheckpointError(
                f"{rows.nbytes} bytes of {rows.dtype} are not the next {self._due} of {self._tensor}"
            )
        self._file.write(np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data)
        self._due -= rows.nbytes

    def _open(self, number: int) -> None:
        if self._file is not None:
            self._file.close()
        self._number = number
        self._file = open(self._folder / self.file_name(number), "wb")  # noqa: SIM115  closed by the next, or by __exit__
        header = _header(self._shards[number - 1])
        self._file.write(len(header).to_bytes(8, "little") + header)

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self._file.close()
        if error is not None:
            return
        left = next(self._tensors, None)
        if self._due or left is not None:
            raise CheckpointError(
                f"tensors were planned and not written, the first {self._tensor if self._due else left}"
            )
        self._write_index()

    def _write_index(self) -> None:
        weight_map = {
            tensor.name: self.file_name(number)
            for number, shard in enumerate(self._shards, start=1)
            for tensor in shard
        }
        total = sum(tensor.bytes for shard in self._shards for tensor in shard)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (self._folder / SAFETENSORS_INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _split_into_shards(tensors: Sequence[TensorSpec], max_bytes: int) -> Iterator[list[TensorSpec]]:
    shard: list[TensorSpec] = []
    size = 0
    for tensor in tensors:
        if shard and size + tensor.bytes > max_bytes:
            yield shard
            shard, size = [], 0
        shard.append(tensor)
        size += tensor.bytes
    if shard:
        yield shard


def _header(tensors: Sequence[TensorSpec]) -> bytes:
    header: dict[str, Any] = {
        "__metadata__": {"format": "pt"}
    }  # without it, transformers refuses the file
    offset = 0
    for tensor in tensors:
        stop = offset + tensor.bytes
        header[tensor.name] = {
            "dtype": _DTYPE_CODES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, stop],
        }
        offset = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    return text + b" " * (-len(text) % 8)  # so that the data are aligned
