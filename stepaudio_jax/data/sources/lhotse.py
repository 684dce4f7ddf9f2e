"""Cuts of Lhotse: a recording, the part of it that is meant, and what is said there.

{"type": "MonoCut", "id": "a-0", "start": 0.5, "duration": 2.0, "channel": 0,
"supervisions": [{"text": "..", "speaker": "..", ..}], "recording": {"sources": [..], ..}}

`start` and `duration` become `start_s` and `end_s`, unless they are the whole recording. The texts
of several supervisions are joined in the order of their time, and become the segments of the clip.
`speaker`, `gender`, `language` and the scalars of `custom` become attributes; where supervisions
differ in one, its values are joined by a comma. Alignments of supervisions are not read.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from stepaudio_jax.data.sources.base import FormOptions, text_of, without
from stepaudio_jax.data.sources.json_values import format_json, is_empty, parse_literal
from stepaudio_jax.data.sources.recognition import attribute_text, clip_dialogue, part_of_file
from stepaudio_jax.errors import DataError
from stepaudio_jax.text.pieces import join_attributes

_CUT_KEYS = (
    *("type", "start", "duration", "channel", "supervisions", "recording", "custom"),
    "features",
)
_ATTRIBUTES = ("speaker", "gender", "language")
_OVERHANG = 0.1  # seconds by which a supervision may reach beyond its cut: times are rounded
_JOIN_ADVICE = "join the manifests: lhotse cut simple -r RECORDINGS -s SUPERVISIONS CUTS"


def is_lhotse(value: Mapping[str, Any]) -> bool:
    """Returns whether a row is one of Lhotse's manifests, also one that cannot be read."""
    kind = value.get("type")
    is_cut = isinstance(kind, str) and kind.endswith("Cut")
    has_parts = "supervisions" in value and ("recording" in value or "features" in value)
    is_recording = {"sources", "sampling_rate", "num_samples"} <= value.keys()
    is_supervision = {"recording_id", "start", "duration"} <= value.keys()
    return is_cut or has_parts or is_recording or is_supervision


def adapt(value: Mapping[str, Any], origin: str, options: FormOptions) -> dict[str, Any]:
    """Returns a cut as a dialogue.

    Raises:
        DataError: it is no cut of one recording; its recording is no file, is changed when it is
            read, or has other channels before the cut's; or it has no text.
    """
    _check_kind(value, origin)
    recording = parse_literal(value["recording"])
    if not isinstance(recording, Mapping):
        raise DataError(f"{origin}: 'recording' must be an object, got {format_json(recording)}")
    if not is_empty(recording.get("transforms")):
        raise DataError(
            f"{origin}: the recording has 'transforms', which would have to be computed when it is"
            " read; write the result as a file"
        )
    supervisions = _supervisions(value, origin)
    part: dict[str, Any] = {"type": "audio", "audio": _source(value, recording, origin)}
    part |= _times(value, recording, origin)
    _check_inside(supervisions, value["duration"], origin)
    text = _text(supervisions, origin)
    part["transcript"] = text
    if len(supervisions) > 1:
        part["segments"] = _segments(supervisions, value)
    attributes = join_attributes(map(_attributes, [*supervisions, value]))
    if attributes:
        part["attributes"] = attributes
    messages = clip_dialogue(
        part,
        text_of(value, "reply", origin) or text,
        prompt=text_of(value, "prompt", origin) or options.prompt,
        system=text_of(value, "system", origin),
    )
    rest = without(value, *_CUT_KEYS, "reply", "prompt", "system")
    custom = parse_literal(value.get("custom"))
    if isinstance(custom, Mapping) and any(isinstance(x, list | Mapping) for x in custom.values()):
        rest["custom"] = custom
    return {**rest, "messages": messages}


def _check_kind(value: Mapping[str, Any], origin: str) -> None:
    if "sources" in value or "recording_id" in value:
        what = "a recording" if "sources" in value else "a supervision"
        raise DataError(f"{origin}: is {what} of Lhotse and no cut; {_JOIN_ADVICE}")
    kind = value.get("type", "MonoCut")
    if kind != "MonoCut":
        raise DataError(
            f"{origin}: is a {format_json(kind)}, which is no part of one recording; save its sound"
            " as a file first (cut.save_audio)"
        )
    if is_empty(value.get("recording")):
        raise DataError(f"{origin}: the cut has no 'recording', only features; {_JOIN_ADVICE}")


