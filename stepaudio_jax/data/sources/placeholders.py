"""Clips that a row names beside its dialogue, and the placeholders that say where they are heard.

Other libraries write `<audio>` or `<|AUDIO|>` into a text and name the clips in a list beside it.
In a row of such a form every placeholder takes one clip, in order: one too many, a clip too many,
and a placeholder in an assistant's turn are errors. In the project's own form, where clips are
parts of a turn, `<audio>` is plain text.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from stepaudio_jax.data.containers.base import EmbeddedClip
from stepaudio_jax.data.sources.foreign_keys import NO_IMAGES_HINT, is_audio, is_audio_key
from stepaudio_jax.data.sources.json_values import (
    format_json,
    is_empty,
    is_json_list,
    parse_literal,
)
from stepaudio_jax.errors import DataError

# Qwen's processors want the tokens around a placeholder written out, MiniCPM's what is around it;
# they belong to it.
_PLACEHOLDER = re.compile(
    r"\(<audio>\./</audio>\)|<audio>\s*</audio>"
    r"|<audio>\s*(?P<file>[^<>\n]{1,500}?)\s*</audio>"
    r"|<\|audio_bos\|><\|AUDIO\|><\|audio_eos\|>"
    r"|<\|audio_start\|><\|audio_pad\|><\|audio_end\|>"
    r"|<\|audio_(?P<number>\d+)\|>"  # of Phi
    r"|<\|audio\|>|<audio>",
    re.I,
)
_IMAGE_PLACEHOLDER = re.compile(r"<(?:image|video)>|<\|(?:image|video)(?:_\d+)?\|>", re.I)

# base64 of the first bytes of a sound file -> its type.
_BASE64_TYPES = {"UklGR": "wav", "SUQz": "mpeg", "T2dnU": "ogg", "ZkxhQ": "flac"}
_BASE64 = re.compile(r"[A-Za-z0-9+/]{40,}={0,2}")
_OWN_FORM_HINT = "in the form of docs/data.md, where clips are parts, it is plain text"


class Clips:
    """Hands out the clips of a row in order, one to each placeholder.

    Args:
        clips: of the row.
        origin: of the row.
        forbids_images: whether `<image>` and `<video>` are placeholders too, which are refused.
    """

    def __init__(self, clips: Sequence[str], origin: str, *, forbids_images: bool = True):
        self._clips = tuple(clips)
        self._origin = origin
        self._taken = 0
        self.forbids_images = forbids_images

    def __len__(self) -> int:
        return len(self._clips)

    def take(self, placeholder: str, where: str, number: str | None = None) -> str:
        """Returns the next clip.

        Args:
            placeholder: for which it is.
            where: the place, the start of an error.
            number: that the placeholder has, if it has one.

        Raises:
            DataError: all are taken, or the placeholders are not numbered in order; names the place
                and the number of clips.
        """
        if number is not None and int(number) != self._taken + 1:
            raise DataError(
                f"{where} has the placeholder {format_json(placeholder)} as number"
                f" {self._taken + 1}; write <audio> for each clip, and the clips in that order"
            )
        if self._taken == len(self._clips):
            count = "no clip" if not self._clips else f"only {_count(len(self._clips), 'clip')}"
            raise DataError(
                f"{where} has the placeholder {format_json(placeholder)} and the row has {count}"
                f" for it; name its clip in 'audios', or take it out ({_OWN_FORM_HINT})"
            )
        self._taken += 1
        return self._clips[self._taken - 1]

    def check_all_taken(self, advice: str) -> None:
        """Checks that every clip has a place.

        Raises:
            DataError: names the first that has none.
        """
        left = self._clips[self._taken :]
        if left:
            raise DataError(
                f"{self._origin}: the row has {_count(len(self._clips), 'clip')} and its turns"
                f" have {_count(self._taken, 'placeholder')}: {format_json(left[0])} would not be"
                f" heard; {advice}"
            )


def split_text(text: str, where: str, clips: Clips) -> list[dict[str, Any]]:
    """Splits a text at its placeholders into text and audio parts, in order.

    `<audio>FILE</audio>`, as Qwen-Audio and older ms-swift write it, names its clip itself.

    Raises:
        DataError: a placeholder without a clip, or one of an image.
    """
    check_no_image(text, where, clips)
    parts: list[dict[str, Any]] = []
    start = 0
    for match in _PLACEHOLDER.finditer(text):
        end, placeholder = match.end(), match[0]
        if match["file"] is not None and is_audio(match["file"]):
            clip = as_clip(match["file"], where)
        else:
            if match["file"] is not None:  # HTML around text, whose tag is a placeholder alone
                end, placeholder = match.start() + len("<audio>"), "<audio>"
            clip = clips.take(placeholder, where, match["number"])
        parts += [*_text_part(text[start : match.start()]), {"type": "audio", "audio": clip}]
        start = end
    return [*parts, *_text_part(text[start:])]


def check_no_placeholder(text: str, where: str, clips: Clips) -> None:
    """Checks a text in which no clip can stand.

    Raises:
        DataError: names the place and the placeholder.
    """
    check_no_image(text, where, clips)
    match = _PLACEHOLDER.search(text)
    if match is not None:
        raise DataError(
            f"{where} has the placeholder {format_json(match[0])}, and the model writes text only;"
            f" take it out ({_OWN_FORM_HINT})"
        )


def check_no_image(text: str, where: str, clips: Clips) -> None:
    """Checks that a text has no placeholder of an image or a video, where those are placeholders.

    Raises:
        DataError: names the place and the placeholder.
    """
    match = _IMAGE_PLACEHOLDER.search(text) if clips.forbids_images else None
    if match is not None:
        raise DataError(f"{where} has the placeholder {match[0]!r}; {NO_IMAGES_HINT}")


def names_file(text: str) -> bool:
    """Returns whether a text names a clip: `<audio>a.wav</audio>`."""
    files = (match["file"] for match in _PLACEHOLDER.finditer(text))
    return any(file is not None and is_audio(file) for file in files)


def count_placeholders(value: Any) -> int:
    """Returns the number of placeholders in all texts of a row."""
    if isinstance(value, str):
        return sum(1 for _ in _PLACEHOLDER.finditer(value))
    if isinstance(value, Mapping):
        return sum(map(count_placeholders, value.values()))
    return sum(map(count_placeholders, value)) if is_json_list(value) else 0


def clip_columns(value: Mapping[str, Any]) -> list[str]:
    """Returns the columns of a row that name or hold clips, in the row's order."""
    return [
        key
        for key, item in value.items()
        if _holds_embedded(item)
        or (is_audio_key(key) and not key.startswith("rejected") and _is_clip_value(item))
    ]


