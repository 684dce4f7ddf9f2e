"""CSV and TSV tables with a header: random access to the rows, with `file:line` in every error.

Values are strings, as the file has them. The separator is the one that the header has most often.
A field in quotes may hold line ends. Only the offset and the line number of each row are held in
memory (16 bytes a row).
"""

import array
import csv
import dataclasses
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, BinaryIO, NoReturn

from stepaudio_jax.data.containers.base import Row
from stepaudio_jax.data.containers.places import file_stem, no_clip_inside
from stepaudio_jax.data.containers.text_files import TextFile, reading
from stepaudio_jax.errors import DataError
from stepaudio_jax.storage import PathLike, expand_home, first_few, format_path

_KIND = "a CSV or TSV file"
_SEPARATORS = (",", "\t", ";", "|")
_MAX_FIELD_CHARACTERS = 1 << 28  # a clip in base64 is longer than the csv module's own limit


class CsvTable:
    """Reads the rows of a CSV or TSV file as objects of strings, whose keys the header names.

    Quotes are read as CSV has them. In a table separated by tabs they are characters like any
    other, as Common Voice writes them, if only then all rows have the right number of fields.

    Args:
        path: of the file, which may be compressed with gzip.

    Attributes:
        columns: the names of the columns, in order.

    Raises:
        DataError: the file cannot be read, has no header, or a quote in it is never closed.
    """

    def __init__(self, path: PathLike):
        self.path = expand_home(os.fspath(path))
        self._shown = format_path(self.path)
        self._text = TextFile(self.path, _KIND)
        csv.field_size_limit(_MAX_FIELD_CHARACTERS)
        index = self._index(csv.QUOTE_MINIMAL)
        if index.separator == "\t" and not index.is_regular:
            unquoted = self._index(csv.QUOTE_NONE)
            index = unquoted if unquoted.is_regular else index
        if index.unclosed_line is not None:
            raise DataError(
                f"{self._shown}:{index.unclosed_line}: has a quote that is never closed, so that"
                " the rest of the file is one field; close it, or write it as two quotes"
            )
        self._file_index = index
        self.columns = self._parse_header(index)

    def __len__(self) -> int:
        return len(self._file_index.line_numbers)

    def __repr__(self) -> str:
        return f"CsvTable({self.path!r}, rows={len(self)})"

    def origin(self, index: int) -> str:
        """Returns `file:line` of the row at `index`: the line in which it begins."""
        return f"{self.path}:{self._file_index.line_numbers[index]}"

    def row(self, index: int) -> Row:
        """Reads the row at `index`.

        Raises:
            DataError: it is not UTF-8, or has not as many fields as the header; names `file:line`.
        """
        origin = self.origin(index)
        starts = self._file_index.starts
        fields = self._parse(starts[index], starts[index + 1], self._file_index, origin)
        if len(fields) != len(self.columns):
            raise DataError(
                f"{origin}: has {len(fields)} fields, and the header has {len(self.columns)}"
                f" ({first_few(self.columns)}); a field that holds the separator"
                f" {self._file_index.separator!r} must be in quotes"
            )
        return Row(
            value=dict(zip(self.columns, fields, strict=True)),
            origin=origin,
            folder=os.path.dirname(self.path),
            default_id=f"{file_stem(self.path)}:{self._file_index.line_numbers[index]}",
        )

    def read_clip(self, place: str) -> NoReturn:
        """Raises a DataError: the file has no clips inside."""
        raise no_clip_inside(self.path, place)

    def blocks(self) -> None:
        """Returns None: every row is read alone."""

    def _index(self, quoting: int) -> "_Index":
        with reading(self.path, _KIND), self._text.open() as file:
            return _index_rows(file, "\t" if ".tsv" in self.path.lower() else ",", quoting)

    def _parse_header(self, index: "_Index") -> Sequence[str]:
        origin = f"{self._shown}:{index.header_line}"
        if not index.header_stop:
            raise DataError(f"{self._shown}: is empty; its first line must name the columns")
        names = self._parse(index.header_start, index.header_stop, index, origin)
        for number, name in enumerate(names):
            if name in names[:number]:
                raise DataError(
                    f"{origin}: the header has the column {name!r} twice; rename one of them"
                )
        return names

    def _parse(self, start: int, stop: int, index: "_Index", origin: str) -> list[str]:
        with reading(self.path, _KIND):
            content = self._text.read(start, stop)
        try:
            text = content.decode("utf-8-sig")
            lines = io.StringIO(text, newline="\n")  # a lone carriage return ends no line
            return next(_csv_reader(lines, index.separator, index.quoting))
        except UnicodeDecodeError as error:
            raise DataError(
                f"{origin}: is not UTF-8 (byte {error.start}); save the file as UTF-8"
            ) from None
        except csv.Error as error:
            if "new-line" in str(error):
                raise DataError(
                    f"{origin}: has a carriage return as a line end; save the file with line feeds"
                ) from None
            raise DataError(
                f"{origin}: cannot be read as CSV ({error});"
                " put a field with quotes in it into quotes, and double each quote in it"
            ) from None


@dataclasses.dataclass
class _Index:
    """Says where the rows of a table begin.

    Attributes:
        separator: of the fields.
        quoting: a constant of the csv module.
        header_start, header_stop, header_line: the header's place; an empty file has none.
        starts: offsets of the rows, and of the end.
        line_numbers: of the rows, from 1.
        is_regular: whether all rows could be split into as many fields as the header has.
        unclosed_line: in which a quote is opened that is never closed.
    """

    separator: str
    quoting: int
    header_start: int = 0
    header_stop: int = 0
    header_line: int = 1
    starts: "array.array[int]" = dataclasses.field(default_factory=lambda: array.array("q"))
    line_numbers: "array.array[int]" = dataclasses.field(default_factory=lambda: array.array("q"))
    is_regular: bool = True
    unclosed_line: int | None = None


class _Lines:
    """Iterates over the lines of a file, and counts lines and bytes.

    Lines are decoded as Latin-1: each byte is a character, and those of CSV are ASCII.
    """

    def __init__(self, file: BinaryIO):
        self._file = file
        self.offset = 0
        self.number = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self._file)
        self.offset += len(line)
        self.number += 1
        return line.decode("latin-1")


def _index_rows(file: BinaryIO, usual_separator: str, quoting: int) -> _Index:
    header = file.readline().decode("latin-1")
    while header.isspace():
        header = file.readline().decode("latin-1")
    file.seek(0)
    counts = {separator: header.count(separator) for separator in _SEPARATORS}
    separator = max((usual_separator, *_SEPARATORS), key=lambda each: counts[each])
    index = _Index(separator, quoting)
    lines = _Lines(file)
    rows = _csv_reader(lines, separator, quoting)
    num_columns = 0
    while True:
        start, number = lines.offset, lines.number + 1
        try:
            fields: list[str] | None = next(rows, None)
        except csv.Error as error:
            fields = []
            index.is_regular = False
            if "end of data" in str(error):
                index.unclosed_line = number
        else:
            if fields is None:
                break
            if not fields or (len(fields) == 1 and num_columns != 1 and not fields[0].strip()):
                continue
        if not index.header_stop:
            index.header_start, index.header_stop = start, lines.offset
            index.header_line, num_columns = number, len(fields)
            continue
        index.starts.append(start)
        index.line_numbers.append(number)
        index.is_regular &= len(fields) == num_columns
    index.starts.append(lines.offset)
    return index


def _csv_reader(lines: Iterable[str], separator: str, quoting: Any) -> Any:
    return csv.reader(lines, delimiter=separator, quoting=quoting, strict=True)
