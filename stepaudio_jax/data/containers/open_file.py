"""Opens a file of rows, of whatever kind it is."""

import codecs
import os
import re
from typing import Any

from stepaudio_jax.data.containers.base import Container
from stepaudio_jax.data.containers.csv_table import CsvTable
from stepaudio_jax.data.containers.json_array import BYTE_ORDER_MARK, JsonArray
from stepaudio_jax.data.containers.jsonl import JsonlRows
from stepaudio_jax.data.containers.lhotse import open_lhotse_file
from stepaudio_jax.data.containers.parquet import ParquetTable
from stepaudio_jax.data.containers.places import extension, looks_like_sound
from stepaudio_jax.data.containers.tar import TarShard
from stepaudio_jax.data.containers.text_files import TextFile, read_head, reading
from stepaudio_jax.errors import DataError
from stepaudio_jax.storage import (
    CONVERT_SOUND,
    file_size,
    first_few,
    format_path,
    parse_json,
    recognize,
)

UNDERSTOOD = (
    "files of JSON Lines, JSON arrays, CSV and TSV (all these also in .gz), Parquet, WebDataset"
    " (.tar), ArrayRecord and TFRecord; folders of these, and of Kaldi, Lhotse, TFDS and"
    " audiofolder"
)
_KIND = "a file of data"
_HEAD_BYTES = 1 << 16
_ARRAY_RECORD_SIGNATURE = b"\x83\xaf\x70\xd1\x0d\x88\x4a\x3f"
_TAR_SIGNATURE_PLACE = slice(257, 262)
_JSON_LINES_ENDINGS = ("jsonl", "ndjson", "jsonlines")
_CSV_ENDINGS = ("csv", "tsv")
_TF_RECORD_NAME = re.compile(r".*\.tfrecords?([.-].*)?")
_ARRAY_RECORD_NAME = re.compile(r".*\.array_?record([.-].*)?")
# What `recognize` says of files that hold no sound, and no rows either -> what to do with them.
_REMEDIES = {
    "is an Arrow table": "write it as Parquet, with `datasets`: `dataset.to_parquet(FILE)`",
    "is an Avro file": "write it as Parquet or JSON Lines",
    "is an SQLite database": "write its table as CSV or Parquet",
}


def open_file(path: str) -> Container:
    """Opens a file of rows.

    Args:
        path: of the file.

    Raises:
        DataError: the file cannot be read, is damaged, or is of no kind that is understood.
    """
    with reading(path, _KIND):
        head, size = read_head(path, _HEAD_BYTES), file_size(path)
    name = os.path.basename(path).lower().removesuffix(".gz")
    if name.endswith(".tgz"):
        return TarShard(path)  # which says that it must not be compressed
    container = _open_binary(path, head, name)
    return _open_text(path, head, name, size) if container is None else container


def binary_kind(name: str) -> str | None:
    """Returns what a file that is no text should be, by its name; None where the name says not."""
    name = name.lower()
    if name.endswith((".parquet", ".tar")):
        return extension(name)
    if _ARRAY_RECORD_NAME.fullmatch(name):
        return "array_record"
    return "tfrecord" if _TF_RECORD_NAME.fullmatch(name) else None


def text_kind(name: str) -> str | None:
    """Returns what a file of text should be, by its name; None where the name says not."""
    kind = extension(name.lower().removesuffix(".gz"))
    return kind if kind in (*_JSON_LINES_ENDINGS, *_CSV_ENDINGS, "json") else None


def _open_binary(path: str, head: bytes, name: str) -> Container | None:
    """Opens a file that is no text, by how it begins, or else by its name.

    A compressed file of this kind is opened too, to be refused by its container.
    """
    kind = binary_kind(name) if head and not _is_text(head) else None
    if head.startswith(b"PAR1"):
        kind = "parquet"
    elif head[_TAR_SIGNATURE_PLACE] == b"ustar":
        kind = "tar"
    elif head.startswith(_ARRAY_RECORD_SIGNATURE):
        kind = "array_record"
    if kind == "parquet":
        return ParquetTable(path)
    if kind == "tar":
        return TarShard(path)
    if kind == "array_record":
        from stepaudio_jax.data.containers.array_record import ArrayRecordFile

        return ArrayRecordFile(path)
    if kind == "tfrecord":
        from stepaudio_jax.data.containers.tfrecord import TFRecordFile

        return TFRecordFile(path)
    return None


def _open_text(path: str, head: bytes, name: str, size: int) -> Container:
    ending = extension(name)
    text = head.removeprefix(BYTE_ORDER_MARK).lstrip()
    if not text and ending in _JSON_LINES_ENDINGS:
        return JsonlRows(path)  # without rows
    if not head and size:
        TextFile(path, _KIND)  # which says that its compressed content is cut off
    _check_not_foreign(path, head, size)
    if text.startswith(b"[") and not (ending in _JSON_LINES_ENDINGS and _has_lines(text)):
        array = JsonArray(path)
        return open_lhotse_file(array)
    if text.startswith((b"{", b"[")) or ending in _JSON_LINES_ENDINGS:
        _check_not_one_object(path, text, ending)
        lines = JsonlRows(path)
        return open_lhotse_file(lines)
    if ending in _CSV_ENDINGS:
        return CsvTable(path)
    raise DataError(
        f"{format_path(path)}: is of no kind that is understood; there are {UNDERSTOOD}"
    )


def _check_not_foreign(path: str, head: bytes, size: int) -> None:
    """Checks that a file is not what lies in the place of data: a pointer, a web page, an image."""
    shown = format_path(path)
    if looks_like_sound(head) and not _is_text(head):
        raise DataError(
            f"{shown}: is a sound file, and no table of rows; name a table that names it, or the"
            " folder in which it lies"
        )
    finding = recognize(head, size, "sound", is_text=True)
    if finding is None or finding.what.startswith("holds JSON"):
        return
    remedy = _REMEDIES.get(finding.what, finding.remedy)
    if "sound file" in remedy or remedy == CONVERT_SOUND:
        remedy = f"there are {UNDERSTOOD}"
    raise DataError(f"{shown}: {finding.what}; {remedy}")


def _check_not_one_object(path: str, text: bytes, ending: str) -> None:
    """Checks that a file is no JSON object over several lines, as settings are written."""
    first = text.partition(b"\n")[0]
    if ending in _JSON_LINES_ENDINGS or first.strip() != b"{":
        return
    value = parse_json(text)
    shown = format_path(path)
    if isinstance(value, dict) and is_llama_factory_index(value):
        raise DataError(
            f"{shown}: lists datasets of LLaMA-Factory; name one of their files, such as"
            f" {first_few([str(item['file_name']) for item in value.values()])}"
        )
    keys = f" with the keys {first_few(list(map(str, value)))}" if isinstance(value, dict) else ""
    raise DataError(
        f"{shown}: is one JSON object over several lines{keys}; write a JSON array of rows, or one"
        " row in each line"
    )


def is_llama_factory_index(value: dict[str, Any]) -> bool:
    """Returns whether a JSON object is a `dataset_info.json` of LLaMA-Factory."""
    items = value.values()
    return bool(value) and all(isinstance(item, dict) and "file_name" in item for item in items)


def _has_lines(text: bytes) -> bool:
    """Returns whether the first line is a JSON value, and is not all there is."""
    first, _, rest = text.partition(b"\n")
    return bool(rest.strip()) and parse_json(first) is not None


def _is_text(head: bytes) -> bool:
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)  # which may end inside a character
    except UnicodeDecodeError:
        return False
    return b"\0" not in head
