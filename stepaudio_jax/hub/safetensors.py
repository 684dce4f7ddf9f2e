"""Reads and writes folders of safetensors shards, a few rows of a tensor at a time.

Shards are read with safetensors' own `safe_open`. It maps a file into memory, and a file that is
truncated while it is mapped kills the process; mapped pages also count as resident memory. A file
is therefore mapped for one read of a few MiB at a time, which costs about a millisecond more. Of a
file in a bucket the range of bytes is fetched, and nothing is kept on the local disk. The
headers are parsed here, since error messages name what is wrong with them, and since a reader of
remote files needs the offsets.

A shard's header comes before its data. The writer therefore is told all tensors first (names,
shapes, dtypes), and then appends their rows in order.
"""

import contextlib
import dataclasses
import json
import math
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, BinaryIO, Protocol

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from stepaudio_jax.errors import CheckpointError
from stepaudio_jax.storage import (
    COPY_AGAIN,
    BucketPath,
    Path,
    file_size,
    open_write,
    read_bytes,
    read_range,
    recognize_file,
    recognize_folder,
    unfinished_download,
    write_json,
)

SAFETENSORS_INDEX = "model.safetensors.index.json"
SAFETENSORS_DTYPES: Mapping[str, np.dtype[Any]] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
MAX_SHARD_BYTES = 5 * 10**9
_MAX_HEADER_BYTES = 100_000_000  # the format's own limit


class RowReader(Protocol):
    """Reads rows of a tensor of a safetensors file, wherever the file lies."""

    def __call__(self, tensor: "StoredTensor", start: int, stop: int) -> NDArray[Any]:
        """Returns the rows `start` to `stop` of a tensor's first axis; a scalar has one row."""


def read_local_rows(tensor: "StoredTensor", start: int, stop: int) -> NDArray[Any]:
    """Reads rows of a tensor of a local file; see `RowReader`.

    Raises:
        CheckpointError: the file is not what its header said when it was opened.
    """
    try:
        with safe_open(tensor.file, framework="numpy") as file:
            stored = file.get_slice(tensor.name)
            return stored[start:stop] if tensor.shape else np.asarray(stored[...])
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{tensor.file} cannot be read ({error}); was it changed meanwhile?"
        ) from None


def read_bucket_rows(tensor: "StoredTensor", start: int, stop: int) -> NDArray[Any]:
    """Reads rows of a tensor of a file in a bucket, as one range of bytes; see `RowReader`.

    Raises:
        CheckpointError: the file is not what its header said when it was opened.
    """
    row_shape = tensor.shape[1:]
    row_bytes = math.prod(row_shape) * tensor.dtype.itemsize
    first = tensor.offset + start * row_bytes
    try:
        content = read_range(tensor.file, first, first + (stop - start) * row_bytes)
    except FileNotFoundError:
        content = b""
    if len(content) != (stop - start) * row_bytes:
        raise CheckpointError(f"{tensor.file} cannot be read; was it changed meanwhile?")
    shape = (stop - start, *row_shape) if tensor.shape else ()
    return np.frombuffer(content, tensor.dtype).reshape(shape)


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A tensor of a safetensors file, as the file's header describes it.

    Attributes:
        file: the file that holds it.
        name: its name in the file.
        dtype_code: the format's name of the dtype, such as "BF16".
        shape: the tensor's shape.
        offset: of its first byte in the file.
        reader: reads its rows.
    """

    file: Path
    name: str
    dtype_code: str
    shape: tuple[int, ...]
    offset: int
    reader: RowReader = read_local_rows

    @property
    def dtype(self) -> np.dtype[Any]:
        """Returns the numpy dtype; KeyError if it is not one of `SAFETENSORS_DTYPES`."""
        return SAFETENSORS_DTYPES[self.dtype_code]

    @property
    def bytes(self) -> int:
        """Returns its size in the file; 0 if its dtype is not one of `SAFETENSORS_DTYPES`."""
        if self.dtype_code not in SAFETENSORS_DTYPES:
            return 0
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self, rows: slice | None = None) -> NDArray[Any]:
        """Reads the tensor, or some rows of its first axis, in the file's dtype."""
        num_rows = self.shape[0] if self.shape else 1
        start, stop, _ = (rows or slice(None)).indices(num_rows)
        return self.reader(self, start, stop)


