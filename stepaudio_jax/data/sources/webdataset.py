"""Samples of a WebDataset tar: the files of one name, keyed by their endings -> one row.

{"__key__": "a", "wav": CLIP, "txt": "..", "json": {..}} is the row of its `json`, with the clip as
a column, `txt` as `text`, `cls` as `label` and the name as `id`. Where a part of a turn in the
`json` names that clip, as `{"type": "audio", "audio": "a.wav"}`, it is heard there.
"""

import posixpath
from collections.abc import Mapping
from typing import Any

from stepaudio_jax.data.containers.base import EmbeddedClip
from stepaudio_jax.data.sources.foreign_keys import is_audio_key
from stepaudio_jax.data.sources.json_values import (
    format_json,
    is_json_list,
    is_turns,
)
from stepaudio_jax.errors import DataError

_NAMES = {"txt": "text", "cls": "label"}


def is_sample(value: Mapping[str, Any]) -> bool:
    """Returns whether a row is a sample of a tar."""
    return "__key__" in value


def flatten_sample(value: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """Returns a sample as one row.

    Raises:
        DataError: two of its files say different things under one key.
    """
    files = {key: item for key, item in value.items() if not key.startswith("__")}
    clips = {key: item for key, item in files.items() if isinstance(item, EmbeddedClip)}
    row: dict[str, Any] = {}
    for ending, item in files.items():
        is_object = ending.split(".")[-1] == "json" and isinstance(item, Mapping)
        if is_turns(item):
            ending = "messages"
        for key, field in (item if is_object else {_NAMES.get(ending, ending): item}).items():
            # The path that a JSON file gives for the clip which lies beside it.
            if is_object and clips and is_audio_key(key) and isinstance(field, str):
                continue
            if key in row and row[key] != field:
                raise DataError(
                    f"{origin}: two files of the sample have {key!r}: {format_json(row[key])} and"
                    f" {format_json(field)}; keep one"
                )
            row[key] = field
    if clips:
        named, placed = _by_name(str(value["__key__"]), clips), set[str]()
        row = {key: _place(field, named, placed) for key, field in row.items()}
        # A clip that a part names is heard at its place, and is no column beside the dialogue.
        row = {key: field for key, field in row.items() if clips.get(key) not in placed}
    return {"id": value["__key__"], **row}


def _by_name(key: str, clips: Mapping[str, EmbeddedClip]) -> dict[str, EmbeddedClip]:
    """Returns the clips by the names that a text beside them may give: `d/a.wav` and `a.wav`."""
    names = {f"{key}.{ending}": clip for ending, clip in clips.items()}
    return {**{posixpath.basename(name): clip for name, clip in names.items()}, **names}


def _place(value: Any, named: Mapping[str, EmbeddedClip], placed: set[str]) -> Any:
    """Returns a JSON value with clips in the place of their names in parts of turns.

    Args:
        value: of a key of the row.
        named: the clips.
        placed: gets the clips that are named.
    """
    if is_json_list(value):
        return [_place(item, named, placed) for item in value]
    if not isinstance(value, Mapping):
        return value
    item = {key: _place(field, named, placed) for key, field in value.items()}
    name = item.get("audio")
    if isinstance(name, str) and name.removeprefix("./") in named:
        item["audio"] = named[name.removeprefix("./")]
        placed.add(item["audio"])
    return item
