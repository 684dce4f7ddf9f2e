"""JSON Lines, plain or in gzip: random access to the rows, with `file:line` in every error.

Only the byte offset and the number of each line are held in memory (16 bytes a row), so a file may
be larger than memory.
"""

import array
import functools
import json
import os
import re
from collections.abc import Sequence
from typing import Any, NoReturn

from stepaudio_jax.data.containers.base import Row
from stepaudio_jax.data.containers.places import file_stem, no_clip_inside
from stepaudio_jax.data.containers.text_files import TextFile, reading
from stepaudio_jax.errors import DataError
from stepaudio_jax.storage import PathLike, expand_home, file_version, truncate

_KIND = "a JSONL file"
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class JsonlRows:
    """Reads the rows of a file with one JSON value in each line.

    Blank lines are skipped. A line is parsed when it is read.

    Args:
        path: of the file, which may be compressed with gzip.

    Raises:
        DataError: the file cannot be read, or its compressed content is cut off.
    """

    def __init__(self, path: PathLike):
        self.path = expand_home(os.fspath(path))
        with reading(self.path, _KIND):
            version = file_version(self.path)
        self._text, self._starts, self._line_numbers = _index_lines(self.path, version)

    def __len__(self) -> int:
        return len(self._line_numbers)

    def __repr__(self) -> str:
        return f"JsonlRows({self.path!r}, rows={len(self)})"

    def line_number(self, index: int) -> int:
        """Returns the line number of the row at `index`, from 1."""
        return self._line_numbers[index]

    def origin(self, index: int) -> str:
        """Returns `file:line` of the row at `index`."""
        return f"{self.path}:{self._line_numbers[index]}"

    def row(self, index: int) -> Row:
        """Reads the row at `index`.

        Raises:
            DataError: the line is not JSON in UTF-8; names `file:line` and why.
        """
        origin = self.origin(index)
        with reading(self.path, _KIND):
            # What follows up to the next row are blank lines.
            content = self._text.read(self._starts[index], self._starts[index + 1])
        return Row(
            value=parse_json(content.partition(b"\n")[0], origin),
            origin=origin,
            folder=os.path.dirname(self.path),
            default_id=f"{file_stem(self.path)}:{self._line_numbers[index]}",
        )

    def read_clip(self, place: str) -> NoReturn:
        """Raises a DataError: the file has no clips inside."""
        raise no_clip_inside(self.path, place)

    def blocks(self) -> None:
        """Returns None: every row is read alone."""


def parse_json(
    content: bytes, origin: str, advice: str = "each line must be one JSON object"
) -> Any:
    """Returns the value of a JSON text.

    Args:
        content: the text, in UTF-8 with or without a byte order mark.
        origin: where it was read, the start of every error message.
        advice: what the text must be.

    Raises:
        DataError: it is not JSON, not UTF-8, or holds what no text may hold.
    """
    try:
        text = content.decode("utf-8-sig").rstrip()
        value = _decoder.decode(text)
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        raise DataError(
            f"{origin}: is not UTF-8 (byte {error.start}); save the file as UTF-8"
        ) from None
    except UnicodeEncodeError:
        raise DataError(
            f"{origin}: has an escape that is half of a surrogate pair (\\ud8..);"
            " write the character itself"
        ) from None
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        raise DataError(
            f"{origin}: is not JSON ({error.msg} at {line}column {error.colno}); {advice}"
        ) from None
    except KeyError as error:  # of `_object`
        raise DataError(
            f"{origin}: has the key {truncate(error.args[0])!r} twice in one object, of which JSON"
            " keeps the last; keep one"
        ) from None
    except RecursionError:
        raise DataError(
            f"{origin}: is nested too deeply to be a dialogue; correct the line"
        ) from None
    except ValueError:  # the only other one: Python's limit of 4300 digits
        raise DataError(
            f"{origin}: has a number of more than 4300 digits; correct the line"
        ) from None
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Returns a JSON object; raises a KeyError with the key that is there twice."""
    value = dict(pairs)
    if len(value) < len(pairs):
        keys = [key for key, _ in pairs]
        raise KeyError(next(key for key in keys if keys.count(key) > 1))
    return value


_decoder = json.JSONDecoder(object_pairs_hook=_object)


@functools.lru_cache(maxsize=64)
def _index_lines(
    path: str, version: tuple[int, str]
) -> tuple[TextFile, Sequence[int], Sequence[int]]:
    """Returns the text, the offsets of the lines that are not blank and of the end, their numbers.

    Cached by the file's size and version, since every stage opens its files twice (to check
    and to read them), and a large file takes long.
    """
    text = TextFile(path, _KIND)
    starts, numbers = array.array("q"), array.array("q")
    offset = 0
    with reading(path, _KIND), text.open() as file:
        for number, line in enumerate(file, 1):
            if not line.isspace():
                starts.append(offset)
                numbers.append(number)
            offset += len(line)
    starts.append(offset)
    return text, starts, numbers