def take_clips(value: Mapping[str, Any], origin: str) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Returns the clips that a row names beside its dialogue, and the row without those columns.

    Raises:
        DataError: several columns have clips and no numbers that say in which order they are
            heard; or a clip is neither a path, an address nor the content of a file.
    """
    columns = clip_columns(value)
    rest = {key: item for key, item in value.items() if key not in columns}
    if len(columns) > 1:
        stems = {re.sub(r"[-_.]?\d+(?=\.|$)", "", column) for column in columns}
        same = all(value[column] == value[columns[0]] for column in columns)
        if len(stems) > 1 and not same:
            raise DataError(
                f"{origin}: has clips in {', '.join(map(repr, columns))}, and nothing says in which"
                " order they are heard; name the column: columns={'audios': 'COLUMN'}"
            )
        columns = columns[:1] if same else sorted(columns, key=_natural_order)
    clips: list[str] = []
    for column in columns:
        clips += read_clips(value[column], f"{origin}: {column!r}")
    return tuple(clips), rest


def read_clips(value: Any, where: str) -> list[str]:
    """Returns the clips of a column: one, or a list of them.

    Raises:
        DataError: as of `as_clip`.
    """
    value = parse_literal(value)
    if is_empty(value):
        return []
    if not is_json_list(value):
        return [as_clip(value, where)]
    return [as_clip(item, f"{where}: number {number}") for number, item in enumerate(value, 1)]


def as_clip(value: Any, where: str) -> str:
    """Returns a clip as an audio part names it: a path, an address or a `data:` URI.

    Args:
        value: a string (also base64 of a file's content), or an object with `path`, `url`, `audio`,
            `bytes`, or with `data` and `format`.
        where: the start of an error.

    Raises:
        DataError: it is something else.
    """
    if isinstance(value, EmbeddedClip):
        return value
    if isinstance(value, str) and value.strip():
        return _as_path(value.strip())
    if isinstance(value, Mapping):
        if "data" in value:
            return _from_data(value, where)
        for key in ("bytes", "audio", "audio_url", "input_audio", "url", "path", "audio_path"):
            item = value.get(key)
            if is_empty(item):
                continue
            if key == "bytes" and not isinstance(item, EmbeddedClip) and not _is_base64(item):
                raise DataError(
                    f"{where} has the bytes {format_json(item)}, which are no sound file as base64;"
                    " write its path"
                )
            return as_clip(item, where)
    raise DataError(
        f"{where} must name a clip: a path, an address or a data: URI, got {format_json(value)}"
    )


def _as_path(text: str) -> str:
    if text.lower().startswith("file://"):
        return text[len("file://") :]
    if _is_base64(text):
        kind = next(kind for start, kind in _BASE64_TYPES.items() if text.startswith(start))
        return f"data:audio/{kind};base64,{text}"
    return text


def _from_data(value: Mapping[str, Any], where: str) -> str:
    """Returns the clip of `{"data": BASE64, "format": "wav"}`; the data may be an address too."""
    data, kind = value["data"], value.get("format", "wav")
    if not isinstance(data, str) or not data or not isinstance(kind, str):
        raise DataError(
            f"{where} must have base64 as 'data' and a 'format', got {format_json(value)}"
        )
    kind = {"mp3": "mpeg"}.get(kind, kind)
    if data.startswith("data:;"):
        return f"data:audio/{kind}{data[len('data:') :]}"
    return data if re.match(r"[a-z0-9]+:", data) else f"data:audio/{kind};base64,{data}"


def _is_base64(value: Any) -> bool:
    return (
        isinstance(value, str)
        and value.startswith(tuple(_BASE64_TYPES))
        and _BASE64.fullmatch(value) is not None
    )


def _is_clip_value(value: Any) -> bool:
    """Returns whether a column of a clip's name has content: `audio: true` counts no clips."""
    return isinstance(value, str | list | Mapping) and not is_empty(value)


def _holds_embedded(value: Any) -> bool:
    if is_json_list(value):
        return bool(value) and all(map(_holds_embedded, value))
    if isinstance(value, Mapping):
        return any(isinstance(item, EmbeddedClip) for item in value.values())
    return isinstance(value, EmbeddedClip)


def _natural_order(name: str) -> list[tuple[int, str]]:
    """Returns a key that sorts `audio_10` after `audio_9`."""
    return [
        (int(piece), "") if piece.isdigit() else (-1, piece) for piece in re.split(r"(\d+)", name)
    ]


def _text_part(text: str) -> list[dict[str, Any]]:
    return [{"type": "text", "text": text}] if text else []


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
