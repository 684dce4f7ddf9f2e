"""Rows of one clip and what is said in it: Hugging Face tables, audiofolder, Kaldi, NeMo, TFDS.

{"audio": CLIP, "text": "..", "speaker": "spk1"}             also `transcription`, `sentence`, ..
{"audio_filepath": "a.wav", "duration": 0.5, "offset": 0.1, "text": ".."}            NeMo
{"id": "a", "audio": "a.wav", "text": "..", "start_s": 1.0, "end_s": 2.5}            Kaldi
{"audio": "question/c.wav", "label": "question"}                                     audiofolder

become a user's turn with the clip (and the prompt behind it, if there is one) and an assistant's
turn with the text, which is the clip's transcript too. Without a text, `label` is the reply.

Which columns become `attributes` of the clip: every other column of one string, number, true or
false (speaker, language, label, ..), as a string. Not those that measure the file and not the
speech (numbers as `duration`, `sampling_rate`, ..), nor names of sound files. Lists of what is said
when (`segments`, `chunks`, ..) become the clip's segments. Other lists and objects stay in the row,
where `parse_record` refuses those of pictures, tools and replies by name; nothing reads the others.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from stepaudio_jax.data.containers.base import EmbeddedClip
from stepaudio_jax.data.sources.base import FormOptions, text_of, without
from stepaudio_jax.data.sources.foreign_keys import (
    is_audio,
    is_audio_key,
    is_audio_word,
    is_refused_key,
    key_name,
)
from stepaudio_jax.data.sources.json_values import format_json, is_empty
from stepaudio_jax.data.sources.messages import RECORD_KEYS
from stepaudio_jax.data.sources.placeholders import read_clips
from stepaudio_jax.data.sources.rows import Messages
from stepaudio_jax.data.sources.segments import (
    check_texts,
    join_texts,
    parse_segments,
    read_segments,
)
from stepaudio_jax.errors import DataError
from stepaudio_jax.text.pieces import join_attributes

TEXT_COLUMNS = ("text", "transcription", "transcript", "sentence", "txt")
# Read where there is none of the above, and only one of these.
_OTHER_TEXT_COLUMNS = ("normalized_text", "raw_text", "raw_transcription", "utterance", "words")
_TURN_COLUMNS = ("reply", "prompt", "system")
_QUESTION_COLUMNS = ("question", "instruction", "query", "input", "context")
_MEASURES = frozenset(
    (
        *("duration", "offset", "duration_s", "duration_ms", "length", "audio_length"),
        *("sampling_rate", "sample_rate", "orig_sr", "sr", "num_samples", "num_frames"),
        *("n_frames", "num_channels", "channels", "bits_per_sample", "size"),
        *("start_s", "end_s"),
    )
)
# Columns that may say which part of its file a clip is, and in what unit.
_TIME = re.compile(
    r"(?:(?:segment|utterance|utt|clip|audio)_)?"
    r"(?:(?P<start>start|begin|onset)|(?P<end>end|stop))"
    r"(?:_?(?:times?|stamps?))*"
    r"(?:_?(?:(?:in_)?(?:s|secs?|seconds?)|(?P<unit>ms|msecs?|millis|milliseconds?|samples?|frames?)))?"
)


def find_clip_columns(value: Mapping[str, Any]) -> list[str]:
    """Returns the columns that may hold a row's clip, the surest kind of those that there are.

    A clip inside the container comes before a column that is named after sound, and that before
    one that names a sound file (`file_name`, `path`).
    """
    embedded = [key for key, item in value.items() if isinstance(item, EmbeddedClip)]
    named = [
        key
        for key, item in value.items()
        if is_audio_key(key) and isinstance(item, str | Mapping | list) and not is_empty(item)
    ]
    files = [key for key, item in value.items() if is_audio_word(key) and is_audio(item)]
    return embedded or named or files


def find_text_columns(value: Mapping[str, Any]) -> list[str]:
    """Returns the columns that may hold what is said."""
    columns = [key for key in TEXT_COLUMNS if key in value]
    return columns or [key for key in _OTHER_TEXT_COLUMNS if isinstance(value.get(key), str)]


def adapt(value: Mapping[str, Any], origin: str, options: FormOptions) -> dict[str, Any]:
    """Returns a row of one clip as a dialogue.

    Raises:
        DataError: the row has no clip, or several; no text, or several; or its times are no part
            of a file. Names the columns, and how to say which are meant.
    """
    audio_key = _audio_column(value, "audio" in options.columns, origin)
    if "text" in options.columns:
        text_key = "text" if "text" in value and value["text"] is not None else None
    else:
        text_key = _text_column(value, origin)
    clip = _clip(value[audio_key], audio_key, origin)
    part: dict[str, Any] = {"type": "audio", "audio": clip}
    is_embedded = isinstance(value[audio_key], EmbeddedClip)
    if not is_embedded:
        _check_channel(value, origin)
    part |= _times(value, is_embedded, origin)
    text = text_of(value, text_key, origin) if text_key else None
    segments_key, segments = _segments(value, part, text, text_key, options, origin)
    if segments:
        part["segments"] = segments
        if text is None and "text" not in options.columns:
            text = join_texts(segments)
    if text is not None:
        part["transcript"] = text
    reply = text_of(value, "reply", origin) or text
    if reply is None and isinstance(value.get("label"), str):
        reply = text_of(value, "label", origin)
    _check_reply(value, text_key, reply, origin)
    own_keys = {*RECORD_KEYS} - {"label"}
    others = without(value, audio_key, text_key or "", segments_key, *_TURN_COLUMNS)
    others = {key: item for key, item in others.items() if key not in own_keys}
    kept = {key: item for key, item in others.items() if _stays(key, item)}
    attributes = join_attributes(segment.get("attributes", {}) for segment in segments)
    attributes |= _attributes({key: item for key, item in others.items() if key not in kept})
    if attributes:
        part["attributes"] = attributes
    messages = clip_dialogue(
        part,
        reply,
        prompt=text_of(value, "prompt", origin) or options.prompt,
        system=text_of(value, "system", origin),
    )
    rest = {key: item for key, item in value.items() if key in own_keys}
    return {**rest, **kept, "messages": messages}


def clip_dialogue(
    part: Mapping[str, Any],
    reply: str | None,
    *,
    prompt: str | None = None,
    system: str | None = None,
) -> Messages:
    """Returns the turns about one clip.

    Args:
        part: the clip's audio part.
        reply: of the assistant; None for no reply.
        prompt: the text behind the clip.
        system: the text of the system turn.
    """
    content = [part, *([{"type": "text", "text": prompt}] if prompt else [])]
    messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
    if system is not None:
        messages = [{"role": "system", "content": system}, *messages]
    return messages if reply is None else [*messages, {"role": "assistant", "content": reply}]


def attribute_text(value: Any) -> str | None:
    """Returns a scalar as the value of an attribute; None for anything that says nothing."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return value if value.strip() else None
    if isinstance(value, int | float) and math.isfinite(value):
        return json.dumps(value)
    return None


