"""Finds the tables of a benchmark in a folder as it is downloaded, and reads their rows."""

import contextlib
import dataclasses
import fnmatch
import os
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from stepaudio_jax.data.containers.base import Container, EmbeddedClip, Row
from stepaudio_jax.data.containers.folders import is_folder, list_files_below
from stepaudio_jax.data.containers.open_folder import check_complete
from stepaudio_jax.data.containers.opening import open_container
from stepaudio_jax.data.containers.parquet_columns import column_step
from stepaudio_jax.data.containers.places import clip_name
from stepaudio_jax.data.containers.text_files import reading
from stepaudio_jax.data.sources.foreign_keys import is_address
from stepaudio_jax.data.sources.json_values import format_json, is_empty
from stepaudio_jax.errors import DataError
from stepaudio_jax.storage import PathLike, expand_home, first_few, format_path
from stepaudio_jax.text import AudioPart

_JSON_ENDINGS = (".json", ".jsonl", ".json.gz", ".jsonl.gz")
_PLACE = re.compile(r"(?P<file>.*)[:#](?P<row>\d+)", re.DOTALL)
_NUMBER = re.compile(r"-\d+-of-\d+(?:-[0-9a-f]{16})?(?=\.)")


@dataclasses.dataclass(frozen=True)
class BenchmarkRow:
    """Gives typed access to a row of a benchmark; errors name the file and the place.

    Attributes:
        value: the row's keys; a clip inside a table is an `EmbeddedClip`.
        origin: `file:line` or `file#place`.
        folder: the base of relative paths.
    """

    value: Mapping[str, Any]
    origin: str
    folder: str

    def text(self, *names: str) -> str:
        """Returns the text of the first of some keys that the row has.

        Raises:
            DataError: the row has none of them, or what it has is blank or no text.
        """
        name = self._name(names)
        item = self.value[name]
        if not isinstance(item, str) or not item.strip():
            raise self.error(f"{name!r} must be a text that is not blank, got {format_json(item)}")
        return item

    def optional_text(self, *names: str) -> str | None:
        """Returns the text of the first of some keys that the row has; None for none or a blank.

        Raises:
            DataError: it is no text.
        """
        for name in names:
            item = self.value.get(name)
            if is_empty(item):
                continue
            if not isinstance(item, str):
                raise self.error(f"{name!r} must be a text, got {format_json(item)}")
            return item
        return None

    def groups(self, names: Mapping[str, Sequence[str]]) -> dict[str, str]:
        """Returns the row's groups: {name of a grouping: the text of the first key it has}.

        A list of one text, which some rows have in the place of a text, is that text.

        Args:
            names: {name of a grouping: keys that may hold it}. Groupings without a key are left
                out.
        """
        groups = {}
        for grouping, keys in names.items():
            for key in keys:
                item = self.value.get(key)
                if isinstance(item, list) and len(item) == 1:
                    item = item[0]
                if isinstance(item, str) and item.strip():
                    groups[grouping] = item.strip()
                    break
        return groups

    def clip(self, *names: str, transcript: str | None = None) -> AudioPart:
        """Returns the clip that the first of some keys names: inside the table, or a file.

        A clip that is null is named by its place too, so that it is missed when it is opened, as a
        file that is not there: the other items go on.

        Raises:
            DataError: the row has none of the keys, or the value names no clip.
        """
        name = self._name(names, allow_null=True)
        item = self.value[name]
        if isinstance(item, Mapping):  # a struct of a table that was written as JSON
            item = item.get("path")
        if item is None or item == "":
            item = _place_of_null(self.origin, name)
        if not isinstance(item, str):
            raise self.error(f"{name!r} must name a clip, got {format_json(item)}")
        if not isinstance(item, EmbeddedClip) and not is_address(item):
            item = os.path.join(self.folder, expand_home(item.removeprefix("./")))
        return AudioPart(item, transcript=transcript)

    def without_sound(self, *names: str) -> dict[str, Any]:
        """Returns the row's values without the clips that some keys hold, and without others."""
        return {
            key: item
            for key, item in self.value.items()
            if key not in names and not isinstance(item, EmbeddedClip)
        }

    @contextlib.contextmanager
    def error_context(self) -> Iterator[None]:
        """Turns an error about the row's values into one that names its place."""
        try:
            yield
        except DataError as error:
            raise self.error(str(error)) from None

    def error(self, reason: str) -> DataError:
        """Returns the error that the row cannot be used."""
        return DataError(f"{self.origin}: {reason}")

    def _name(self, names: Sequence[str], *, allow_null: bool = False) -> str:
        for name in names:
            if name in self.value and (allow_null or self.value[name] is not None):
                return name
        what = "has no" if not any(name in self.value for name in names) else "has no value of"
        raise self.error(
            f"{what} {' or '.join(map(repr, names))}"
            f" (it has {first_few(list(self.value), limit=12) or 'nothing'})"
        )


