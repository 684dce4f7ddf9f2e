"""A source of a mixture: the rows of its files or folder, each read as a Record.

A container gives the rows (`containers`), an adapter turns a row of another library's form into the
project's own (`sources.forms`), and `sources.messages` checks it.
"""

import array
import bisect
import glob
import json
import os
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from stepaudio_jax.config import SourceConfig
from stepaudio_jax.data.containers.base import Container, Row
from stepaudio_jax.data.containers.folders import exists, is_folder, list_files_below
from stepaudio_jax.data.containers.opening import open_container
from stepaudio_jax.data.containers.places import AUDIO_EXTENSIONS, extension, file_stem
from stepaudio_jax.data.containers.sharded import ShardedRows
from stepaudio_jax.data.containers.tfds import TfdsFolder, dataset_name_parts, resolve_name
from stepaudio_jax.data.record import Record
from stepaudio_jax.data.sources.forms import (
    FormOptions,
    check_options,
    row_form,
    to_project_form,
    unread_keys,
)
from stepaudio_jax.data.sources.llama_factory import dataset_entry
from stepaudio_jax.data.sources.messages import parse_record
from stepaudio_jax.errors import ConfigError, DataError
from stepaudio_jax.storage import PathLike, read_json_or_none, truncate

_TFDS = "tfds:"
# A dataset's name on the Hugging Face Hub, or its address.
_HUB_NAME = re.compile(
    r"(?P<address>https?://(?:www\.)?(?:huggingface\.co|hf\.co)/datasets/|hf://(?:datasets/)?)?"
    r"(?P<name>\w[\w.-]*/\w[\w.-]*)(?(address)(?:/.*)?)"
)


class ExaminedRow(NamedTuple):
    """Holds a record, and how its row was read.

    Attributes:
        record: of the row.
        form: the name of the row's form.
        unread: its keys that nothing reads.
    """

    record: Record
    form: str
    unread: list[str]


