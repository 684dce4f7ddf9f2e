"""Prepared pairs of a study: read from the user's file once, and kept in its folder."""

import dataclasses
import json
import os
from collections.abc import Mapping
from typing import Any

from stepaudio_jax.data import Record, read_records
from stepaudio_jax.data.sources.foreign_keys import is_address
from stepaudio_jax.data.sources.messages import parse_record
from stepaudio_jax.data.sources.serialization import part_times, serialize_record
from stepaudio_jax.errors import ConfigError, DataError
from stepaudio_jax.serving.preferences.comparisons import comparison_of_record
from stepaudio_jax.serving.preferences.study import GOLD, PAIRS, normalize_name
from stepaudio_jax.storage import (
    Path,
    PathLike,
    read_json_lines,
    sync_path,
    to_path,
    write_json_lines,
)
from stepaudio_jax.text import AudioPart


def keep_pairs(folder: Path, pairs: PathLike | None, gold: PathLike | None) -> None:
    """Copies the user's prepared pairs and gold pairs into a study's folder, where it has none.

    Raises:
        ConfigError: the folder has pairs of another file; or two pairs have the same id.
        DataError: a file cannot be read, or a pair lacks a reply; names file and line.
    """
    kept = _keep(folder / PAIRS, pairs, "pairs"), _keep(folder / GOLD, gold, "gold")
    if both := kept[0].keys() & kept[1].keys():
        raise ConfigError(f"gold: the id {min(both)!r} is that of one of the pairs too; change one")


def read_pairs(path: Path) -> dict[str, Record]:
    """Returns the pairs that a study's folder keeps, by id; none where it has no such file.

    Raises:
        DataError: a line is damaged; names file and line.
    """
    if not path.exists():
        return {}
    records = {}
    for line in read_json_lines(path):
        record = parse_record(
            line.value,
            origin=f"{path}:{line.number}",
            folder=str(path.parent),
            source="",
            default_id="",
        )
        records[record.id] = record
    return records


def remove_annotations(path: Path, name: str) -> int:
    """Removes somebody's annotations from the pairs that a study's folder keeps.

    Args:
        path: of the pairs.
        name: of the annotator, as `normalize_name` returns it.

    Returns:
        How many annotations were theirs.
    """
    records = [*read_pairs(path).values()]
    kept = [
        dataclasses.replace(
            record,
            annotations=tuple(
                item for item in record.annotations if normalize_name(item.annotator) != name
            ),
        )
        for record in records
    ]
    count = sum(len(record.annotations) for record in records)
    count -= sum(len(record.annotations) for record in kept)
    if count:
        write_json_lines(path, map(_row, kept))
        sync_path(path)
    return count


def _keep(kept: Path, source: PathLike | None, name: str) -> dict[str, Record]:
    if source is None:
        return read_pairs(kept)
    records: dict[str, Record] = {}
    for record in read_records(source):
        comparison = comparison_of_record(record)  # checks it
        if comparison.is_same and record.margin != 0:
            raise DataError(f"{record.origin}: both replies are the same; leave the pair out")
        if record.id in records:
            raise ConfigError(
                f"{name}: {record.origin} has the id {record.id!r} of an earlier pair; give each"
                " an id of its own"
            )
        records[record.id] = record
    if not records:
        raise ConfigError(f"{name}={os.fspath(source)!r} has no pairs; give at least one")
    rows = [_row(record) for record in records.values()]
    if kept.exists():
        if [_without_annotations(line.value) for line in read_json_lines(kept)] != [
            _without_annotations(json.loads(json.dumps(row))) for row in rows
        ]:
            raise ConfigError(
                f"{name}={os.fspath(source)!r}: the study in {kept.parent} has other pairs; go on"
                " without the option, or use another folder"
            )
    else:
        write_json_lines(kept, rows)
    return read_pairs(kept)


def _row(record: Record) -> dict[str, Any]:
    return serialize_record(record, _clip_keys)


def _clip_keys(part: AudioPart) -> dict[str, Any]:
    path = part.path if is_address(part.path) else str(to_path(part.path).absolute())
    return {"audio": path, **part_times(part)}


def _without_annotations(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != "annotations"}
