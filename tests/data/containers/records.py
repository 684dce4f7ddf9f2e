"""Writes record files for the tests, with Google's library or by the definition of the format."""

import pathlib
import struct
from collections.abc import Sequence

from array_record.python.array_record_module import ArrayRecordWriter

from stepaudio_jax.data.containers.crc32c import masked_crc32c


def write_array_record(
    path: pathlib.Path, records: Sequence[bytes], options: str = "group_size:1"
) -> pathlib.Path:
    writer = ArrayRecordWriter(str(path), options)
    for record in records:
        writer.write(record)
    writer.close()
    return path


def write_tfrecord(path: pathlib.Path, records: Sequence[bytes]) -> pathlib.Path:
    content = b""
    for record in records:
        length = struct.pack("<Q", len(record))
        content += length + struct.pack("<I", masked_crc32c(length))
        content += record + struct.pack("<I", masked_crc32c(record))
    path.write_bytes(content)
    return path


def flip(path: pathlib.Path, position: int) -> None:
    """Changes one byte of a file."""
    content = bytearray(path.read_bytes())
    content[position] ^= 0xFF
    path.write_bytes(content)
