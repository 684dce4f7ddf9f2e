"""Folders of sound files with a metadata file, or with a folder for each label.

This is the layout of `datasets`' audiofolder: `metadata.csv`, `metadata.jsonl` or
`metadata.parquet` beside the files or above them, whose `file_name` is a path relative to it; or
no such file, and the names of the files' folders as labels.
"""

import array
import bisect
import os
import posixpath
from collections.abc import Sequence
from typing import Any, NoReturn

from stepaudio_jax.data.containers.base import Container, Row
from stepaudio_jax.data.containers.csv_table import CsvTable
from stepaudio_jax.data.containers.folders import exists, list_files_below
from stepaudio_jax.data.containers.jsonl import JsonlRows
from stepaudio_jax.data.containers.parquet import ParquetTable
from stepaudio_jax.data.containers.places import AUDIO_EXTENSIONS, extension, no_clip_inside
from stepaudio_jax.data.containers.text_files import reading
from stepaudio_jax.errors import DataError
from stepaudio_jax.storage import PathLike, expand_home, first_few, format_path

METADATA_NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet", "metadata.tsv")
# Names of folders that are parts of a dataset and no labels, as `datasets` knows them.
SPLIT_NAMES = frozenset(
    (
        *("train", "training", "test", "testing", "eval", "evaluation", "dev", "develop"),
        *("val", "valid", "validation"),
    )
)
_KIND = "a folder of sound files"


class AudioFolder:
    """Reads a row for each sound file of a folder.

    A row is `{"audio": PATH, ...}` with the other columns of the metadata, or with `label` where
    the files lie in folders of labels. Columns `X_file_name`, `file_names` and `X_file_names` name
    sound as well, and become `X`, `audios` and `X`. Paths are relative to the folder.

    Args:
        path: of the folder; of one split, if there are several.

    Raises:
        DataError: the folder has no sound, or several splits; metadata does not name a file, or
            there are several metadata files of different kinds; labels are at different depths.
    """

    def __init__(self, path: PathLike):
        self.path = expand_home(os.fspath(path))
        self._shown = format_path(self.path)
        with reading(self.path, _KIND):
            names = list_files_below(self.path)
        files = [name for name in names if extension(name) in AUDIO_EXTENSIONS]
        metadata = [name for name in names if posixpath.basename(name) in METADATA_NAMES]
        if not files:
            raise DataError(
                f"{self._shown}: the folder has no sound files; name a folder with some in it"
            )
        self._check_splits(files, metadata)
        self._files: Sequence[str] = files if not metadata else ()
        self._has_labels = bool(self._files) and self._find_labels(files)
        self._tables: list[tuple[str, Container]] = []
        self._starts = array.array("q", [0])
        self._errors: dict[int, str] = {}
        if metadata:
            self._read_metadata(metadata, files)

    def __len__(self) -> int:
        return len(self._files) or self._starts[-1]

    def __repr__(self) -> str:
        return f"AudioFolder({self.path!r}, rows={len(self)})"

    def origin(self, index: int) -> str:
        """Returns the place in the metadata, or the path of the sound file."""
        if self._files:
            return os.path.join(self.path, self._files[index])
        table, row = self._locate(index)
        return self._tables[table][1].origin(row)

    def row(self, index: int) -> Row:
        """Reads the row at `index`.

        Raises:
            DataError: its metadata cannot be read, names no file, one that is missing, or one that
                an earlier row names.
        """
        if self._files:
            name = self._files[index]
            label = {"label": _folder_name(name)} if self._has_labels else {}
            return Row(
                {"audio": name, **label}, self.origin(index), self.path, os.path.splitext(name)[0]
            )
        table, number = self._locate(index)
        prefix, container = self._tables[table]
        row = container.row(number)
        if index in self._errors:
            raise DataError(f"{row.origin}: {self._errors[index]}")
        value, names = _rename(row, prefix)
        return Row(value, row.origin, self.path, os.path.splitext(names[0])[0])

    def read_clip(self, place: str) -> NoReturn:
        """Raises a DataError: the clips are files of their own."""
        raise no_clip_inside(self.path, place)

    def blocks(self) -> None:
        """Returns None: every row is read alone."""

    def _check_splits(self, files: Sequence[str], metadata: Sequence[str]) -> None:
        """Checks that files of training are not mixed with those of a test."""
        names = (*files, *metadata)
        parts = {name.partition("/")[0] for name in names if "/" in name}
        inner = {name.split("/")[1] for name in names if name.startswith("data/")}
        for prefix, folders in (("", parts), ("data/", inner)):
            splits = sorted(name for name in folders if name.lower() in SPLIT_NAMES)
            if len(splits) > 1:
                advice = (
                    "write a metadata file into each, and name one of them, as"
                    if any(posixpath.dirname(name) == prefix.rstrip("/") for name in metadata)
                    else "name one of them, as"
                )
                raise DataError(
                    f"{self._shown}: holds the splits {first_few(splits)}; {advice}"
                    f" {format_path(os.path.join(self.path, prefix + splits[-1]))}"
                )

    def _find_labels(self, files: Sequence[str]) -> bool:
        """Returns whether the files' folders are labels."""
        if len({_folder_name(name) for name in files}) == 1:
            return False  # one folder says nothing of the files in it
        depths: dict[int, str] = {}
        for name in files:
            depths.setdefault(name.count("/"), name)
        if len(depths) > 1:
            raise DataError(
                f"{self._shown}: its files are at different depths"
                f" ({first_few(list(depths.values()))}), so that the names of folders cannot be"
                " labels; move them, or write a metadata.csv with the column file_name"
            )
        return True

    def _read_metadata(self, metadata: Sequence[str], files: Sequence[str]) -> None:
        kinds = sorted({extension(name) for name in metadata})
        if len(kinds) > 1:
            raise DataError(
                f"{self._shown}: has metadata files of several kinds ({first_few(metadata)});"
                " keep those of one"
            )
        unnamed, origins, num_unread = set(files), dict[str, str](), 0
        for name in metadata:
            table = _open_table(os.path.join(self.path, name))
            prefix = posixpath.dirname(name)
            self._tables.append((prefix, table))
            for number in range(len(table)):
                try:
                    problem = self._check_row(table, number, prefix, unnamed, origins)
                except DataError:  # reading the row says the same
                    num_unread += 1
                    continue
                if problem is not None:
                    self._errors[self._starts[-1] + number] = problem
            self._starts.append(self._starts[-1] + len(table))
        if len(unnamed) > num_unread:
            count = "1 sound file is" if len(unnamed) == 1 else f"{len(unnamed)} sound files are"
            raise DataError(
                f"{self._shown}: {count} not named in"
                f" {first_few(metadata)}: {first_few(sorted(unnamed))}; name each in the column"
                " file_name, or move them away"
            )

    def _check_row(
        self,
        table: Container,
        number: int,
        prefix: str,
        unnamed: set[str],
        origins: dict[str, str],
    ) -> str | None:
        """Returns what is wrong with the files that a row names; None if nothing is."""
        _, names = _rename(table.row(number), prefix)
        for name in names:
            if name in origins:
                return (
                    f"names {format_path(name)}, which {origins[name]} names too; each file must"
                    " have one row"
                )
            if name not in unnamed and not exists(os.path.join(self.path, name)):
                return (
                    f"names {format_path(name)}, which is not in the folder; file_name must be a"
                    " path relative to the metadata file"
                )
            unnamed.discard(name)
            origins[name] = table.origin(number)
        return None

    def _locate(self, index: int) -> tuple[int, int]:
        """Returns the number of the table of a row, and its number there."""
        table = bisect.bisect_right(self._starts, index) - 1
        return table, index - self._starts[table]