class Source:
    """Reads the records of all files of one source, in the order of their names.

    Reads are independent of each other and safe from any thread (grain's `RandomAccessDataSource`).
    A record is parsed and checked when it is read; its clips are opened only when they are decoded.

    Args:
        config: of the source.
        names: of the mixture's files, from `source_names`, if there are several sources.

    Attributes:
        path: as the configuration names it.
        name: by which metrics and rewards group its records.
        containers: the opened files, in order.
        settings: what decides how its rows are read, JSON-ready.

    Raises:
        DataError: no file matches, a file cannot be read, or none has a record.
        ConfigError: the form is unknown, or `columns` names a key that no row has.
    """

    def __init__(self, config: SourceConfig, names: Mapping[str, str] = MappingProxyType({})):
        self.path = config.path
        paths = _find_paths(config)
        if not paths:
            raise DataError(_no_such_file(config.path))
        self.containers = tuple(_open(path, config) for path in paths)
        self.name = config.name or names.get(config.path) or _shortest_name(config.path)
        self._default_names = [
            config.name or names.get(path) or _shortest_name(path) for path in paths
        ]
        self._options = [_form_options(config, path) for path in paths]
        check_options(self._options[0])
        self.settings = {
            "format": config.format,
            "columns": dict(config.columns),
            "prompt": config.prompt,
            "split": config.split,
        }
        self._starts = array.array("q", [0])
        for container in self.containers:
            self._starts.append(self._starts[-1] + len(container))
        if not len(self):
            raise DataError(f"{config.path}: has no records; give at least one dialogue")

    def __len__(self) -> int:
        return self._starts[-1]

    @property
    def files(self) -> list[str]:
        """Returns the files whose content decides its rows, in order: all but sound files."""
        files: list[str] = []
        for container in self.containers:
            if isinstance(container, ShardedRows):
                files += [shard.path for shard in container.shards]
                continue
            if not is_folder(container.path):
                files.append(container.path)
                continue
            below = list_files_below(container.path)
            files += [
                os.path.join(container.path, name)
                for name in below
                if extension(name) not in AUDIO_EXTENSIONS
            ]
        return files

    def __repr__(self) -> str:
        return f"Source({self.path!r}, records={len(self)})"

    def __getitem__(self, index: int) -> Record:
        """Reads the record at `index` (0 <= index < len).

        Raises:
            DataError: names `file:line` or `file#place`, and what is wrong with it.
        """
        return self._record(*self._project_row(index))

    def examine(self, index: int) -> ExaminedRow:
        """Reads the record at `index`, and tells how its row was read.

        Raises:
            DataError: as of `source[index]`.
        """
        which, row, value = self._project_row(index)
        record = self._record(which, row, value)
        return ExaminedRow(record, row_form(row, self._options[which]), unread_keys(value))

    def raw_row(self, index: int) -> Row:
        """Returns the row at `index` as its container holds it."""
        which, index = self._locate(index)
        return self.containers[which].row(index)

    def origin(self, index: int) -> str:
        """Returns `file:line` or `file#place` of the record at `index`."""
        which, index = self._locate(index)
        return self.containers[which].origin(index)

    def record_id(self, index: int) -> str:
        """Returns the id of the record at `index`, even if the record cannot be used otherwise."""
        try:
            row = self.raw_row(index)
        except DataError:
            path, separator, place = self.origin(index).rpartition(":")
            return f"{file_stem(path)}{separator}{place}"
        record_id = row.value.get("id") if isinstance(row.value, Mapping) else None
        if isinstance(record_id, str) and record_id:
            return record_id
        is_number = isinstance(record_id, int | float) and not isinstance(record_id, bool)
        return json.dumps(record_id) if is_number else row.default_id

    def block_lengths(self) -> list[int] | None:
        """Returns the lengths of the blocks of rows that are stored together; None if none are."""
        blocks = [container.block_lengths() for container in self.containers]
        if all(lengths is None for lengths in blocks):
            return None
        lengths: list[int] = []
        for container, of_container in zip(self.containers, blocks, strict=True):
            lengths.extend(of_container if of_container is not None else [len(container)])
        return lengths

    def form(self, index: int) -> str:
        """Returns the name of the form of the row at `index`, even if it cannot be used otherwise.

        Raises:
            DataError: the row cannot be read, or its form is not known.
        """
        which, index = self._locate(index)
        return row_form(self.containers[which].row(index), self._options[which])

    def _project_row(self, index: int) -> tuple[int, Row, dict[str, Any]]:
        """Returns the number of a row's container, the row, and its value in our own form."""
        which, index = self._locate(index)
        row = self.containers[which].row(index)
        return which, row, to_project_form(row, self._options[which])

    def _record(self, which: int, row: Row, value: Mapping[str, Any]) -> Record:
        return parse_record(
            value,
            origin=row.origin,
            folder=row.folder,
            source=self._default_names[which],
            default_id=row.default_id,
        )

    def _locate(self, index: int) -> tuple[int, int]:
        which = bisect.bisect_right(self._starts, index) - 1
        return which, index - self._starts[which]


def open_sources(configs: Sequence[SourceConfig]) -> tuple[Source, ...]:
    """Opens the sources of a mixture; `source_names` names those without a name.

    Raises:
        DataError: as of `Source`.
    """
    names = source_names(configs)
    return tuple(Source(config, names) for config in configs)


def open_source(path: PathLike, **settings: Any) -> Source:
    """Opens one source by its path; `settings` are those of `SourceConfig`.

    Raises:
        DataError: as of `Source`.
    """
    return Source(SourceConfig(path=os.fspath(path), **settings))


def read_records(path: PathLike) -> Iterator[Record]:
    """Yields the records of one source, in order.

    Raises:
        DataError: it cannot be read, or a record is wrong; names the place and why.
    """
    source = open_source(path)
    for index in range(len(source)):
        yield source[index]


