"""JSON arrays of objects, as LLaMA-Factory and many exports write them, in a `.json` file.

The file is scanned once for the beginnings and ends of the elements (16 bytes a row); an element
is parsed when it is read, so a file may be larger than memory.
"""

import array
import os
import re
from collections.abc import Sequence
from typing import NoReturn

from stepaudio_jax.data.containers.base import Row
from stepaudio_jax.data.containers.jsonl import JsonlRows, parse_json
from stepaudio_jax.data.containers.places import file_stem, no_clip_inside
from stepaudio_jax.data.containers.text_files import TextFile, read_head, reading
from stepaudio_jax.errors import DataError
from stepaudio_jax.storage import COPY_AGAIN, PathLike, expand_home, format_path

_KIND = "a JSON file"
_BLOCK_BYTES = 1 << 20
_MAX_SHOWN = 40
_HEAD_BYTES = 1 << 12
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# Strings that end in the same block are skipped whole; a lone quote begins a longer one.
_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"|["{}\[\]]', re.DOTALL)
_IN_STRING = re.compile(rb'["\\]')
# The next bracket inside an element, with all whole strings before it.
_BRACKET = re.compile(rb'(?:[^"{}\[\]]++|"(?:[^"\\]++|\\.)*+")*+[{}\[\]]', re.DOTALL)


class JsonArray:
    """Reads the elements of a JSON array of objects.

    Args:
        path: of the file, which may be compressed with gzip.

    Raises:
        DataError: the file cannot be read, is cut off, or is no array of objects; names the place.
    """

    def __init__(self, path: PathLike):
        self.path = expand_home(os.fspath(path))
        self._text = TextFile(self.path, _KIND)
        scanner = _Scanner(self.path, self._text)
        with reading(self.path, _KIND):
            scanner.scan()
        self._starts: Sequence[int] = scanner.starts
        self._ends: Sequence[int] = scanner.ends

    def __len__(self) -> int:
        return len(self._ends)

    def __repr__(self) -> str:
        return f"JsonArray({self.path!r}, rows={len(self)})"

    def origin(self, index: int) -> str:
        """Returns `file#index`, the index counted from 0."""
        return f"{self.path}#{index}"

    def row(self, index: int) -> Row:
        """Reads the element at `index`.

        Raises:
            DataError: it is not JSON in UTF-8; names `file#index` and why.
        """
        origin = self.origin(index)
        with reading(self.path, _KIND):
            content = self._text.read(self._starts[index], self._ends[index])
        return Row(
            value=parse_json(content, origin, "correct this element of the array"),
            origin=origin,
            folder=os.path.dirname(self.path),
            default_id=f"{file_stem(self.path)}:{index}",
        )

    def read_clip(self, place: str) -> NoReturn:
        """Raises a DataError: the file has no clips inside."""
        raise no_clip_inside(self.path, place)

    def blocks(self) -> None:
        """Returns None: every row is read alone."""


def open_json(path: PathLike) -> JsonArray | JsonlRows:
    """Opens a file of JSON, an array or JSON Lines, whichever it is by its first character.

    Raises:
        DataError: the file cannot be read, or is a damaged array.
    """
    name = expand_home(os.fspath(path))
    with reading(name, _KIND):
        head = read_head(name, _HEAD_BYTES).removeprefix(BYTE_ORDER_MARK).lstrip()
    return JsonArray(name) if head.startswith(b"[") else JsonlRows(name)


