"""The content of turns as other libraries write it: texts, clips, calls, thoughts, results."""

from collections.abc import Mapping, Sequence
from typing import Any

from stepaudio_jax.data.sources import tools
from stepaudio_jax.data.sources.base import without
from stepaudio_jax.data.sources.foreign_keys import NO_IMAGES_HINT, is_audio
from stepaudio_jax.data.sources.json_values import (
    format_json,
    is_empty,
    is_json_list,
    parse_literal,
)
from stepaudio_jax.data.sources.placeholders import (
    Clips,
    as_clip,
    check_no_placeholder,
    split_text,
)
from stepaudio_jax.errors import DataError

_TEXT_TYPES = ("text", "input_text", "output_text", "refusal")
_TEXT_KEYS = (*_TEXT_TYPES, "content", "value")
AUDIO_TYPES = ("audio", "input_audio", "audio_url", "sound", "speech")
CLIP_KEYS = ("audio", "audio_url", "input_audio", "url", "path", "audio_path", "bytes")
_IMAGE_TYPES = (
    *("image", "image_url", "input_image", "video", "video_url"),
    *("input_video", "file", "input_file"),
)
_IMAGE_KEYS = frozenset(("image", "image_url", "video", "video_url"))
_CALL_TYPES = ("tool_use", "tool_call", "function_call")
_THOUGHT_TYPES = ("thinking", "reasoning")
_RESULT_TYPE = "tool_result"
# Types of parts that the project's own form does not have and an adapter reads.
FOREIGN_TYPES = frozenset(
    (*_TEXT_TYPES[1:], *AUDIO_TYPES[1:], *_CALL_TYPES, *_THOUGHT_TYPES, _RESULT_TYPE)
)


def read_content(content: Any, where: str, clips: Clips) -> Any:
    """Returns the content of a turn that the model reads; what is no text or list as it is.

    Raises:
        DataError: names the part; a placeholder has no clip, or a part is a picture.
    """
    if isinstance(content, str):
        return _as_content(split_text(content, where, clips)) if content else content
    if not is_json_list(content):
        return content
    parts: list[dict[str, Any]] = []
    for number, part in enumerate(content, 1):
        parts += _read_part(part, f"{where}: part {number}", clips)
    return _as_content(parts) if parts else content


def read_reply(content: Any, message: dict[str, Any], where: str, clips: Clips) -> Any:
    """Returns an assistant's content: its text or refusal, and its calls at the end.

    Args:
        content: of the turn.
        message: the rest of the turn; loses its keys `refusal`, `tool_calls` and `function_call`,
            and gets `reasoning_content` where a part is a thought.
        where: the start of an error.
        clips: of the row.

    Raises:
        DataError: a part is no text, thought or call; or a text has a placeholder.
    """
    calls = [message.pop("tool_calls", None), message.pop("function_call", None)]
    if is_json_list(content):
        content, parts = _reply_parts(content, message, where)
        calls += parts
    refusal = message.pop("refusal", None)
    if is_empty(content) and isinstance(refusal, str):
        content = refusal
    elif not is_empty(refusal):
        raise DataError(f"{where} has both 'content' and 'refusal'; keep one")
    if isinstance(content, str):
        check_no_placeholder(content, where, clips)
    text = "".join(
        tools.calls_text(call, where) for call in map(parse_literal, calls) if not is_empty(call)
    )
    return f"{content or ''}{text}" if text else content


