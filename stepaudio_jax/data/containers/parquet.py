"""Parquet tables, as `datasets` and pandas write them, with the sound inside or beside them.

Rows are read without the columns that hold sound. Sound is read by row groups: the rows of a group
are compressed together, so reading one clip decodes the column of its whole group, and groups that
were used last are kept. Reading the clips of a group one after the other costs what reading the
file costs; reading clips of many groups at random decodes a group for each.
"""

import bisect
import contextlib
import itertools
import os
from collections.abc import Iterator, Sequence
from typing import Any

from stepaudio_jax.data.containers.base import Block, Row, Samples
from stepaudio_jax.data.containers.decoded_cache import MAX_CACHED_BYTES, DecodedCache
from stepaudio_jax.data.containers.parquet_columns import (
    column_step,
    find_clip,
    read_columns,
    to_json,
)
from stepaudio_jax.data.containers.places import file_stem, is_address, unescape_place
from stepaudio_jax.data.containers.text_files import reading
from stepaudio_jax.errors import DataError
from stepaudio_jax.storage import (
    COPY_AGAIN,
    PathLike,
    expand_home,
    file_version,
    format_path,
    open_read,
)

_KIND = "a Parquet file"
_cache = DecodedCache(MAX_CACHED_BYTES)  # of decoded row groups, of all files together


