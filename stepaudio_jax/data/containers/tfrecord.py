"""TFRecord files: an index by reading the lengths of their records, and checked reads.

A record is its length (8 bytes) and the CRC of that, its bytes, and their CRC. A file has no index,
so opening reads its records' lengths one after the other; 8 bytes a record are held.
"""

import array

import numpy as np

from stepaudio_jax.data.containers.crc32c import masked_crc32c, masked_crc32c_of_columns
from stepaudio_jax.data.containers.example_rows import RecordDecoder
from stepaudio_jax.data.containers.record_file import RecordFile
from stepaudio_jax.errors import DataError
from stepaudio_jax.storage import COPY_AGAIN, PathLike, file_size, open_read, read_range

_LENGTH_BYTES = 8
_CRC_BYTES = 4
_HEADER_BYTES = _LENGTH_BYTES + _CRC_BYTES
_GZIP_START = b"\x1f\x8b"


class TFRecordFile(RecordFile):
    """Gives random access to the rows of a TFRecord file (see `base.Container`).

    Args:
        path: of the file.
        decoder: see `RecordFile`.

    Raises:
        DataError: it cannot be read, is compressed, is cut short, or a length is damaged. The bytes
            of a record are checked when it is read.
    """

    def __init__(self, path: PathLike, decoder: RecordDecoder | None = None):
        super().__init__(path, decoder)
        try:
            self._starts = _index_records(self.path)
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read ({error.strerror or error})") from None

    def __len__(self) -> int:
        return len(self._starts) - 1

    def read_record(self, index: int) -> bytes:
        """Reads the bytes of a record, and checks their CRC: see `RecordFile`."""
        start, stop = self._starts[index] + _HEADER_BYTES, self._starts[index + 1]
        try:
            content = read_range(self.path, start, stop)
        except OSError as error:
            raise DataError(
                f"{self.origin(index)}: cannot be read ({error.strerror or error})"
            ) from None
        record, crc = content[:-_CRC_BYTES], content[-_CRC_BYTES:]
        if len(content) != stop - start or masked_crc32c(record) != int.from_bytes(crc, "little"):
            raise DataError(
                f"{self.origin(index)}: is damaged: its bytes do not match its CRC; {COPY_AGAIN}"
            )
        return record


def _index_records(path: str) -> "array.array[int]":
    """Returns the offset of each record, and at the end the size of the file."""
    size = file_size(path)
    starts = array.array("q", [0])
    headers = bytearray()
    with open_read(path) as file:
        if file.read(len(_GZIP_START)) == _GZIP_START:
            raise DataError(
                f"{path}: is compressed with gzip, which allows no random access; decompress it"
                f" (gunzip < {path} > NEW_FILE)"
            )
        while starts[-1] < size:
            file.seek(starts[-1])
            header = file.read(_HEADER_BYTES)
            if len(header) < _HEADER_BYTES:
                break
            headers += header
            length = int.from_bytes(header[:_LENGTH_BYTES], "little")
            stop = starts[-1] + _HEADER_BYTES + length + _CRC_BYTES
            if stop > size:
                break
            starts.append(stop)
    # The first length that is damaged explains whatever was read after it.
    damaged = _first_damaged(bytes(headers))
    if damaged == 0:
        raise DataError(
            f"{path}: is not a TFRecord file, or is damaged at its start: the length of its first"
            f" record does not match its CRC; {COPY_AGAIN}"
        )
    if damaged is not None:
        raise DataError(
            f"{path}#{damaged}: is damaged at byte {starts[damaged]}: the length of the record does"
            f" not match its CRC; {COPY_AGAIN}"
        )
    if starts[-1] < size:
        raise DataError(
            f"{path}#{len(starts) - 1}: the file is cut short: it ends at byte {size}, within the"
            f" record that begins at byte {starts[-1]}; {COPY_AGAIN}"
        )
    return starts


def _first_damaged(headers: bytes) -> int | None:
    """Returns the index of the first header whose CRC does not match its length, or None."""
    table = np.frombuffer(headers, np.uint8).reshape(-1, _HEADER_BYTES)
    stored = np.ascontiguousarray(table[:, _LENGTH_BYTES:]).view("<u4")[:, 0]
    damaged = np.flatnonzero(masked_crc32c_of_columns(table[:, :_LENGTH_BYTES]) != stored)
    return int(damaged[0]) if len(damaged) else None
