"""Lhotse manifests: recordings and supervisions without cuts give the rows that cuts would be.

A manifest of cuts is JSON Lines, and a row of it is whole. Without one, recordings are joined to
their supervisions: a row is a cut of one supervision.
"""

import array
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NoReturn

from stepaudio_jax.data.containers.base import Container, Row
from stepaudio_jax.data.containers.folders import exists
from stepaudio_jax.data.containers.json_array import JsonArray, open_json
from stepaudio_jax.data.containers.jsonl import JsonlRows
from stepaudio_jax.data.containers.places import no_clip_inside
from stepaudio_jax.errors import DataError
from stepaudio_jax.storage import PathLike, expand_home, first_few, format_path, truncate

ManifestKind = Literal["recordings", "supervisions"]
_NAME = re.compile(r"(|.*[._-])(cuts|recordings|supervisions)([._-].*)?\.jsonl?(\.gz)?", re.I)
_ENDINGS = (".jsonl", ".jsonl.gz", ".json", ".json.gz")
_SUPERVISION_KEYS = {"id", "recording_id", "start", "duration", "channel"}


class LhotsePair:
    """Reads a cut for each supervision of a manifest, with its recording from another.

    Cuts are in the order of the recordings, and named `RECORDING-NUMBER` as Lhotse names them,
    with the number of the supervision added where a recording has several.

    Args:
        recordings: path of the manifest of recordings.
        supervisions: path of the manifest of supervisions.

    Attributes:
        path: of the manifest of supervisions.

    Raises:
        DataError: a manifest cannot be read, a recording has no supervision, or a supervision no
            recording.
    """

    def __init__(self, recordings: PathLike, supervisions: PathLike):
        self.path = expand_home(os.fspath(supervisions))
        self._recordings = open_json(recordings)
        self._supervisions = open_json(supervisions)
        numbers = {
            _text(self._recordings, index, "id"): index for index in range(len(self._recordings))
        }
        if len(numbers) < len(self._recordings):
            raise DataError(
                f"{format_path(self._recordings.path)}: has recordings of one id; keep one of each"
            )
        by_recording: list[list[int]] = [[] for _ in numbers]
        for index in range(len(self._supervisions)):
            name = _text(self._supervisions, index, "recording_id")
            if name not in numbers:
                raise DataError(
                    f"{self._supervisions.origin(index)}: is of the recording {truncate(name)!r},"
                    f" which {format_path(self._recordings.path)} does not have; remove what has"
                    " no counterpart with `lhotse fix`"
                )
            by_recording[numbers[name]].append(index)
        if silent := [name for name, index in numbers.items() if not by_recording[index]]:
            raise DataError(
                f"{format_path(self._recordings.path)}: has recordings without a supervision"
                f" ({len(silent)}): {truncate(first_few(silent))}; remove them with `lhotse fix`"
            )
        self._rows = array.array("q")  # of each: its recording, its supervision, their number
        for recording, indices in enumerate(by_recording):
            for number, index in enumerate(indices):
                self._rows.extend((recording, index, number if len(indices) > 1 else -1))

    def __len__(self) -> int:
        return len(self._rows) // 3

    def __repr__(self) -> str:
        return f"LhotsePair({self._recordings.path!r}, {self.path!r}, rows={len(self)})"

    def origin(self, index: int) -> str:
        """Returns `file:line` of the supervision."""
        return self._supervisions.origin(self._rows[3 * index + 1])

    def row(self, index: int) -> Row:
        """Reads the cut at `index`.

        Raises:
            DataError: one of its two lines cannot be read; names `file:line` and why.
        """
        recording_index, supervision_index, number = self._rows[3 * index : 3 * index + 3]
        row = self._supervisions.row(supervision_index)
        recording = self._recordings.row(recording_index).value
        supervision = row.value
        name = f"{recording['id']}-{recording_index}" + (f"-{number}" if number >= 0 else "")
        value = {
            "id": name,
            "start": supervision.get("start"),
            "duration": supervision.get("duration"),
            "channel": supervision.get("channel"),
            "supervisions": [{**supervision, "start": 0.0}],
            "recording": recording,
            "type": "MultiCut" if isinstance(supervision.get("channel"), list) else "MonoCut",
        }
        return Row(value, row.origin, row.folder, default_id=name)

    def read_clip(self, place: str) -> NoReturn:
        """Raises a DataError: the clips are files of their own."""
        raise no_clip_inside(self.path, place)

    def blocks(self) -> None:
        """Returns None: every row is read alone."""


