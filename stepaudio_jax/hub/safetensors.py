"""Writing safetensors shards and their index, tensor by tensor, without holding more than what is passed in.

A shard's header comes before its data, so the tensors are planned first (names, shapes, dtypes) and
then appended in order.
"""

import dataclasses
import json
import math
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from stepaudio_jax.errors import CheckpointError
from stepaudio_jax.storage import (
    COPY_AGAIN,
    file_size,
    open_read,
    read_bytes,
    recognize_file,
    recognize_folder,
    unfinished_download,
    write_json,
)

# Reading the tensors of a folder of safetensors shards, a run of rows at a time.

SAFETENSORS_INDEX = "model.safetensors.index.json"
SAFETENSORS_DTYPES: Mapping[str, np.dtype[Any]] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
_MAX_HEADER_BYTES = 100_000_000  # the format's own limit


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A tensor of a shard: its dtype's code and shape, and where its bytes start in the file."""

    file: pathlib.Path
    dtype_code: str
    shape: tuple[int, ...]
    offset: int

    @property
    def dtype(self) -> np.dtype[Any]:
        """The numpy dtype; KeyError for a code that is not a floating-point type of `SAFETENSORS_DTYPES`."""
        return SAFETENSORS_DTYPES[self.dtype_code]

    @property
    def bytes(self) -> int:
        """Its size in the file; 0 for a dtype that is not of `SAFETENSORS_DTYPES`."""
        return (
            math.prod(self.shape) * self.dtype.itemsize
            if self.dtype_code in SAFETENSORS_DTYPES
            else 0
        )

    def read(self, rows: slice | None = None) -> NDArray[Any]:
        """The tensor, or the rows `rows` of its first axis, in the file's dtype."""
        start, stop, _ = (rows or slice(None)).indices(self.shape[0] if self.shape else 1)
        shape = (stop - start, *self.shape[1:]) if self.shape else ()
        row_bytes = math.prod(self.shape[1:]) * self.dtype.itemsize
        values = np.empty(shape, self.dtype)
        with open(self.file, "rb", buffering=0) as file:
            file.seek(self.offset + start * row_bytes)
            target = values.reshape(-1).view(np.uint8).data
            while target:
                count = file.readinto(target)
                if not count:
                    raise CheckpointError(
                        f"{self.file} ended while it was read; was it changed meanwhile?"
                    )
                target = target[count:]
        return values


def read_tensor_headers(folder: pathlib.Path) -> dict[str, StoredTensor]:
    """The tensors of a folder, by name; only headers are read.

    The index decides which files are read; without one, all `*.safetensors` files of the folder
    are.

    Raises:
        CheckpointError: a file is missing, truncated or malformed, or two files hold the same
            tensor.
    """
    index = folder / SAFETENSORS_INDEX
    if index.exists():
        weight_map = _read_index(index)
        names = sorted(set(weight_map.values()))
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise CheckpointError(
                f"{index} names files that do not exist, {len(missing)} of {len(names)}: {', '.join(missing)}; "
                f"{_why_missing(folder, missing)}"
            )
        files = [folder / name for name in names]
    else:
        # What begins with a dot is no shard but, as `._model.safetensors`, macOS's attributes of
        # one.
        files = sorted(
            file for file in folder.glob("*.safetensors") if not file.name.startswith(".")
        )
        if not files:
            finding = recognize_folder(folder, "weights")
            reason = f" - it {finding}" if finding else ""
            raise CheckpointError(
                f"{folder} holds no safetensors files (neither {SAFETENSORS_INDEX} nor *.safetensors){reason}"
            )
        _check_shards_complete(folder, [file.name for file in files])
    tensors: dict[str, StoredTensor] = {}
    for file in files:
        for name, tensor in read_header(file).items():
            if name in tensors:
                raise CheckpointError(
                    f"tensor {name!r} is both in {tensors[name].file} and in {file.name}"
                )
            tensors[name] = tensor
    return tensors