def read_tensor_headers(folder: Path) -> dict[str, StoredTensor]:
    """Returns the tensors of a folder by name; only the headers of its shards are read.

    The index says which files are read; without an index all `*.safetensors` files are.

    Raises:
        CheckpointError: a file is missing, truncated or malformed, or two files hold the same
            tensor.
    """
    tensors: dict[str, StoredTensor] = {}
    for file in _shards(folder):
        for name, tensor in read_header(file).items():
            if name in tensors:
                raise CheckpointError(
                    f"tensor {name!r} is both in {tensors[name].file} and in {file.name}"
                )
            tensors[name] = tensor
    return tensors


def read_header(file: Path) -> dict[str, StoredTensor]:
    """Returns the tensors of one safetensors file by name.

    Raises:
        CheckpointError: the file is truncated or malformed.
    """
    try:
        size = file_size(file)
        length = int.from_bytes(read_range(file, 0, 8), "little")
        if size < 8 or length > min(size - 8, _MAX_HEADER_BYTES):
            finding = recognize_file(file, "weights")
            truncated = "" if finding and size else ", or is truncated"
            reason = finding or f"has no header of {length} bytes in {size}; {COPY_AGAIN}"
            raise CheckpointError(f"{file} is not a safetensors file{truncated}: it {reason}")
        header = json.loads(read_range(file, 8, 8 + length))
    except OSError as error:
        finding = recognize_file(file, "weights")
        raise CheckpointError(f"cannot read {file}: {finding or error.strerror}") from None
    except CheckpointError:
        raise
    except (ValueError, RecursionError) as error:
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


def _stored_tensor(file: Path, name: str, entry: Any, data_start: int, size: int) -> StoredTensor:
    try:
        code, shape, (start, stop) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        valid = all(isinstance(number, int) and number >= 0 for number in (*shape, start, stop))
    except (TypeError, KeyError, ValueError):
        valid = False
    if not valid or not isinstance(code, str):
        raise CheckpointError(
            f"{file} is malformed: the header's entry of tensor {name!r} is {entry!r}"
        )
    reader = read_bucket_rows if isinstance(file, BucketPath) else read_local_rows
    tensor = StoredTensor(file, name, code, shape, data_start + start, reader)
    if code in SAFETENSORS_DTYPES and stop - start != tensor.bytes:
        raise CheckpointError(
            f"{file} is malformed: tensor {name!r} of shape {shape}, {code}, has {stop - start}"
            " bytes"
        )
    if data_start + stop > size:
        raise CheckpointError(
            f"{file} is truncated: tensor {name!r} ends at byte {data_start + stop} of {size};"
            f" {COPY_AGAIN}"
        )
    return tensor


def _shards(folder: Path) -> list[Path]:
    """Returns the safetensors files of a folder, sorted; all of them exist."""
    index = folder / SAFETENSORS_INDEX
    if index.exists():
        names = sorted(set(_read_index(index).values()))
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise CheckpointError(
                f"{index} names files that do not exist, {len(missing)} of {len(names)}:"
                f" {', '.join(missing)}; {_why_missing(folder, missing)}"
            )
        return [folder / name for name in names]
    # A name that begins with a dot, as `._model.safetensors`, is no shard but macOS's attributes
    # of one.
    files = [file for file in folder.glob("*.safetensors") if not file.name.startswith(".")]
    if not files:
        finding = recognize_folder(folder, "weights")
        reason = f" - it {finding}" if finding else ""
        raise CheckpointError(
            f"{folder} holds no safetensors files (neither {SAFETENSORS_INDEX} nor *.safetensors)"
            f"{reason}"
        )
    _check_shards_complete(folder, [file.name for file in files])
    return sorted(files)