def open_lhotse_folder(folder: str, names: Sequence[str]) -> Container | None:
    """Opens the manifests of a folder; those of cuts if there are any.

    Args:
        folder: its path.
        names: of its files.

    Returns:
        None where the folder has no manifests, by their names.

    Raises:
        DataError: manifests of several datasets, or of one kind only; or the folder is in Lhotse's
            format Shar.
    """
    stems: dict[str, dict[str, str]] = {"cuts": {}, "recordings": {}, "supervisions": {}}
    for name in reversed(names):  # so that of one stem, the file without .gz is taken
        if match := _NAME.fullmatch(name):
            rest = match[3] or ""
            stems[match[2].lower()][f"{match[1]}*{rest}"] = name
    shown = format_path(folder)
    if stems["cuts"] and any(re.fullmatch(r"recording\.\d+\.tar", name) for name in names):
        raise DataError(
            f"{shown}: is in Lhotse's format Shar, which is not read; save the cuts with their"
            " sound as files: `cuts.save_audios(DIR).to_file('cuts.jsonl.gz')`"
        )
    kinds = [stems["cuts"]] if stems["cuts"] else [stems["recordings"], stems["supervisions"]]
    if not any(kinds):
        return None
    if len(kinds) == 2 and stems["recordings"].keys() != stems["supervisions"].keys():
        found = [*stems["recordings"].values(), *stems["supervisions"].values()]
        raise DataError(
            f"{shown}: needs a manifest of recordings and one of supervisions of the same name;"
            f" found {first_few(sorted(found))}"
        )
    if len(kinds[-1]) > 1:
        raise DataError(
            f"{shown}: has manifests of several datasets ({first_few(sorted(kinds[-1].values()))});"
            " name one of these files"
        )
    paths = [os.path.join(folder, *kind.values()) for kind in kinds]
    return open_json(paths[0]) if len(paths) == 1 else LhotsePair(*paths)


def open_lhotse_file(rows: JsonlRows | JsonArray) -> Container:
    """Opens a manifest of recordings or supervisions with the other one, beside it.

    Args:
        rows: of a file of JSON.

    Returns:
        The rows themselves where the file is no such manifest, by its first row.

    Raises:
        DataError: there is no other one, by its name.
    """
    try:
        kind = _kind(rows.row(0).value) if len(rows) else None
    except DataError:  # reading the row says why
        kind = None
    if kind is None:
        return rows
    folder, name = os.path.split(rows.path)
    other: ManifestKind = "supervisions" if kind == "recordings" else "recordings"
    ending = next((each for each in reversed(_ENDINGS) if name.lower().endswith(each)), "")
    before, kind_in_name, after = name.removesuffix(ending).rpartition(kind)
    candidates = [os.path.join(folder, f"{before}{other}{after}{each}") for each in _ENDINGS]
    path = next((each for each in candidates if kind_in_name and exists(each)), None)
    if path is None:
        raise DataError(
            f"{format_path(rows.path)}: is a Lhotse manifest of {kind}, which needs the one of"
            f" {other} beside it, named alike, as recordings.jsonl.gz and supervisions.jsonl.gz;"
            " or name a manifest of cuts"
        )
    return LhotsePair(rows.path, path) if kind == "recordings" else LhotsePair(path, rows.path)


def _kind(value: Any) -> ManifestKind | None:
    if not isinstance(value, Mapping) or "recording" in value:
        return None
    if {"id", "sources", "sampling_rate"} <= value.keys():
        return "recordings"
    return "supervisions" if value.keys() >= _SUPERVISION_KEYS else None


def _text(rows: JsonlRows | JsonArray, index: int, key: str) -> str:
    row = rows.row(index)
    value = row.value.get(key) if isinstance(row.value, Mapping) else None
    if not isinstance(value, str):
        raise DataError(
            f"{row.origin}: a Lhotse manifest must have a string as {key!r} in each row"
        )
    return value