def split_results(turn: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Returns a turn whose parts are results of tools as one turn for each, and the rest."""
    content = turn.get("content")
    if not is_json_list(content) or not any(map(_is_result, content)):
        return [turn]
    results: list[Mapping[str, Any]] = [
        {
            "role": "tool",
            "content": part.get("content", part.get("value")),
            "tool_call_id": part.get("tool_use_id"),
        }
        for part in content
        if _is_result(part)
    ]
    rest = [part for part in content if not _is_result(part)]
    return [*results, *([{**turn, "content": rest}] if rest else [])]


def has_clip_part(content: Any) -> bool:
    """Returns whether a content has a part that is a clip, or the place of one."""
    return is_json_list(content) and any(map(_is_clip, content))


def _as_content(parts: Sequence[dict[str, Any]]) -> str | list[dict[str, Any]]:
    """Returns one string where all parts are text."""
    if all(part.keys() == {"type", "text"} for part in parts):
        return "".join(part["text"] for part in parts)
    return list(parts)


def _read_part(part: Any, where: str, clips: Clips) -> list[dict[str, Any]]:
    if isinstance(part, str):
        if is_audio(part) and len(part.split()) == 1:
            raise DataError(
                f"{where} is the text {format_json(part)}, which names a sound file; write"
                ' {"type": "audio", "audio": PATH}'
            )
        return split_text(part, where, clips)
    if not isinstance(part, Mapping):
        raise DataError(f"{where} must be an object or a text, got {format_json(part)}")
    kind = part.get("type")
    if kind in _IMAGE_TYPES or (kind is None and not _IMAGE_KEYS.isdisjoint(part)):
        raise DataError(f"{where} is an image, a video or another file; {NO_IMAGES_HINT}")
    if _is_clip(part):
        return [_read_clip(part, where, clips)]
    if kind in _TEXT_TYPES or kind is None:
        key = next((key for key in _TEXT_KEYS if key in part), None)
        if key is not None and isinstance(part[key], str):
            extra = without(part, "type", key)
            texts = split_text(part[key], where, clips)
            return [{**text, **extra} for text in texts] if extra else texts
    return [dict(part)]


def _read_clip(part: Mapping[str, Any], where: str, clips: Clips) -> dict[str, Any]:
    """Returns an audio part; one that names no clip takes the next of the row's."""
    keys = (*CLIP_KEYS, "value")
    key = next((key for key in keys if not is_empty(part.get(key))), None)
    rest = without(part, "type", *keys)
    if key is None and any(name in part for name in keys):
        raise DataError(f"{where} names no clip, got {format_json(part)}")
    if key is None:
        clip = clips.take(f'{{"type": "{part.get("type", "audio")}"}}', where)
    else:
        clip = as_clip(part[key], where)
    return {"type": "audio", "audio": clip, **rest}


def _reply_parts(
    parts: Sequence[Any], message: dict[str, Any], where: str
) -> tuple[str, list[Any]]:
    """Returns the text of an assistant's parts, and its calls."""
    text, calls = "", []
    for number, part in enumerate(parts, 1):
        kind = part.get("type", "text") if isinstance(part, Mapping) else "text"
        if kind in _CALL_TYPES:
            calls.append(part.get("value", without(part, "type")))
        elif kind in _THOUGHT_TYPES:
            thought = next((part[key] for key in (kind, *_TEXT_KEYS) if key in part), None)
            if not isinstance(thought, str) or not is_empty(message.get("reasoning_content")):
                raise DataError(
                    f"{where}: part {number} must be the turn's only thought, a text, got"
                    f" {format_json(part)}"
                )
            message["reasoning_content"] = thought
        else:
            text += _reply_text(part, kind, f"{where}: part {number}")
    return text, calls


def _reply_text(part: Any, kind: Any, where: str) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, Mapping) and kind in _TEXT_TYPES:
        text = next((part[key] for key in _TEXT_KEYS if key in part), None)
        if isinstance(text, str):
            return text
    raise DataError(
        f"{where} must be a text, since the model writes text only, got {format_json(part)}"
    )


def _is_clip(part: Any) -> bool:
    if not isinstance(part, Mapping):
        return False
    kind = part.get("type")
    return kind in AUDIO_TYPES or (kind is None and any(key in part for key in CLIP_KEYS))


def _is_result(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") == _RESULT_TYPE
