"""JSONL files of dialogues: random access to their records, with `file:line` in every error.

Only the byte offset and the number of each line are held in memory (16 bytes a record), so a file
may be larger than memory.
"""

import array
import bisect
import functools
import json
import os
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

from stepaudio_jax.config import SourceConfig
from stepaudio_jax.data.record import Record
from stepaudio_jax.data.sources.messages import parse_record
from stepaudio_jax.errors import DataError
from stepaudio_jax.storage import (
    PathLike,
    expand_home,
    file_version,
    glob_paths,
    is_bucket_path,
    open_read,
    read_range,
    to_path,
    truncate,
)

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class JsonlFile:
    """Reads the records of one JSONL file by index (grain's `RandomAccessDataSource`).

    Blank lines are skipped. Reads are independent of each other and safe from any thread. A record
    is parsed and checked when it is read; its audio files are opened only when they are decoded.

    Args:
        path: the file.
        source: the `source` of records that name none; "" for the file's stem.

    Raises:
        DataError: the file cannot be read.
    """

    def __init__(self, path: PathLike, source: str = ""):
        self.path = expand_home(os.fspath(path))
        self._source = source or pathlib.Path(path).stem
        try:
            self._size, version = file_version(self.path)
            self._offsets, self._line_numbers = _index_lines(self.path, self._size, version)
        except OSError as error:
            raise DataError(
                f"{self.path}: cannot be read: {error.strerror}; give the path of a JSONL file"
            ) from None

    def __len__(self) -> int:
        return len(self._offsets)

    def __repr__(self) -> str:
        return f"JsonlFile({self.path!r}, records={len(self)})"

    def line_number(self, index: int) -> int:
        """Returns the line number of the record at `index`, from 1."""
        return self._line_numbers[index]

    def origin(self, index: int) -> str:
        """Returns `file:line` of the record at `index`."""
        return f"{self.path}:{self._line_numbers[index]}"

    def record_id(self, index: int) -> str:
        """Returns the id of the record at `index`, even if the record cannot be used otherwise."""
        try:
            value = _parse_line(self._read_line(index), self.origin(index))
        except DataError:
            value = None
        record_id = value.get("id") if isinstance(value, dict) else None
        if isinstance(record_id, str) and record_id:
            return record_id
        is_number = isinstance(record_id, int | float) and not isinstance(record_id, bool)
        return json.dumps(record_id) if is_number else self._default_id(index)

    def __getitem__(self, index: int) -> Record:
        """Reads the record at `index` (0 <= index < len).

        Raises:
            DataError: names `file:line` and what is wrong with it.
        """
        origin = self.origin(index)
        return parse_record(
            _parse_line(self._read_line(index), origin),
            origin=origin,
            folder=os.path.dirname(self.path),
            source=self._source,
            default_id=self._default_id(index),
        )

    def _read_line(self, index: int) -> bytes:
        is_last = index + 1 == len(self._offsets)
        stop = self._size if is_last else self._offsets[index + 1]
        return read_range(self.path, self._offsets[index], stop).partition(b"\n")[0]

    def _default_id(self, index: int) -> str:
        return f"{pathlib.Path(self.path).stem}:{self.line_number(index)}"


class JsonlSource:
    """Reads the records of all files of one source, in the order of their names.

    Args:
        config: of the source.
        names: of the mixture's files, from `source_names`, if there are several sources.

    Raises:
        DataError: no file matches, a file cannot be read, or none has a record.
    """

    def __init__(self, config: SourceConfig, names: Mapping[str, str] = MappingProxyType({})):
        self.path = config.path
        paths = _files(config)
        if not paths:
            raise DataError(
                f"{truncate(config.path)}: no such file, and no file matches it;"
                " check the path in data.sources"
            )
        self.files = tuple(JsonlFile(path, config.name or names.get(path, "")) for path in paths)
        self.name = config.name or names.get(config.path) or pathlib.Path(config.path).stem
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
        """Reads the record at `index` (0 <= index < len); raises as `JsonlFile` does."""
        file, index_in_file = self._locate(index)
        return file[index_in_file]

    def origin(self, index: int) -> str:
        """Returns `file:line` of the record at `index`."""
        file, index_in_file = self._locate(index)
        return file.origin(index_in_file)

    def _locate(self, index: int) -> tuple[JsonlFile, int]:
        which = bisect.bisect_right(self._starts, index) - 1
        return self.files[which], index - self._starts[which]


def open_sources(configs: Sequence[SourceConfig]) -> tuple[JsonlSource, ...]:
    """Opens the sources of a mixture; `source_names` names those without a name.

    Raises:
        DataError: as of `JsonlSource`.
    """
    names = source_names(configs)
    return tuple(JsonlSource(config, names) for config in configs)


def source_names(configs: Sequence[SourceConfig]) -> dict[str, str]:
    """Returns names for the sources without one: of each path, and of each file that it matches.

    A name is the file's stem. If another source has that name, as many parent folders are added as
    distinguish the two (`a/train` and `b/train`), and if that is not enough, the file's ending.
    """
    named = {config.name for config in configs if config.name}
    paths = {config.path: {config.path, *_files(config)} for config in configs if not config.name}
    names: dict[str, str] = {}
    for source, of_source in paths.items():
        others = {
            path
            for other, of_other in paths.items()
            if other != source
            for path in of_other - of_source
        }
        taken = {suffix for path in others for suffix in _name_candidates(path)} | named
        for path in of_source:
            candidates = _name_candidates(path)
            names[path] = next((name for name in candidates if name not in taken), candidates[-1])
    return names


def _name_candidates(path: str) -> list[str]:
    """Returns the names that a path can have, shortest first: `c`, `b/c`, .., `a/b/c.jsonl`."""
    parts = pathlib.Path(os.path.normpath(path)).parts
    stems = [*parts[:-1], pathlib.Path(path).stem]
    return [
        *("/".join(stems[start:]).replace("//", "/") for start in reversed(range(len(stems)))),
        path if is_bucket_path(path) else os.path.normpath(path),
    ]


def _files(config: SourceConfig) -> list[str]:
    """Returns the files of a source: its path, or what matches it."""
    return [config.path] if to_path(config.path).exists() else glob_paths(config.path)


def read_jsonl(path: PathLike) -> Iterator[Record]:
    """Yields the records of one file, in order.

    Raises:
        DataError: the file cannot be read, or a line is wrong; names `file:line` and why.
    """
    file = JsonlFile(path)
    for index in range(len(file)):
        yield file[index]


@functools.cache
def _index_lines(path: str, size: int, version: str) -> tuple[Sequence[int], Sequence[int]]:
    """Returns the offset and the number of each line that is not blank.

    Cached by the file's size and version, since every stage opens its files twice (to check
    and to read them), and a large file takes long.
    """
    offsets, numbers = array.array("q"), array.array("q")
    offset = 0
    with open_read(path) as file:
        for number, line in enumerate(file, 1):
            if not line.isspace():
                offsets.append(offset)
                numbers.append(number)
            offset += len(line)
    return offsets, numbers


def _parse_line(line: bytes, origin: str) -> object:
    try:
        text = line.decode("utf-8-sig").rstrip()
        value = json.loads(text)
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
        raise DataError(
            f"{origin}: is not JSON ({error.msg} at column {error.colno});"
            " each line must be one JSON object"
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
