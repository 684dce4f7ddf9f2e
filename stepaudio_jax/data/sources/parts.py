"""The parts of a message in the project's form: texts and clips, checked key by key."""

import math
import os
from collections.abc import Mapping
from typing import Any

from stepaudio_jax.data.sources import foreign_keys
from stepaudio_jax.data.sources.json_values import check_keys, format_json, is_json_list
from stepaudio_jax.data.sources.segments import parse_segments
from stepaudio_jax.errors import DataError
from stepaudio_jax.storage import did_you_mean, expand_home
from stepaudio_jax.text.dialogue import AudioPart, Part, TextPart

_PART_KEYS = {
    "text": ("type", "text"),
    "audio": ("type", "audio", "transcript", "attributes", "start_s", "end_s", "segments"),
}


def parse_parts(content: Any, where: str, folder: str) -> tuple[Part, ...]:
    """Returns the parts of a message's content.

    Args:
        content: a string, or a list of parts.
        where: the origin and the message, the start of an error.
        folder: the base of relative paths.

    Raises:
        DataError: names the part, the key, the value and what is allowed.
    """
    if isinstance(content, str):
        if not content:
            raise DataError(
                f"{where}: 'content' is empty; give its text or parts, or remove the turn"
            )
        return (TextPart(content),)
    if not is_json_list(content) or not content:
        raise DataError(
            f"{where}: 'content' must be a string or a list of at least one part,"
            f" got {format_json(content)}"
        )
    return tuple(
        _parse_part(item, f"{where}: part {number}", folder)
        for number, item in enumerate(content, 1)
    )


def _parse_part(value: Any, where: str, folder: str) -> Part:
    if not isinstance(value, Mapping) or "type" not in value:
        kinds = [kind for kind in _PART_KEYS if isinstance(value, Mapping) and kind in value]
        advice = f'; add "type": "{kinds[0]}"' if len(kinds) == 1 else ""
        raise DataError(
            f"{where} must be an object with a 'type' ({' or '.join(_PART_KEYS)}),"
            f" got {format_json(value)}{advice}"
        )
    kind = value["type"]
    if isinstance(kind, str) and kind in foreign_keys.PART_TYPES:
        raise DataError(
            f"{where} has the unknown type {format_json(kind)}; {foreign_keys.PART_TYPES[kind]}"
        )
    if not isinstance(kind, str) or kind not in _PART_KEYS:
        raise DataError(
            f"{where} has the unknown type {format_json(kind)}{did_you_mean(kind, _PART_KEYS)}"
            f" (allowed: {', '.join(_PART_KEYS)})"
        )
    check_keys(value, _PART_KEYS[kind], where, foreign_keys.PART_KEYS)
    if kind not in value:
        raise DataError(f"{where} is of type {kind!r} and has no key {kind!r}")
    body = value[kind]
    if not isinstance(body, str) or (kind == "audio" and not body):
        wanted = "a string" if kind == "text" else "the path of a file"
        raise DataError(f"{where}: {kind!r} must be {wanted}, got {format_json(body)}")
    if kind == "text":
        return TextPart(body)
    foreign_keys.check_audio_path(body, where)
    transcript, attributes = value.get("transcript"), value.get("attributes") or {}
    if transcript is not None and not isinstance(transcript, str):
        raise DataError(f"{where}: 'transcript' must be a string, got {format_json(transcript)}")
    if not isinstance(attributes, Mapping) or not all(
        isinstance(item, str) for item in attributes.values()
    ):
        raise DataError(
            f"{where}: 'attributes' must be an object of strings, got {format_json(attributes)}"
        )
    start_s, end_s = _parse_times(value, where)
    return AudioPart(
        path=body if foreign_keys.is_address(body) else os.path.join(folder, expand_home(body)),
        transcript=transcript,
        attributes=dict(attributes),
        start_s=start_s,
        end_s=end_s,
        segments=parse_segments(value.get("segments"), where, start_s, end_s),
    )


def _parse_times(value: Mapping[str, Any], where: str) -> tuple[float, float | None]:
    """Returns the part of its file that an audio part is: (start, end) in seconds, or no end."""
    for key in ("start_s", "end_s"):
        item = value.get(key, 0)
        is_number = isinstance(item, int | float) and not isinstance(item, bool)
        if not is_number or not math.isfinite(item) or item < 0:
            raise DataError(
                f"{where}: {key!r} must be a number of seconds, 0 or more, got {format_json(item)}"
            )
    start, end = float(value.get("start_s", 0)), value.get("end_s")
    if end is not None and end <= start:
        raise DataError(
            f"{where}: 'end_s' {format_json(end)} must be greater than 'start_s' {start:g}"
        )
    return start, None if end is None else float(end)