def part_of_file(start: float, end: float | None) -> dict[str, float]:
    """Returns the keys of an audio part that is a part of its file, in seconds."""
    # Sums of decimal fractions are off by a rounding error that nobody wrote.
    times = {"start_s": round(float(start), 9)}
    return times if end is None else {**times, "end_s": round(float(end), 9)}


def _audio_column(value: Mapping[str, Any], is_named: bool, origin: str) -> str:
    columns = ["audio"] if is_named else find_clip_columns(value)
    if not columns:
        raise DataError(
            f"{origin}: no column names or holds a clip (columns: {_names(value)});"
            " name it: columns={'audio': 'COLUMN'}"
        )
    if any(value[column] != value[columns[0]] for column in columns):
        raise DataError(
            f"{origin}: has clips in {', '.join(map(repr, columns))};"
            " name the one to be heard: columns={'audio': 'COLUMN'}"
        )
    return columns[0]


def _clip(value: Any, key: str, origin: str) -> str:
    clips = read_clips(value, f"{origin}: {key!r}")
    if len(clips) != 1:
        raise DataError(
            f"{origin}: {key!r} names {len(clips)} files for one row; join them into one file"
        )
    return clips[0]


def _text_column(value: Mapping[str, Any], origin: str) -> str | None:
    columns = find_text_columns(value)
    filled = [key for key in columns if not is_empty(value[key])]
    if len({format_json(value[key]) for key in filled}) > 1:
        raise DataError(
            f"{origin}: has texts in {', '.join(map(repr, filled))};"
            " name the one that is said: columns={'text': 'COLUMN'}"
        )
    return next(iter(filled or columns), None)


