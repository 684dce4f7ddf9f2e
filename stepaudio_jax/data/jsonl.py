"""JSONL files of dialogues: random access to their records, with `file:line` in every error.

Only the byte offset and the number of each line are held in memory (16 bytes a record), so a file may be larger than memory.
"""

import array
import bisect
import functools
import glob
import json
import os
import pathlib
import re
from collections.abc import Iterator, Sequence

from stepaudio_jax.audio import shown_path
from stepaudio_jax.config import SourceConfig
from stepaudio_jax.data.record import DataError, Record
from stepaudio_jax.data.schema import parse_record

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class JsonlFile:
    """The records of one JSONL file, as a random-access sequence (grain's `RandomAccessDataSource`).

    Blank lines are passed over. Reads are independent of each other and safe from any thread. A record is parsed and checked
    when it is read; whether its audio files exist is seen when they are loaded, or by `require_audio`.

    Args:
        path: the file.
        source: the `source` of records that do not name theirs; the file's stem when empty.

    Raises:
        DataError: the file cannot be read.
    """

    def __init__(self, path: str | os.PathLike[str], source: str = ""):
        self.path = os.fspath(path)
        self._source = source or pathlib.Path(path).stem
        try:
            found = os.stat(self.path)
            self._offsets, self._numbers = _index(self.path, found.st_size, found.st_mtime_ns)
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read: {error.strerror}; give the path of a JSONL file") from None

    def __len__(self) -> int:
        return len(self._offsets)

    def __repr__(self) -> str:
        return f"JsonlFile({self.path!r}, records={len(self)})"

    def line_number(self, index: int) -> int:
        """Of the record at `index`, from 1."""
        return self._numbers[index]

    def origin(self, index: int) -> str:
        """`file:line` of the record at `index`."""
        return f"{self.path}:{self._numbers[index]}"

    def __getitem__(self, index: int) -> Record:
        """The record at `index` (0 <= index < len).

        Raises:
            DataError: naming `file:line` and what is wrong with it.
        """
        with open(self.path, "rb") as file:
            file.seek(self._offsets[index])
            line = file.readline()
        origin = self.origin(index)
        return parse_record(
            _json(line, origin),
            origin=origin,
            folder=os.path.dirname(self.path),
            source=self._source,
            default_id=f"{pathlib.Path(self.path).stem}:{self.line_number(index)}",
        )


class JsonlSource:
    """All files of one source of the mixture, end to end, in the order of their names.

    Raises:
        DataError: no file matches, a file cannot be read, or none has a record.
    """

    def __init__(self, config: SourceConfig):
        self.path = config.path
        paths = [config.path] if os.path.exists(config.path) else sorted(glob.glob(config.path, recursive=True))
        if not paths:
            raise DataError(f"{config.path}: no such file, and no file matches it; check the path in data.sources")
        self.files = tuple(JsonlFile(path, config.name) for path in paths)
        self.name = config.name or pathlib.Path(config.path).stem
        self._starts = array.array("q", [0])
        for file in self.files:
            self._starts.append(self._starts[-1] + len(file))
        if not len(self):
            raise DataError(f"{config.path}: has no records; give at least one line")

    def __len__(self) -> int:
        return self._starts[-1]

    def __repr__(self) -> str:
        return f"JsonlSource({self.path!r}, records={len(self)})"

    def __getitem__(self, index: int) -> Record:
        """The record at `index` (0 <= index < len); raises as `JsonlFile` does."""
        which = bisect.bisect_right(self._starts, index) - 1
        return self.files[which][index - self._starts[which]]


def read_jsonl(path: str | os.PathLike[str]) -> Iterator[Record]:
    """The records of one file, in order.

    Raises:
        DataError: the file cannot be read, or naming `file:line` and what is wrong with it.
    """
    file = JsonlFile(path)
    for index in range(len(file)):
        yield file[index]


def require_audio(record: Record) -> None:
    """Checks that every clip of a record is a file.

    Raises:
        DataError: naming the record's file and line, and the clip.
    """
    for message in record.messages:
        for clip in message.audio:
            if not os.path.isfile(clip.path):
                raise DataError(
                    f"{record.origin}: audio {shown_path(clip.path)}: does not exist; correct the path "
                    "(relative to the JSONL file)"
                )


@functools.cache
def _index(path: str, size: int, changed: int) -> tuple[Sequence[int], Sequence[int]]:
    """Offset and number of each line that is not blank, of a file of that size, changed at that time.

    A run opens its files twice, to check them and to read them, and every stage does: a large file is gone through once.
    """
    offsets, numbers = array.array("q"), array.array("q")
    offset = 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.isspace():
                offsets.append(offset)
                numbers.append(number)
            offset += len(line)
    return offsets, numbers


def _json(line: bytes, origin: str) -> object:
    try:
        text = line.decode("utf-8-sig").rstrip()
        value = json.loads(text)
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        raise DataError(f"{origin}: is not UTF-8 (byte {error.start}); save the file as UTF-8") from None
    except UnicodeEncodeError:
        raise DataError(
            f"{origin}: has an escape that is half of a surrogate pair (\\ud8..); write the character itself"
        ) from None
    except json.JSONDecodeError as error:
        raise DataError(
            f"{origin}: is not JSON ({error.msg} at column {error.colno}); each line must be one JSON object"
        ) from None
    except RecursionError:
        raise DataError(f"{origin}: is nested too deeply to be a dialogue; correct the line") from None
    except ValueError:  # the only other one: Python's limit of 4300 digits
        raise DataError(f"{origin}: has a number of more than 4300 digits; correct the line") from None
    return value