def _rename(row: Row, prefix: str) -> tuple[dict[str, Any], list[str]]:
    """Returns a row of metadata with its file names as audio, and those names.

    Names become relative to the folder. A list that is null or empty names no file.
    """
    if not isinstance(row.value, dict):
        raise DataError(f"{row.origin}: must be an object with the key file_name")
    value: dict[str, Any] = {}
    names: list[str] = []
    for key, item in row.value.items():
        if key == "file_name" or key.endswith("_file_name"):
            if not isinstance(item, str) or not item:
                if key != "file_name" and item in (None, ""):
                    continue
                raise DataError(f"{row.origin}: {key!r} must be the path of a sound file")
            name = _join(prefix, item)
            names.append(name)
            _set_new(value, key.removesuffix("file_name").removesuffix("_") or "audio", name, row)
        elif key == "file_names" or key.endswith("_file_names"):
            if not isinstance(item, list) or not all(isinstance(each, str) for each in item):
                raise DataError(f"{row.origin}: {key!r} must be a list of paths of sound files")
            joined = [_join(prefix, each) for each in item]
            names += joined
            _set_new(
                value, key.removesuffix("file_names").removesuffix("_") or "audios", joined, row
            )
        else:
            _set_new(value, key, item, row)
    if not names:
        raise DataError(
            f"{row.origin}: names no sound file; the column file_name must (columns:"
            f" {first_few(list(row.value))})"
        )
    return value, names


def _set_new(value: dict[str, Any], key: str, item: Any, row: Row) -> None:
    if key in value:
        raise DataError(
            f"{row.origin}: {key!r} and a column of file names that stands for it are both given;"
            " rename one of them"
        )
    value[key] = item


def _join(prefix: str, name: str) -> str:
    return posixpath.normpath(posixpath.join(prefix, name.replace("\\", "/")))


def _folder_name(name: str) -> str:
    """Returns the folder in which a file lies, unless it is that of a split."""
    folder = posixpath.basename(posixpath.dirname(name))
    return "" if folder.lower() in SPLIT_NAMES else folder


def _open_table(path: str) -> Container:
    kind = extension(path)
    if kind == "parquet":
        return ParquetTable(path)
    return JsonlRows(path) if kind == "jsonl" else CsvTable(path)