def find_tables(folder: PathLike, *, names: Sequence[str] = ("*",), what: str) -> list[str]:
    """Returns the files of a benchmark's rows, below a folder or the file that is named itself.

    Parquet files come first, since they hold the sound; then files of JSON. Copies of one table in
    both forms of JSON count once.

    Args:
        folder: as downloaded, or one file of it.
        names: patterns of the names of JSON files, of which the first that is there counts.
        what: the benchmark's files in words, for errors.

    Raises:
        DataError: there are none, several that may be meant, or shards are missing.
    """
    path = expand_home(os.fspath(folder)).rstrip("/")
    with reading(path, what):
        if not is_folder(path):
            return [path]
        files = list_files_below(path)
    tables = [name for name in files if name.lower().endswith(".parquet")]
    if tables:
        for series in _series(tables):
            check_complete(path, series)
        return [os.path.join(path, name) for name in tables]
    candidates = [name for name in files if name.lower().endswith(_JSON_ENDINGS)]
    for pattern in names:
        matching = [
            name
            for name in candidates
            if fnmatch.fnmatch(posixpath.basename(name).lower(), pattern.lower())
        ]
        if len(matching) > 1:
            shown = first_few(sorted(matching))
            raise DataError(
                f"{format_path(path)}: several files may hold the rows ({shown}); name one of them"
            )
        if matching:
            return [os.path.join(path, matching[0])]
    held = f"it holds {first_few(files)}" if files else "it is empty"
    raise DataError(f"{format_path(path)}: has no rows of this benchmark; give {what} ({held})")


def read_rows(paths: Sequence[str]) -> Iterator[BenchmarkRow]:
    """Yields the rows of some tables, in order, without opening any sound.

    Raises:
        DataError: a file or a row cannot be read; names it.
    """
    for path in paths:
        container: Container = open_container(path)
        for index in range(len(container)):
            yield _as_benchmark_row(container.row(index))


def check_has_rows(items: Sequence[object], folder: PathLike) -> None:
    """Raises a DataError that names a benchmark's folder if nothing was read from it."""
    if not items:
        raise DataError(f"{format_path(os.fspath(folder))}: has no rows; download it again")


def check_unique(ids: dict[str, str], row_id: str, origin: str) -> None:
    """Checks that no other row has an id, and adds it.

    Args:
        ids: {id: origin} of the rows before.
        row_id: of the row.
        origin: of the row.

    Raises:
        DataError: one has; names both places.
    """
    if row_id in ids:
        raise DataError(
            f"{origin}: has the id {row_id!r}, which {ids[row_id]} has too; remove one of the two"
        )
    ids[row_id] = origin


def split_name(path: str) -> str:
    """Returns a table's name without number and ending: `a-00000-of-00001.parquet` is `a`."""
    return _NUMBER.sub("", os.path.basename(path)).split(".")[0]


def _series(tables: Sequence[str]) -> list[list[str]]:
    """Groups shards by what their names have in common."""
    series: dict[str, list[str]] = {}
    for name in tables:
        series.setdefault(_NUMBER.sub("", name), []).append(name)
    return list(series.values())


def _as_benchmark_row(row: Row) -> BenchmarkRow:
    if not isinstance(row.value, Mapping):
        raise DataError(f"{row.origin}: must be an object, got {format_json(row.value)}")
    return BenchmarkRow(row.value, row.origin, row.folder)


def _place_of_null(origin: str, column: str) -> EmbeddedClip:
    """Returns the name of a clip that a column of the row at `file:line` or `file#row` lacks."""
    place = _PLACE.fullmatch(origin)
    file, row = (place["file"], place["row"]) if place else (origin, "0")
    return clip_name(file, f"{row}/{column_step(column)}")