def source_names(configs: Sequence[SourceConfig]) -> dict[str, str]:
    """Returns names for the sources without one: of each path, and of each file that it matches.

    A name is the file's stem, or that of a TFDS data set. If another source has that name, as many
    parent folders are added as distinguish the two (`a/train` and `b/train`), and if that is not
    enough, the file's ending. Of a data set, its configuration, version and split are added first.
    """
    named = {config.name for config in configs if config.name}
    paths = {
        config.path: {config.path, *_find_paths(config)} for config in configs if not config.name
    }
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


def _find_paths(config: SourceConfig) -> list[str]:
    """Returns the files and folders of a source: its path, or what matches it."""
    if config.path.startswith(_TFDS) or exists(config.path):
        return [config.path]
    return sorted(glob.glob(config.path, recursive=True))


def _no_such_file(path: str) -> str:
    """Returns what is wrong with a path that names nothing here; perhaps it is one of the Hub's."""
    match = _HUB_NAME.fullmatch(path)
    # `runs/data` beside an existing `runs/` is a path with a mistake in it.
    if match and (match["address"] or not exists(os.path.dirname(path))):
        name = match["name"]
        return (
            f"{truncate(path)}: no such file; if it is a dataset of the Hugging Face Hub, download"
            f" it, since machines in pods do not reach the Hub: `hf download {name} --repo-type"
            f" dataset --local-dir {name.split('/')[1]}`, and name that folder"
        )
    return f"{truncate(path)}: no such file, and no file matches it; check the path"


def _open(path: str, config: SourceConfig) -> Container:
    """Opens a container; `split` is for data sets of TFDS."""
    split = config.split
    if path.startswith(_TFDS):
        path, named = resolve_name(path)
        if split is not None and named is not None:
            raise ConfigError(f"split={split!r}, and {config.path} names one too: keep one of them")
        return TfdsFolder(path, split or named)
    if split is None:
        return open_container(path)
    if not exists(os.path.join(path, "features.json")):
        raise ConfigError(
            f"split={split!r} of source {path}: only data sets of TFDS have splits that are named"
            " so; name the files or the folder of the split as its path"
        )
    return TfdsFolder(path, split)


def _form_options(config: SourceConfig, path: str) -> FormOptions:
    return FormOptions(
        format=config.format,
        columns=config.columns,
        prompt=config.prompt,
        dataset_info=_dataset_info(path),
    )


def _dataset_info(path: str) -> Mapping[str, Any] | None:
    """Returns what a `dataset_info.json` of LLaMA-Factory beside a file says of it, or None."""
    info_path = os.path.join(os.path.dirname(path), "dataset_info.json")
    if path.startswith(_TFDS) or is_folder(path) or not exists(info_path):
        return None
    info = read_json_or_none(info_path)
    return dataset_entry(info, path) if isinstance(info, Mapping) else None


def _shortest_name(path: str) -> str:
    return _name_candidates(path)[0]


def _name_candidates(path: str) -> list[str]:
    """Returns the names that a path can have, shortest first: `c`, `b/c`, .., `a/b/c.jsonl`.

    Those of a TFDS data set begin with its own, as `talks`, `talks/plain`, `talks/plain/1.0.0`.
    """
    scheme, separator, rest = path.rpartition("://")
    normal = os.path.normpath(rest)
    parts = [] if path.startswith(_TFDS) else list(pathlib.PurePath(normal).parts)
    if parts and not is_folder(path):
        parts[-1] = file_stem(normal)
    of_dataset = dataset_name_parts(path)
    return [
        *("/".join(of_dataset[:stop]) for stop in range(1, len(of_dataset) + 1)),
        *("/".join(parts[start:]).replace("//", "/") for start in reversed(range(len(parts)))),
        f"{scheme}{separator}{normal}",
    ]