def _source(value: Mapping[str, Any], recording: Mapping[str, Any], origin: str) -> str:
    """Returns the path or address of the file that has the cut's channel."""
    channel = value.get("channel", 0)
    if isinstance(channel, list) and len(channel) == 1:
        channel = channel[0]
    if isinstance(channel, bool) or not isinstance(channel, int):
        raise DataError(f"{origin}: 'channel' must be one channel, got {format_json(channel)}")
    sources = recording.get("sources")
    for source in sources if isinstance(sources, list) else []:
        channels = source.get("channels") if isinstance(source, Mapping) else None
        if not isinstance(channels, list) or channel not in channels:
            continue
        if channels[0] != channel:
            raise DataError(
                f"{origin}: the cut is channel {channel} of a file with the channels"
                f" {format_json(channels)}, and data.channel says for all files which is read;"
                " write that channel as a file of its own"
            )
        place, kind = source.get("source"), source.get("type")
        if kind not in ("file", "url") or not isinstance(place, str) or not place:
            raise DataError(
                f"{origin}: the recording's source is of the type {format_json(kind)}, not a file"
                " or an address; save it as a file"
            )
        return place
    raise DataError(
        f"{origin}: no source of the recording has the cut's channel {channel}"
        f" (sources: {format_json(sources)})"
    )


def _times(value: Mapping[str, Any], recording: Mapping[str, Any], origin: str) -> dict[str, float]:
    start: Any = value.get("start", 0.0)
    duration: Any = value.get("duration")
    for key, item in (("start", start), ("duration", duration)):
        if isinstance(item, bool) or not isinstance(item, int | float):
            raise DataError(f"{origin}: {key!r} must be a number of seconds, got {item!r}")
    if start < 0 or duration <= 0:
        raise DataError(
            f"{origin}: the cut of {duration:g} s from {start:g} s is empty or begins before the"
            " recording"
        )
    length, rate = recording.get("duration"), recording.get("sampling_rate")
    sample = 1 / rate if isinstance(rate, int) and rate > 0 else 1e-3
    if start == 0 and isinstance(length, int | float) and abs(length - duration) < sample:
        return {}
    return part_of_file(start, start + duration)


def _supervisions(value: Mapping[str, Any], origin: str) -> list[Mapping[str, Any]]:
    supervisions = parse_literal(value.get("supervisions")) or []
    if not all(isinstance(item, Mapping) for item in supervisions):
        raise DataError(
            f"{origin}: 'supervisions' must be a list of objects, got {format_json(supervisions)}"
        )
    times = [item.get(key, 0.0) for item in supervisions for key in ("start", "duration")]
    if not all(isinstance(time, int | float) for time in times):
        raise DataError(
            f"{origin}: 'start' and 'duration' of a supervision must be numbers of seconds"
        )
    return sorted(supervisions, key=lambda item: item.get("start", 0.0))


def _check_inside(
    supervisions: Sequence[Mapping[str, Any]], cut_length: float, origin: str
) -> None:
    """Checks that every supervision lies in the cut: windows of a recording keep the whole text."""
    for number, item in enumerate(supervisions, 1):
        start, length = item.get("start", 0.0), item.get("duration", 0.0)
        if start < -_OVERHANG or start + length > cut_length + _OVERHANG:
            raise DataError(
                f"{origin}: supervision {number} is from {start:g} s to {start + length:g} s of a"
                f" cut of {cut_length:g} s: its text says more than is heard; trim the cuts to"
                " their supervisions"
            )


def _text(supervisions: Sequence[Mapping[str, Any]], origin: str) -> str:
    texts = [text_of(item, "text", origin) for item in supervisions]
    said = [text for text in texts if text is not None]
    if not said:
        raise DataError(
            f"{origin}: the cut has no text: {len(texts)} supervisions, none with 'text';"
            " leave it out"
        )
    if len(said) < len(texts):
        raise DataError(
            f"{origin}: supervision {texts.index(None) + 1} of {len(texts)} has no text, and the"
            " others have; give it, or leave the cut out"
        )
    return " ".join(said)


def _segments(
    supervisions: Sequence[Mapping[str, Any]], value: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Returns the segments of a cut's clip, with times of its file; none reaches beyond the cut."""
    first = float(value.get("start", 0.0))
    last = first + value["duration"]
    segments = []
    for item in supervisions:
        start = max(first + item.get("start", 0.0), first)
        end = max(min(start + item.get("duration", 0.0), last), start)
        attributes = _attributes(item)
        segments.append(
            {
                **{"start_s": round(start, 9), "end_s": round(end, 9), "text": item["text"]},
                **({"attributes": attributes} if attributes else {}),
            }
        )
    return segments


def _attributes(item: Mapping[str, Any]) -> dict[str, str]:
    """Returns the attributes of a supervision or of the cut."""
    custom = parse_literal(item.get("custom"))
    fields = {key: item.get(key) for key in _ATTRIBUTES}
    fields |= dict(custom) if isinstance(custom, Mapping) else {}
    texts = {key: attribute_text(field) for key, field in fields.items()}
    return {key: text for key, text in texts.items() if text is not None}
