"""Segments of a clip: what is said from when to when, in the project's form and in others'.

In the project's form, `segments` of an audio part is a list of {"start_s", "end_s", "text"}, with
the times of the file, as `start_s` and `end_s` of the part have them. Read as such are the columns

    segments   Whisper and what follows it: {"start": 0.0, "end": 2.4, "text": " .."}
    chunks     pipelines of transformers: {"timestamp": [0.0, 2.4], "text": " .."}
    utterances, words   of the same kinds; a word may lack its times, and stays with the one before

as lists of objects, as objects of lists (a `Sequence` of `datasets`), or as either in a string.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from stepaudio_jax.data.sources.json_values import (
    check_keys,
    format_json,
    is_json_list,
    parse_literal,
)
from stepaudio_jax.errors import DataError
from stepaudio_jax.text.dialogue import Message, TimedText
from stepaudio_jax.text.pieces import find_difference, find_piece_ends

SEGMENT_COLUMNS = ("segments", "chunks", "utterances", "words")
STARTS = ("start", "start_time", "begin", "begin_time", "start_sec", "segment_start")
ENDS = ("end", "end_time", "stop", "end_sec", "segment_end")
_TEXTS = ("text", "word", "sentence", "transcript")
_LABELS = ("speaker", "gender", "language")  # of a segment, that become its attributes
_SEGMENT_KEYS = ("start_s", "end_s", "text", "attributes")
MAX_OVERHANG_S = 1.0  # by which the last segment may end behind its recording: times are rounded


def parse_segments(
    value: Any, where: str, start_s: float, end_s: float | None
) -> tuple[TimedText, ...]:
    """Returns the segments of an audio part.

    Args:
        value: of its key `segments`.
        where: the part, the start of an error.
        start_s, end_s: the part of the file in which they lie.

    Raises:
        DataError: names the segment, the key, the value and what is allowed.
    """
    if value is None:
        return ()
    if not is_json_list(value):
        raise DataError(f"{where}: 'segments' must be a list, got {format_json(value)}")
    segments: list[TimedText] = []
    for number, item in enumerate(value, 1):
        segment = _parse_segment(item, f"{where}: segment {number}")
        before_s = segments[-1].start_s if segments else start_s
        if segment.start_s < before_s:
            what = f"segment {number - 1}" if segments else "the part of the file"
            raise DataError(
                f"{where}: segment {number} begins at {segment.start_s:g} s, before {what}"
                f" ({before_s:g} s); write them in order, in seconds of the file"
            )
        if end_s is not None and segment.end_s > end_s + MAX_OVERHANG_S:
            raise DataError(
                f"{where}: segment {number} ends at {segment.end_s:g} s, behind the part of the"
                f" file, which ends at {end_s:g} s; write the seconds of the file"
            )
        segments.append(segment)
    return tuple(segments)


def check_segment_texts(numbered: Sequence[tuple[int, Message]], origin: str) -> None:
    """Checks that the segments of each clip say its transcript, or else the reply to it.

    Args:
        numbered: the messages, with their numbers in the file.
        origin: the record's file and line.

    Raises:
        DataError: names the message, and where the two texts differ.
    """
    for index, (number, message) in enumerate(numbered):
        for clip in message.audio:
            if not clip.segments:
                continue
            what, text = "transcript", clip.transcript
            if text is None:
                replies = (each for _, each in numbered[index:] if each.role == "assistant")
                what, text = "reply", next((reply.text for reply in replies), None)
            if text is not None:
                check_texts(
                    [segment.text for segment in clip.segments],
                    text,
                    f"{origin}: message {number} ({message.role})",
                    what,
                    "leave 'segments' out",
                )


def check_texts(pieces: Sequence[str], text: str, where: str, what: str, remedy: str) -> None:
    """Checks that the texts of segments, one after the other, are a text.

    White space does not count, nor do case and punctuation where the segments have others.

    Args:
        pieces: the texts of the segments.
        text: of the transcript or the reply.
        where: the start of an error.
        what: names the text.
        remedy: what to do where the segments say something else.

    Raises:
        DataError: shows where the two differ.
    """
    if find_piece_ends(text, pieces) is None:
        mine, theirs = find_difference(text, pieces)
        raise DataError(
            f"{where}: the texts of the segments, one after the other, are not its {what}: they"
            f" have {format_json(theirs)} where that has {format_json(mine)}; correct one of them,"
            f" or {remedy}"
        )


def read_segments(
    value: Mapping[str, Any], is_named: bool, origin: str
) -> tuple[str, list[dict[str, Any]]] | None:
    """Returns the column of a row that has segments, and these in the project's form.

    Args:
        value: the row, under the project's keys.
        is_named: whether `columns` names the segments, or says that there are none.
        origin: the start of an error.

    Raises:
        DataError: the column that is named has none; or a segment has no text, or times that are
            no numbers.
    """
    for column in SEGMENT_COLUMNS[:1] if is_named else SEGMENT_COLUMNS:
        items = _as_items(value.get(column))
        if items and _is_timed(items[0]):
            return column, _read_items(items, f"{origin}: {column!r}")
        if is_named and value.get(column) is not None:
            raise DataError(
                f"{origin}: 'segments' must be a list of objects with 'start', 'end' and 'text',"
                f" got {format_json(value[column])}"
            )
    return None


def join_texts(segments: Sequence[Mapping[str, Any]]) -> str:
    """Returns the text of segments: joined by blanks, unless they have blanks of their own."""
    texts = [segment["text"] for segment in segments if segment["text"].strip()]
    has_blanks = any(text != text.strip() for text in texts)
    return ("" if has_blanks else " ").join(texts).strip()


def segment_key(segment: TimedText, offset_s: float = 0.0) -> dict[str, Any]:
    """Returns a segment in the project's form; its times count from `offset_s` of the file."""
    times = {"start_s": segment.start_s, "end_s": segment.end_s}
    if offset_s:
        times = {key: round(time - offset_s, 9) for key, time in times.items()}
    row: dict[str, Any] = {**times, "text": segment.text}
    return {**row, "attributes": dict(segment.attributes)} if segment.attributes else row


