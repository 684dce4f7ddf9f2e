"""Reads the rows of a benchmark's folder as it was downloaded; clips are named, and not opened."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from stepaudio_jax.data.containers.base import EmbeddedClip, Row
from stepaudio_jax.data.containers.folders import exists, is_folder, list_folder
from stepaudio_jax.data.containers.opening import open_container
from stepaudio_jax.data.containers.places import clip_name
from stepaudio_jax.data.containers.text_files import reading
from stepaudio_jax.data.sources.foreign_keys import is_address
from stepaudio_jax.data.sources.json_values import format_json
from stepaudio_jax.errors import DataError
from stepaudio_jax.storage import PathLike, expand_home, format_path

_DATA_FOLDER = "data"
_TABLE_ENDING = ".parquet"


def read_rows(folder: PathLike, benchmark: str, tables: Sequence[str] = ()) -> list[Row]:
    """Reads the rows of a benchmark: a table of JSON Lines, or Parquet files as the Hub has them.

    Args:
        folder: with one of the tables, or with Parquet files in it or in `data` below it; or the
            path of a file of rows itself.
        benchmark: its name, for messages.
        tables: names of files in the folder, the first that is there is read.

    Raises:
        DataError: there is no such folder, none of the files is in it, or a row is no object;
            names the place.
    """
    path = expand_home(os.fspath(folder))
    container = open_container(_table_path(path, benchmark, tables))
    rows = [container.row(index) for index in range(len(container))]
    for row in rows:
        if not isinstance(row.value, Mapping):
            raise DataError(f"{row.origin}: must be an object, got {format_json(row.value)}")
    return rows


def read_text_field(row: Row, key: str) -> str:
    """Returns a text of a row.

    Raises:
        DataError: the row has no such key, or it holds no text.
    """
    value = row.value.get(key)
    if not isinstance(value, str):
        what = f"got {format_json(value)}" if key in row.value else "the row lacks it"
        raise DataError(f"{row.origin}: {key!r} must be a text; {what}")
    return value


def read_id_field(row: Row, key: str) -> str:
    """Returns the id of a row, a text or a whole number.

    Raises:
        DataError: it has none.
    """
    value = row.value.get(key)
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
        raise DataError(
            f"{row.origin}: {key!r} must be a text or a whole number, got {format_json(value)}"
        )
    return str(value)


def find_clip(row: Row, *keys: str, folder: str = "") -> str:
    """Returns the path of a row's clip: of a file, or `FILE#PLACE` of one inside the table.

    Args:
        row: with a clip in one of the keys: the path of a file relative to the table, or a struct
            of a Parquet file.
        keys: the first that is there is read.
        folder: below the table's, to which paths are relative.

    Raises:
        DataError: no key names a clip.
    """
    for key in keys:
        value = row.value.get(key)
        if isinstance(value, Mapping):
            value = value.get("path")  # a struct that was written as JSON has no bytes
        if isinstance(value, str) and value:
            is_placed = isinstance(value, EmbeddedClip) or is_address(value)
            return value if is_placed else os.path.join(row.folder, folder, expand_home(value))
    names = " or ".join(map(repr, keys))
    raise DataError(f"{row.origin}: {names} must name a clip; the row has none there")


def missing_clip(row: Row, key: str) -> str:
    """Returns the name of the clip that a column of a row should have and has not.

    It is found to be missing when it is read, as any other clip.
    """
    path, _, index = row.origin.rpartition("#")
    return clip_name(path, f"{index}/{key}") if path else os.path.join(row.folder, key)


def _table_path(path: str, benchmark: str, tables: Sequence[str]) -> str:
    """Returns the file or folder that holds the rows."""
    with reading(path, f"the folder of {benchmark}"):
        names = list_folder(path) if is_folder(path) else None
    if names is None:
        if exists(path):
            return path
        raise DataError(f"{format_path(path)}: no such folder; give that of {benchmark}")
    for table in tables:
        if table in names:
            return os.path.join(path, table)
    for folder in (path, os.path.join(path, _DATA_FOLDER)):
        if is_folder(folder) and any(name.endswith(_TABLE_ENDING) for name in list_folder(folder)):
            return folder
    raise DataError(
        f"{format_path(path)}: is not the folder of {benchmark}, which holds"
        f" {' or '.join([*tables, 'Parquet files in data/'])}"
    )