class ParquetTable:
    """Reads the rows of a Parquet file, and the clips in it.

    A clip with bytes is named by an `EmbeddedClip`, `FILE#ROW/COLUMN`, with more steps where it
    lies in a list or an object. One without bytes is its path. Labels are given by name.

    Args:
        path: of the file.

    Attributes:
        columns: what each column means, by name.

    Raises:
        DataError: the file cannot be read, is cut off or damaged, or pyarrow is not installed.
    """

    def __init__(self, path: PathLike):
        self.path = expand_home(os.fspath(path))
        self._shown = format_path(self.path)
        with reading(self.path, _KIND):
            version = file_version(self.path)
        self._key = (self.path, *version)
        self._metadata: Any = None
        with self._open(self._shown) as file:
            self._metadata = file.metadata
            self.columns = read_columns(file.schema_arrow, lambda leaf: self._first(file, leaf))
        lengths = [self._metadata.row_group(number).num_rows for number in self._groups()]
        self._lengths: Sequence[int] = lengths
        self._starts = list(itertools.accumulate(lengths, initial=0))

    def __len__(self) -> int:
        return self._starts[-1]

    def __repr__(self) -> str:
        return f"ParquetTable({self.path!r}, rows={len(self)})"

    def origin(self, index: int) -> str:
        """Returns `file#row`, the row counted from 0."""
        return f"{self.path}#{index}"

    def row(self, index: int) -> Row:
        """Reads the row at `index` without its sound.

        Raises:
            DataError: its row group is damaged, or bytes in it are neither text nor sound.
        """
        origin = self.origin(index)
        group = bisect.bisect_right(self._starts, index) - 1
        values, looked_at = self._rows(group, origin)
        row = index - self._starts[group]
        value = {}
        for name, column in self.columns.items():
            place = f"{index}/{column_step(name)}"
            if name in looked_at:
                value[name] = looked_at[name][row]
                continue
            try:
                value[name] = to_json(column, values[name][row], self.path, place, has_data=True)
            except UnicodeDecodeError:
                raise DataError(
                    f"{origin}: the column {name!r} holds bytes that are neither text nor the"
                    " beginning of a sound file; store sound as a struct {bytes, path}"
                ) from None
        stem = file_stem(self.path)
        return Row(value, origin, os.path.dirname(self.path), default_id=f"{stem}:{index}")

    def read_clip(self, place: str) -> bytes | Samples:
        """Reads the clip at `ROW/COLUMN`, or at `ROW/COLUMN/INDEX` in a list.

        Raises:
            DataError: there is no such clip, or its row group is damaged.
        """
        row_step, *steps = unescape_place(place).split("/")
        names = {column_step(name): name for name in self.columns}
        shown = f"{self._shown}#{format_path(place)}"
        if not row_step.isdecimal() or int(row_step) >= len(self) or not steps:
            raise DataError(f"{shown}: no such clip; the file has the rows 0 to {len(self) - 1}")
        if steps[0] not in names:
            raise DataError(f"{shown}: no such clip; the columns are {', '.join(self.columns)}")
        index, name = int(row_step), names[steps[0]]
        group = bisect.bisect_right(self._starts, index) - 1
        values = self._clips(group, name, shown)
        clip = find_clip(self.columns[name], values[index - self._starts[group]], steps[1:])
        if clip is None:
            raise DataError(f"{shown}: there is no sound in this place of the table")
        return clip

    def blocks(self) -> Sequence[Block]:
        """Returns the row groups; all columns of one that is read are kept."""
        groups = (self._metadata.row_group(number) for number in self._groups())
        return [Block(group.num_rows, group.total_byte_size) for group in groups]

    def _groups(self) -> range:
        return range(self._metadata.num_row_groups)

    def _rows(self, group: int, origin: str) -> tuple[Any, dict[str, list[Any]]]:
        """Returns a row group's columns without sound, and the values of those with both.

        Where some clips of a column have no data, the data must be looked at to know which; then
        the column's values are kept, and the data is not.
        """

        def decode() -> tuple[Any, int]:
            partly = [name for name in self.columns if not self._all_have_data(group, name)]
            leaves = [
                leaf
                for name, column in self.columns.items()
                if name not in partly
                for leaf in column.leaves
                if leaf not in column.data_leaves
            ]
            table = self._read(group, leaves, origin)
            looked_at = {}
            for name in partly:
                values = self._read(group, self.columns[name].leaves, origin)[name]
                looked_at[name] = [
                    to_json(
                        self.columns[name],
                        values[row],
                        self.path,
                        f"{self._starts[group] + row}/{column_step(name)}",
                        has_data=False,
                    )
                    for row in range(self._lengths[group])
                ]
            columns = {name: table[name] for name in table.column_names}
            return (columns, looked_at), table.nbytes + 200 * len(looked_at) * len(table)

        return _cache.get((*self._key, group), decode)

    def _clips(self, group: int, name: str, origin: str) -> Any:
        def decode() -> tuple[Any, int]:
            values = self._read(group, self.columns[name].leaves, origin)[name]
            return values, values.nbytes

        return _cache.get((*self._key, group, name), decode)

    def _all_have_data(self, group: int, name: str) -> bool:
        """Returns whether all clips of a column in a row group are known to have data."""
        column = self.columns[name]
        if not column.has_clips:
            return True
        if not column.shows_clips:
            return False
        chunks = [self._metadata.row_group(group).column(leaf) for leaf in column.data_leaves]
        return all(
            chunk.statistics is not None
            and chunk.statistics.has_null_count
            and chunk.statistics.null_count == 0
            for chunk in chunks
        )

    def _read(self, group: int, leaves: Sequence[int], origin: str) -> Any:
        paths = [self._metadata.schema.column(leaf).path for leaf in leaves]
        with self._open(origin) as file:
            return file.read_row_group(group, columns=paths, use_threads=False)

    @contextlib.contextmanager
    def _open(self, origin: str) -> Iterator[Any]:
        """Opens the file; each use has a handle of its own, since one has a position.

        Raises:
            DataError: what is done with the file fails.
        """
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ImportError:
            raise DataError(
                f"{self._shown}: Parquet files are read with pyarrow;"
                " install the extra: pip install 'stepaudio-jax[parquet]'"
            ) from None
        try:
            # Arrow reads a local file into memory of its own, which takes half the time.
            is_local = not is_address(self.path)
            with pa.OSFile(self.path) if is_local else open_read(self.path) as file:
                yield pq.ParquetFile(file, metadata=self._metadata, pre_buffer=False)
        except (FileNotFoundError, IsADirectoryError, PermissionError):
            with reading(self.path, _KIND):
                raise
        except (pa.ArrowException, OSError) as error:
            reason = " ".join(str(error).split())
            raise DataError(
                f"{origin}: is no Parquet file, or is cut off or damaged ({reason}); {COPY_AGAIN}"
            ) from None

    def _first(self, file: Any, leaf: int) -> bytes | None:
        """Returns the first bytes of a leaf column, of those that are not null or empty."""
        path = file.metadata.schema.column(leaf).path
        if not file.metadata.num_row_groups:
            return None
        batches = file.iter_batches(16, row_groups=[0], columns=[path], use_threads=False)
        for scalar in (scalar for batch in batches for scalar in batch.column(0)):
            while scalar.is_valid and hasattr(scalar, "values") and len(scalar):
                scalar = scalar[0]  # of a list, or of an object that has this leaf only
            if scalar.is_valid and isinstance(value := scalar.as_py(), bytes) and value:
                return value
        return None