def _parse_segment(value: Any, where: str) -> TimedText:
    if not isinstance(value, Mapping):
        raise DataError(
            f"{where} must be an object with 'start_s', 'end_s' and 'text', got"
            f" {format_json(value)}"
        )
    check_keys(value, _SEGMENT_KEYS, where)
    times = []
    for key in ("start_s", "end_s"):
        item = value.get(key)
        seconds = item if isinstance(item, int | float) and not isinstance(item, bool) else math.nan
        if not 0 <= seconds < math.inf:
            raise DataError(
                f"{where}: {key!r} must be a number of seconds, 0 or more, got {format_json(item)}"
            )
        times.append(float(seconds))
    if times[1] < times[0]:
        raise DataError(f"{where} ends at {times[1]:g} s, before it begins at {times[0]:g} s")
    text, attributes = value.get("text"), value.get("attributes") or {}
    if not isinstance(text, str):
        raise DataError(f"{where}: 'text' must be a string, got {format_json(text)}")
    if not isinstance(attributes, Mapping) or not all(
        isinstance(item, str) for item in attributes.values()
    ):
        raise DataError(
            f"{where}: 'attributes' must be an object of strings, got {format_json(attributes)}"
        )
    start_s, end_s = times
    return TimedText(start_s, end_s, text, dict(attributes))


def _as_items(value: Any) -> list[Mapping[str, Any]]:
    """Returns a column as a list of objects; an empty list where it is none."""
    value = parse_literal(value)
    if isinstance(value, Mapping):  # of lists
        columns = {key: item for key, item in value.items() if is_json_list(item)}
        lengths = {len(item) for item in columns.values()}
        if len(lengths) != 1:
            return []
        return [
            dict(zip(columns, items, strict=True)) for items in zip(*columns.values(), strict=True)
        ]
    if not is_json_list(value) or not all(isinstance(item, Mapping) for item in value):
        return []
    return list(value)


def _is_timed(item: Mapping[str, Any]) -> bool:
    return _text(item) is not None and _number(_start(item)) is not None


def _read_items(items: Sequence[Mapping[str, Any]], where: str) -> list[dict[str, Any]]:
    segments: list[dict[str, Any]] = []
    for number, item in enumerate(items, 1):
        text, start, end = _text(item), _start(item), _end(item)
        if text is None:
            raise DataError(f"{where}: segment {number} has no text, got {format_json(item)}")
        if start is None:  # a word that could not be aligned stays with the one before
            segments[-1]["text"] += f" {text}"
            continue
        times = {"start_s": _number(start), "end_s": _number(end)}
        for key, time in times.items():
            if time is None and (key == "start_s" or end is not None):
                raise DataError(
                    f"{where}: segment {number} has a time that is no number of seconds, got"
                    f" {format_json(item)}"
                )
        labels = {key: item[key] for key in _LABELS if isinstance(item.get(key), str)}
        labels = {key: label for key, label in labels.items() if label.strip()}
        segments.append({**times, "text": text, **({"attributes": labels} if labels else {})})
    # An end that is missing is the next one's beginning.
    for segment, following in itertools.zip_longest(segments, segments[1:]):
        if segment["end_s"] is None:
            segment["end_s"] = (following or segment)["start_s"]
    return segments


def _text(item: Mapping[str, Any]) -> str | None:
    return next((item[key] for key in _TEXTS if isinstance(item.get(key), str)), None)


def _start(item: Mapping[str, Any]) -> Any:
    span = item.get("timestamp")
    if is_json_list(span) and len(span) == 2:
        return span[0]
    return next((item[key] for key in ("start_s", *STARTS) if item.get(key) is not None), None)


def _end(item: Mapping[str, Any]) -> Any:
    span = item.get("timestamp")
    if is_json_list(span) and len(span) == 2:
        return span[1]
    end = next((item[key] for key in ("end_s", *ENDS) if item.get(key) is not None), None)
    start, length = _number(_start(item)), _number(item.get("duration"))
    if end is None and start is not None and length is not None:
        return round(start + length, 9)
    return end


def _number(value: Any) -> float | None:
    """Returns a finite number, or the number that a string spells; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