def _read_index(index: Path) -> dict[str, str]:
    """Returns the file name of every tensor."""
    try:
        weight_map = json.loads(read_bytes(index))["weight_map"]
    except (ValueError, KeyError, TypeError, RecursionError):
        finding = recognize_file(index, "weights")
        reason = f"; it {finding}" if finding else ""
        raise CheckpointError(f"{index} is not JSON with a key 'weight_map'{reason}") from None
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: 'weight_map' must map tensor names to file names")
    for name, file in weight_map.items():
        if not isinstance(file, str) or pathlib.PurePath(file).name != file:
            raise CheckpointError(
                f"{index}: tensor {name!r} must be in a file of the folder, not in {file!r}"
            )
    return weight_map


def _check_shards_complete(folder: Path, names: Sequence[str]) -> None:
    """Checks that no shard is missing, by the total in names such as `-00001-of-00004`."""
    for name in names:
        numbered = re.fullmatch(r"(.*)-\d+-of-(\d+)\.safetensors", name)
        if not numbered:
            continue
        total = int(numbered[2])
        expected = {
            f"{numbered[1]}-{number:05d}-of-{total:05d}.safetensors"
            for number in range(1, total + 1)
        }
        missing = sorted(expected - set(names))
        if missing:
            raise CheckpointError(
                f"{folder} lacks {len(missing)} of {total} shards: {', '.join(missing)};"
                f" {_why_missing(folder, missing)}"
            )


def _why_missing(folder: Path, names: Sequence[str]) -> str:
    """Returns advice about shards that do not exist."""
    if finding := recognize_file(folder / names[0], "weights"):
        return f"{names[0]} {finding}"
    if finding := unfinished_download(folder):
        return f"the folder {finding}"
    return "download or copy them into the folder"


_DTYPE_CODES = {dtype: code for code, dtype in SAFETENSORS_DTYPES.items()}


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """Name, shape and dtype of a tensor that will be written."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class ShardWriter:
    """Writes tensors, in order, into numbered shards and their index.

    Use it as a context manager and `append` the rows of each tensor in turn. Leaving it checks that
    every byte was written.

    Args:
        folder: an existing folder.
        tensors: what will be written, in order.
        max_shard_bytes: no shard holds more, unless a single tensor does.
    """

    def __init__(self, folder: Path, tensors: Sequence[TensorSpec], max_shard_bytes: int):
        self._folder = folder
        self._shards = list(_split_into_shards(tensors, max_shard_bytes))
        self._tensors = (
            (number, tensor)
            for number, shard in enumerate(self._shards, start=1)
            for tensor in shard
        )
        self._file: BinaryIO | None = None
        self._open_files = contextlib.ExitStack()
        self._number = 0
        self._tensor: TensorSpec | None = None
        self._due = 0  # bytes of the current tensor that are still to come

    def file_name(self, number: int) -> str:
        """Returns the name of the shard `number`, counted from 1."""
        return f"model-{number:05d}-of-{len(self._shards):05d}.safetensors"

    def append(self, rows: NDArray[Any]) -> None:
        """Writes the next rows of the current tensor.

        Raises:
            CheckpointError: they have another dtype, or are more than the tensor still lacks.
        """
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
                f"{rows.nbytes} bytes of {rows.dtype} are not the next {self._due} of"
                f" {self._tensor}"
            )
        self._file.write(np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data)
        self._due -= rows.nbytes

    def _open(self, number: int) -> None:
        self._open_files.close()
        self._number = number
        path = self._folder / self.file_name(number)
        # It is closed by the next call, or by __exit__.
        self._file = self._open_files.enter_context(open_write(path))
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
        self._open_files.__exit__(kind, error, traceback)
        if error is not None:
            return
        following = next(self._tensors, None)
        if self._due or following is not None:
            first = self._tensor if self._due else following
            raise CheckpointError(f"tensors were planned and not written, the first {first}")
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
    # transformers refuses a file without this entry.
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
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
    return text + b" " * (-len(text) % 8)  # aligns the data