class _Scanner:
    """Finds the beginning and the end of each element of an array, block by block.

    Attributes:
        starts: offsets of the elements' first bytes.
        ends: offsets after their last bytes.
    """

    def __init__(self, path: str, text: TextFile):
        self.starts = array.array("q")
        self.ends = array.array("q")
        self._path = format_path(path)
        self._text = text
        self._depth = 0  # of open brackets; 1 between the elements
        self._is_closed = False
        self._in_string = False
        self._skip = 0  # bytes of the next block that belong to an escape
        self._between = b""  # what has stood since the last element, or before the array

    def scan(self) -> None:
        """Scans all of the text; raises a DataError where it is no array of objects."""
        offset = 0
        with self._text.open() as file:
            while block := file.read(_BLOCK_BYTES):
                self._scan_block(block, offset)
                offset += len(block)
        if self._is_closed:
            if self._between:
                raise self._error("after the end of the array", self._between, offset)
        elif self._depth == 0:
            raise DataError(f"{self._path}: has no array of objects; write one, or JSON Lines")
        elif self._depth == 1 and not self._in_string:
            raise DataError(
                f"{self._path}: is cut off after {len(self.ends)} elements, in line"
                f" {self._line_number(offset)}: the array is not closed; {COPY_AGAIN}"
            )
        else:
            raise DataError(
                f"{self._path}#{len(self.ends)}: the file ends inside this element, which begins"
                f" in line {self._line_number(self.starts[-1])}: it is cut off, or a bracket or"
                f" quote is not closed; {COPY_AGAIN}"
            )

    def _scan_block(self, block: bytes, offset: int) -> None:
        position, self._skip = self._skip, 0
        if self._in_string:
            position = self._end_of_string(block, position)
        gap_start = position
        has_bracket = True
        while not self._in_string:
            # Between brackets of an element there is nothing to check, which is most of a file.
            skipped = _BRACKET.match(block, position) if has_bracket and self._depth > 1 else None
            has_bracket = self._depth <= 1 or skipped is not None
            token = _TOKEN.search(block, skipped.end() - 1 if skipped else position)
            if token is None:
                break
            start, position = token.span()
            character = block[start : start + 1]
            if self._depth <= 1:
                self._check_gap(block[gap_start:start], character, offset + start)
            if character == b'"':
                if position - start == 1:
                    self._in_string = True
                    position = self._end_of_string(block, position)
            elif character in b"{[":
                if self._depth == 1:
                    self.starts.append(offset + start)
                self._depth += 1
            else:
                self._depth -= 1
                if self._depth == 1:
                    self.ends.append(offset + position)
                self._is_closed = self._depth == 0
            gap_start = position
        if self._depth <= 1 and not self._in_string:
            self._between += block[gap_start:].strip()[:_MAX_SHOWN]

    def _end_of_string(self, block: bytes, position: int) -> int:
        """Returns where the open string ends in a block, or the end of the block."""
        while special := _IN_STRING.search(block, position):
            if special[0] == b'"':
                self._in_string = False
                return special.end()
            position = special.end() + 1
        self._skip = max(position - len(block), 0)
        return len(block)

    def _check_gap(self, gap: bytes, token: bytes, offset: int) -> None:
        """Checks what stands before a token outside the elements: a comma, or nothing."""
        between = (self._between + gap).strip()
        self._between = b""
        if self._depth == 0:
            if self._is_closed:
                raise self._error("after the end of the array", between + token, offset)
            if token != b"[" or between not in (b"", BYTE_ORDER_MARK):
                raise self._error("before the array", between + token, offset)
        elif token == b"]":
            if between:
                raise self._error("before the end of the array", between, offset)
        elif token not in b"{[":
            raise self._error("in the place of an object", between + token, offset)
        elif between != (b"," if self.ends else b""):
            raise self._error("in the place of a comma", between or token, offset)

    def _error(self, where: str, content: bytes, offset: int) -> DataError:
        shown = ascii(content[:_MAX_SHOWN].decode("utf-8", "replace"))
        return DataError(
            f"{self._path}#{len(self.ends)}: has {shown} {where}, in line"
            f" {self._line_number(offset)}; a JSON file must be one array of objects, as"
            " [{..}, {..}], or have an object in each line"
        )

    def _line_number(self, offset: int) -> int:
        count = 1
        with self._text.open() as file:
            while offset > 0 and (block := file.read(min(_BLOCK_BYTES, offset))):
                count += block.count(b"\n")
                offset -= len(block)
        return count