def read_header(file: pathlib.Path) -> dict[str, StoredTensor]:
    """The tensors of one safetensors file.

    Raises:
        CheckpointError: the file is truncated or malformed.
    """
    try:
        size = file_size(file)
        with open_read(file) as opened:
            length = int.from_bytes(opened.read(8), "little")
            if size < 8 or length > min(size - 8, _MAX_HEADER_BYTES):
                truncated = (
                    ""
                    if (finding := recognize_file(file, "weights")) and size
                    else ", or is truncated"
                )
                reason = finding or f"has no header of {length} bytes in {size}; {COPY_AGAIN}"
                raise CheckpointError(f"{file} is not a safetensors file{truncated}: it {reason}")
            header = json.loads(opened.read(length))
    except OSError as error:
        raise CheckpointError(
            f"cannot read {file}: {recognize_file(file, 'weights') or error.strerror}"
        ) from None
    except (ValueError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        reason = (
            recognize_file(file, "weights")
            or f"has a header that is not JSON ({error}); {COPY_AGAIN}"
        )
        raise CheckpointError(f"{file} is not a safetensors file: it {reason}") from None
    if not isinstance(header, dict):
        raise CheckpointError(f"{file} is not a safetensors file: its header is not a mapping")
    header.pop("__metadata__", None)
    return {
        name: _stored_tensor(file, name, entry, 8 + length, size) for name, entry in header.items()
    }


def _stored_tensor(file: pathlib.Path, name: str, entry: Any, data: int, size: int) -> StoredTensor:
    try:
        code, shape, (start, stop) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        valid = all(isinstance(number, int) and number >= 0 for number in (*shape, start, stop))
    except (TypeError, KeyError, ValueError):
        valid = False
    if not valid or not isinstance(code, str):
        raise CheckpointError(
            f"{file} is malformed: the header's entry of tensor {name!r} is {entry!r}"
        )
    if (
        code in SAFETENSORS_DTYPES
        and stop - start != math.prod(shape) * SAFETENSORS_DTYPES[code].itemsize
    ):
        raise CheckpointError(
            f"{file} is malformed: tensor {name!r} of shape {shape}, {code}, has {stop - start} bytes"
        )
    if data + stop > size:
        raise CheckpointError(
            f"{file} is truncated: tensor {name!r} ends at byte {data + stop} of {size}; {COPY_AGAIN}"
        )
    return StoredTensor(file, code, shape, data + start)


def _read_index(index: pathlib.Path) -> dict[str, str]:
    try:
        weight_map = json.loads(read_bytes(index))["weight_map"]
    except (ValueError, KeyError, TypeError, RecursionError):
        reason = f"; it {finding}" if (finding := recognize_file(index, "weights")) else ""
        raise CheckpointError(f"{index} is not JSON with a key 'weight_map'{reason}") from None
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: 'weight_map' must map tensor names to file names")
    for name, file in weight_map.items():
        if not isinstance(file, str) or pathlib.PurePath(file).name != file:
            raise CheckpointError(
                f"{index}: tensor {name!r} must be in a file of the folder, not in {file!r}"
            )
    return weight_map


def _check_shards_complete(folder: pathlib.Path, names: Sequence[str]) -> None:
    """Without an index, `-of-00004` is the only sign that a shard was not copied."""
    for name in names:
        numbered = re.fullmatch(r"(.*)-\d+-of-(\d+)\.safetensors", name)
        if numbered:
            total = int(numbered[2])
            expected = [
                f"{numbered[1]}-{number:05d}-of-{total:05d}.safetensors"
                for number in range(1, total + 1)
            ]
            missing = sorted(set(expected) - set(names))
            if missing:
                raise CheckpointError(
                    f"{folder} lacks {len(missing)} of {total} shards: {', '.join(missing)}; {_why_missing(folder, missing)}"
                )


def _why_missing(folder: pathlib.Path, names: Sequence[str]) -> str:
    """Returns what is to be done about shards that are not there."""
    if finding := recognize_file(folder / names[0], "weights"):
        return f"{names[0]} {finding}"
    if finding := unfinished_download(folder):
        return f"the folder {finding}"
    return "download or copy them into the folder"


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
        write_json(self._folder / SAFETENSORS_INDEX, index)


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


MAX_SHARD_BYTES = 5 * 10**9