def _check_reply(
    value: Mapping[str, Any], text_key: str | None, reply: str | None, origin: str
) -> None:
    """Checks that a row says what there is to learn, or what a reply is compared with."""
    asked = [key for key in _QUESTION_COLUMNS if isinstance(value.get(key), str)]
    if asked and "prompt" not in value and not is_empty(value[asked[0]]):
        raise DataError(
            f"{origin}: has {asked[0]!r} beside a clip, and nothing says what it is; name the"
            f" columns, columns={{'prompt': '{asked[0]}', 'reply': 'COLUMN'}}, or, where it is not"
            " asked, columns={'prompt': ''}"
        )
    if reply is not None or any(
        not is_empty(value.get(key)) for key in ("answer", "reference_reply", "prompt")
    ):
        return
    if text_key is not None:
        raise DataError(f"{origin}: {text_key!r} is empty: the clip has no text; leave the row out")
    if isinstance(value.get("label"), int):
        raise DataError(
            f"{origin}: 'label' is the number {value['label']} without a name, and the row has no"
            " text; name the column of the reply: columns={'reply': 'COLUMN'}"
        )
    raise DataError(
        f"{origin}: has a clip and no text for it (columns: {_names(value)}); name the column of"
        " what is said, columns={'text': 'COLUMN'}, or of the reply, columns={'reply': 'COLUMN'}"
    )


def _times(value: Mapping[str, Any], is_embedded: bool, origin: str) -> dict[str, float]:
    """Returns the part of the file that a row means, if it is not the whole.

    Those are `start_s` and `end_s`, or NeMo's `offset` with its `duration`. A `duration` alone is
    the length of the file.
    """
    times = [value[key] for key in ("start_s", "end_s") if key in value]
    if times and all(map(is_empty, times)):
        return {}
    if not is_empty(value.get("start_s")) or not is_empty(value.get("end_s")):
        start = _seconds(value.get("start_s", 0.0), "start_s", origin)
        end = value.get("end_s")
        return _checked(start, None if end is None else _seconds(end, "end_s", origin), origin)
    if not is_embedded and not is_empty(value.get("offset")):
        start = _seconds(value["offset"], "offset", origin)
        if is_empty(value.get("duration")):
            return _checked(start, None, origin)
        length = _seconds(value["duration"], "duration", origin)
        return _checked(start, start + length, origin)
    _check_other_times(value, is_embedded, origin)
    return {}


def _segments(
    value: Mapping[str, Any],
    part: Mapping[str, Any],
    text: str | None,
    text_key: str | None,
    options: FormOptions,
    origin: str,
) -> tuple[str, list[dict[str, Any]]]:
    """Returns the column with segments of the clip, and these; ("", []) where there are none.

    Args:
        value: the row.
        part: the audio part, with its times.
        text, text_key: what is said, and its column.
        options: of the source.
        origin: the start of an error.
    """
    read = read_segments(value, "segments" in options.columns, origin)
    if read is None:
        return "", []
    column, segments = read
    where = f"{origin}: {column!r}"
    remedy = "say that they are none: columns={'segments': ''}"
    if part.get("start_s"):
        raise DataError(
            f"{where} has times beside a part of a file, and nothing says whether they count from"
            f" its beginning; write the row in the form of docs/data.md, or {remedy}"
        )
    try:
        parse_segments(segments, where, 0.0, part.get("end_s"))
    except DataError as error:
        raise DataError(f"{error}; or {remedy}") from None
    if text is not None:
        pieces = [segment["text"] for segment in segments]
        check_texts(pieces, text, where, f"{text_key!r}", remedy)
    return column, segments


