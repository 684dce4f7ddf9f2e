"""Record -> the project's own JSON form: the inverse of `messages.parse_record`."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from stepaudio_jax.data.annotations import serialize_annotation
from stepaudio_jax.data.containers.base import Row
from stepaudio_jax.data.record import Criterion, Record
from stepaudio_jax.data.sources.forms import to_project_form
from stepaudio_jax.data.sources.messages import parse_record
from stepaudio_jax.data.sources.segments import segment_key
from stepaudio_jax.errors import DataError
from stepaudio_jax.text.dialogue import (
    THINK_END_TAG,
    THINK_START_TAG,
    AudioPart,
    Message,
    Part,
    TextPart,
)

# Returns the keys that say where a clip lies: `audio`, and `start_s` and `end_s` of a part of it.
ClipKeys = Callable[[AudioPart], Mapping[str, Any]]

_WRITTEN = "as it would be written"


def serialize_record(record: Record, clip_keys: ClipKeys) -> dict[str, Any]:
    """Returns a record in the form that `parse_record` reads as the same record.

    Id and source are written even where they are those that the file's name would give, since the
    new file has another name. `origin` is not: it is where a record lies.

    Args:
        record: of any source.
        clip_keys: says where each clip lies now.
    """
    row: dict[str, Any] = {
        "id": record.id,
        "source": record.source,
        "messages": [_message(message, clip_keys) for message in record.messages],
    }
    for side in ("reference", "rejected"):
        reply = getattr(record, f"{side}_reply")
        if reply is not None:
            row |= _reply(side, getattr(record, f"{side}_reasoning"), reply)
    for key in ("margin", "reference_critique", "rejected_critique", "answer", "scenario", "label"):
        value = getattr(record, key)
        if value is not None:
            row[key] = value
    if record.rubric:
        row["rubric"] = serialize_rubric(record.rubric)
    for key in ("reference_meets", "rejected_meets"):
        if getattr(record, key):
            row[key] = list(getattr(record, key))
    if record.reference_continuation:
        row["reference_continuation"] = [
            _message(message, clip_keys) for message in record.reference_continuation
        ]
    if record.sampling:
        row["sampling"] = dict(record.sampling)
    if record.annotations:
        row["annotations"] = [*map(serialize_annotation, record.annotations)]
    return row


def serialize_rubric(rubric: Sequence[Criterion]) -> list[dict[str, Any]]:
    """Returns criteria in the form that `parse_rubric` reads as the same criteria."""
    return [{"criterion": criterion.text, "weight": criterion.weight} for criterion in rubric]


def part_times(part: AudioPart) -> dict[str, float]:
    """Returns the keys `start_s` and `end_s` of a clip, as far as it is a part of its file."""
    times = {"start_s": part.start_s} if part.start_s else {}
    return times if part.end_s is None else {**times, "end_s": part.end_s}


def check_reads_back(record: Record) -> None:
    """Checks that a record is read from its own JSON form as it is, so that nothing is changed.

    Raises:
        DataError: it is not; names the first field that differs.
    """
    messages = tuple(map(_without_places, record.messages))
    expected = dataclasses.replace(record, messages=messages, origin=_WRITTEN)
    row = serialize_record(expected, lambda part: {"audio": part.path, **part_times(part)})
    try:
        # Half of a surrogate pair, which some containers let through, is no character of UTF-8.
        value = json.loads(json.dumps(row, ensure_ascii=False).encode())
    except (UnicodeEncodeError, TypeError) as error:
        raise DataError(f"cannot be written as JSON ({error})") from None
    project_row = to_project_form(Row(value, _WRITTEN, "", ""))
    read_back = parse_record(project_row, origin=_WRITTEN, folder="", source="", default_id="")
    for field in dataclasses.fields(Record):
        if getattr(read_back, field.name) != getattr(expected, field.name):
            raise DataError(f"would not be read back as it is: its {field.name} would change")


def _without_places(message: Message) -> Message:
    """Returns a message whose clips have a name that every reader takes for a file's."""
    parts: list[Part] = [
        dataclasses.replace(part, path="clip.wav") if isinstance(part, AudioPart) else part
        for part in message.parts
    ]
    return dataclasses.replace(message, parts=tuple(parts))


def _message(message: Message, clip_keys: ClipKeys) -> dict[str, Any]:
    if message.role != "assistant":
        return {"role": message.role, "content": _content(message.parts, clip_keys)}
    turn: dict[str, Any] = {"role": "assistant"}
    if message.text.lstrip().startswith(THINK_START_TAG):
        # The reader takes the first tag for the reasoning, so that it must be in the content too.
        turn["content"] = f"{_think(message.reasoning or '')}{message.text}"
    else:
        if message.reasoning is not None:
            turn["reasoning_content"] = message.reasoning
        turn["content"] = message.text
    if not message.in_loss:
        turn["loss"] = False
    return turn


def _reply(side: str, reasoning: str | None, text: str) -> dict[str, str]:
    """Returns the keys of one of two replies that are compared, and of the reasoning before it."""
    if text.lstrip().startswith(THINK_START_TAG):
        # The reader takes the first tag for the reasoning, so that it must be in the reply too.
        return {f"{side}_reply": f"{_think(reasoning or '')}{text}"}
    keys = {f"{side}_reply": text}
    return keys if reasoning is None else {**keys, f"{side}_reasoning": reasoning}


def _think(reasoning: str) -> str:
    return f"{THINK_START_TAG}{reasoning}{THINK_END_TAG}"


def _content(parts: tuple[Part, ...], clip_keys: ClipKeys) -> str | list[dict[str, Any]]:
    if len(parts) == 1 and isinstance(parts[0], TextPart) and parts[0].text:
        return parts[0].text
    return [_part(part, clip_keys) for part in parts]


def _part(part: Part, clip_keys: ClipKeys) -> dict[str, Any]:
    if isinstance(part, TextPart):
        return {"type": "text", "text": part.text}
    row: dict[str, Any] = {"type": "audio", **clip_keys(part)}
    if part.transcript is not None:
        row["transcript"] = part.transcript
    if part.attributes:
        row["attributes"] = dict(part.attributes)
    if part.segments:
        # Of a part that is now a file of its own, times count from its beginning.
        offset_s = part.start_s - row.get("start_s", 0.0)
        row["segments"] = [segment_key(segment, offset_s) for segment in part.segments]
    return row