def _check_other_times(value: Mapping[str, Any], is_embedded: bool, origin: str) -> None:
    """Checks that no column may mean a part of the file, which would be ignored.

    A clip inside a container has been cut already, and other columns say where it came from; but
    for NeMo's `offset`, since its tars hold whole files too.
    """
    if is_embedded:
        offset: Any = value.get("offset")
        if _is_number(offset) and float(offset) != 0 and _is_number(value.get("duration")):
            raise DataError(
                f"{origin}: has 'offset' and 'duration' beside a clip in the container; where the"
                " clip is that part already, say so: columns={'start_s': '', 'end_s': ''}"
            )
        return
    named: dict[str, str] = {}  # start_s and end_s -> the column that may say it
    units = set()
    for key, item in value.items():
        match = _TIME.fullmatch(key_name(key)) if _is_number(item) else None
        if match is not None:
            named.setdefault("start_s" if match["start"] else "end_s", key)
            units.add(match["unit"])
    # A start of 0 alone says nothing: the clip begins where its file does.
    if "end_s" not in named and not ("start_s" in named and float(value[named["start_s"]])):
        return
    columns = ", ".join(
        f"'{name}': '{named[name]}'" for name in ("start_s", "end_s") if name in named
    )
    say = f"say so: columns={{{columns}}}"
    if units != {None}:
        say = "write it in seconds, as 'start_s' and 'end_s'"
    elif "end_s" not in named and not is_empty(value.get("duration")):
        say = f"write its end as 'end_s' too, or call {named['start_s']!r} 'offset', as NeMo does"
    raise DataError(
        f"{origin}: has {' and '.join(map(repr, named.values()))}, which may be a part of the file;"
        f" {say}, or, where it is none, columns={{'start_s': '', 'end_s': ''}}"
    )


def _check_channel(value: Mapping[str, Any], origin: str) -> None:
    channel: Any = value.get("channel")
    if _is_number(channel) and float(channel) != 0:
        raise DataError(
            f"{origin}: names channel {channel} of the file, and data.channel says for all files"
            " which is read; write that channel as a file of its own"
        )


def _seconds(value: Any, key: str, origin: str) -> float:
    if not _is_number(value):
        raise DataError(f"{origin}: {key!r} must be a number of seconds, got {format_json(value)}")
    return float(value)


def _checked(start: float, end: float | None, origin: str) -> dict[str, float]:
    if start < 0 or (end is not None and end <= start):
        raise DataError(
            f"{origin}: the part of the file from {start:g} s to"
            f" {'its end' if end is None else f'{end:g} s'} is empty or begins before the file"
        )
    return part_of_file(start, end)


def _is_number(value: Any) -> bool:
    """Returns whether a value is a finite number, or the text of one (CSV has strings only)."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return False
    try:
        return math.isfinite(float(value))
    except ValueError:
        return False


def _stays(key: str, item: Any) -> bool:
    """Returns whether a column stays in the row: no scalar, or one that `parse_record` refuses."""
    if isinstance(item, list | Mapping):
        return True
    return is_refused_key(key, item) and not is_audio_key(key)


def _attributes(others: Mapping[str, Any]) -> dict[str, str]:
    attributes = {}
    for key, item in others.items():
        text = attribute_text(item)
        is_measure = key in _MEASURES and _is_number(item)
        if (
            not key.strip()
            or text is None
            or is_measure
            or isinstance(item, EmbeddedClip)
            or is_audio(item)
        ):
            continue
        attributes[key] = text
    return attributes


def _names(value: Sequence[str] | Mapping[str, Any]) -> str:
    return ", ".join(map(repr, value))
