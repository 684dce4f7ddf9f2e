"""Turns as other libraries write them -> messages of the project's form.

One reader serves all of them, since their files mix each other's spellings: `role` or `from`,
`content` or `value`, parts with or without a type, calls as `tool_calls` or as turns of their own.
Keys that it does not know stay in the message: `parse_record` refuses them by name.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from stepaudio_jax.data.sources import tools
from stepaudio_jax.data.sources.base import (
    is_list_of_objects,
    parse_literal,
    without,
)
from stepaudio_jax.data.sources.foreign_keys import (
    NO_IMAGES_HINT,
    format_json,
    is_empty,
    is_json_list,
)
from stepaudio_jax.data.sources.placeholders import (
    Clips,
    as_clip,
    check_no_placeholder,
    split_text,
)
from stepaudio_jax.errors import DataError

_CALL = "call"
ROLES: Mapping[str, str] = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "bot", "model", "ai", "chatbot"), "assistant"),
    **dict.fromkeys(
        (
            *("input", "tool", "observation", "function", "function_output", "ipython"),
            *("tool_response", "tool_result"),
        ),
        "input",
    ),
    **dict.fromkeys(("function_call", "tool_call"), _CALL),
    **dict.fromkeys(("tool_json_schemas", "tools"), "tool_json_schemas"),
}
_TEXT_TYPES = ("text", "input_text", "output_text", "refusal")
AUDIO_TYPES = ("audio", "input_audio", "audio_url", "sound", "speech")
_IMAGE_TYPES = (
    *("image", "image_url", "input_image", "video", "video_url"),
    *("input_video", "file", "input_file"),
)
CLIP_KEYS = ("audio", "audio_url", "input_audio", "url", "path", "audio_path", "bytes")
REASONING_KEYS = ("reasoning", "thinking", "thought", "reasoning_text")


def read_turns(value: Any, where: str, clips: Clips) -> list[dict[str, Any]]:
    """Returns the messages of a dialogue, each clip at its place.

    Args:
        value: a list of turns, or the string that spells one; or a text, the user's only turn.
        where: the origin and the key, the start of an error.
        clips: those that the row names beside the dialogue.

    Raises:
        DataError: names the turn and what it must be.
    """
    value = parse_literal(value)
    if isinstance(value, str) and value.strip():
        value = [{"role": "user", "content": value}]
    if not is_list_of_objects(value):
        raise DataError(f"{where} must be a list of turns, got {format_json(value)}")
    messages: list[dict[str, Any]] = []
    ids: Sequence[str] = ()
    results: list[dict[str, Any]] = []
    for number, turn in enumerate(value, 1):
        role, message = _read_turn(turn, f"{where}: turn {number}", clips)
        if role == "input":
            results.append(message)
            continue
        messages += tools.order_results(results, ids, where)
        results = []
        if role == "assistant":
            ids = tools.call_ids(turn)
        if role == _CALL and messages and messages[-1]["role"] == "assistant":
            messages[-1] = _join_call(messages[-1], message, f"{where}: turn {number}")
        else:
            messages.append(message)
    return [*messages, *tools.order_results(results, ids, where)]


def read_replies(value: Any, where: str, clips: Clips) -> list[dict[str, Any]]:
    """Returns the turns of a reply that is compared or completed: a text is the assistant's.

    Raises:
        DataError: as of `read_turns`.
    """
    value = parse_literal(value)
    if isinstance(value, str):
        value = [{"role": "assistant", "content": value}]
    return read_turns([value] if isinstance(value, Mapping) else value, where, clips)


def prepend_system(
    messages: Sequence[dict[str, Any]], system: str | None, origin: str, clips: Clips
) -> list[dict[str, Any]]:
    """Returns the messages with a row's `system` as their first turn.

    Raises:
        DataError: they have a system turn that says something else.
    """
    if system is None or not system.strip():
        return list(messages)
    if not messages or messages[0].get("role") != "system" or is_empty(messages[0].get("content")):
        turn = {"role": "system", "content": _content(split_text(system, origin, clips))}
        rest = messages[1:] if messages and messages[0].get("role") == "system" else messages
        return [turn, *rest]
    if messages[0]["content"] != system:
        raise DataError(
            f"{origin}: has 'system', {format_json(system)}, and another system turn,"
            f" {format_json(messages[0]['content'])}; keep one"
        )
    return list(messages)


def _read_turn(turn: Mapping[str, Any], where: str, clips: Clips) -> tuple[str, dict[str, Any]]:
    """Returns the role of a turn, with a role of its own for a call, and its message."""
    role_key = "role" if "role" in turn else "from"
    content_key = "content" if "content" in turn else "value"
    name = turn.get(role_key)
    if not isinstance(name, str) or name not in ROLES:
        raise DataError(
            f"{where} has the role {format_json(name)}; the roles are {', '.join(ROLES)}"
        )
    role = ROLES[name]
    where = f"{where} ({name})"
    message = without(turn, role_key, content_key, *REASONING_KEYS)
    message["role"] = "assistant" if role == _CALL else role
    _read_reasoning(turn, message, where)
    _read_loss(message, where)
    content = turn.get(content_key)
    if role == _CALL:
        message["content"] = tools.parse_calls(content, where)
    elif role == "assistant":
        message["content"] = _read_reply(content, message, where, clips)
    elif role == "tool_json_schemas":
        message["content"] = tools.schemas_text(content, where)
    elif role == "input":
        message.pop("name", None)  # the turn before it says which tool it called
        message["content"] = _read_content(tools.result_text(content), where, clips)
    else:
        message["content"] = _read_content(content, where, clips)
    return role, message


def _read_reasoning(turn: Mapping[str, Any], message: dict[str, Any], where: str) -> None:
    for key in REASONING_KEYS:
        if is_empty(turn.get(key)):
            continue
        if not is_empty(message.get("reasoning_content")):
            raise DataError(f"{where} has both {key!r} and 'reasoning_content'; keep one")
        message["reasoning_content"] = turn[key]


def _read_loss(message: dict[str, Any], where: str) -> None:
    """Replaces ms-swift's numbers by the `loss` of the project's form."""
    loss = message.get("loss")
    if isinstance(loss, int | float) and not isinstance(loss, bool) and loss in (0, 1):
        message["loss"] = bool(loss)
    scale = message.pop("loss_scale", None)
    if scale is None:
        return
    if isinstance(scale, bool) or scale not in (0, 1):
        raise DataError(
            f"{where} has the 'loss_scale' {format_json(scale)}; a turn is trained on (1) or not"
            " (0)"
        )
    if message.get("loss", bool(scale)) != bool(scale):
        raise DataError(f"{where} has 'loss' and 'loss_scale' that contradict each other")
    message["loss"] = bool(scale)


def _read_reply(content: Any, message: dict[str, Any], where: str, clips: Clips) -> Any:
    """Returns an assistant's content: its text, its refusal, and its calls at the end."""
    if is_json_list(content):
        parts = [_text_of_part(part, f"{where}: part {n}") for n, part in enumerate(content, 1)]
        content = "".join(parts)
    refusal = message.pop("refusal", None)
    if is_empty(content) and isinstance(refusal, str):
        content = refusal
    elif not is_empty(refusal):
        raise DataError(f"{where} has both 'content' and 'refusal'; keep one")
    if isinstance(content, str):
        check_no_placeholder(content, where, clips)
    calls = [message.pop("tool_calls", None), message.pop("function_call", None)]
    text = "".join(
        tools.calls_text(call, where) for call in map(parse_literal, calls) if not is_empty(call)
    )
    return f"{content or ''}{text}" if text else content


def _text_of_part(part: Any, where: str) -> str:
    """Returns the text of an assistant's part.

    Raises:
        DataError: it is no text.
    """
    if isinstance(part, str):
        return part
    if isinstance(part, Mapping) and part.get("type", "text") in _TEXT_TYPES:
        text = next((part[key] for key in (*_TEXT_TYPES, "content") if key in part), None)
        if isinstance(text, str):
            return text
    raise DataError(
        f"{where} must be a text, since the model writes text only, got {format_json(part)}"
    )


def _read_content(content: Any, where: str, clips: Clips) -> Any:
    """Returns the content of a turn that the model reads; anything but text and parts as it is."""
    if isinstance(content, str):
        return _content(split_text(content, where, clips)) if content else content
    if not is_json_list(content):
        return content
    parts: list[dict[str, Any]] = []
    for number, part in enumerate(content, 1):
        parts += _read_part(part, f"{where}: part {number}", clips)
    return _content(parts) if parts else content


def _content(parts: Sequence[dict[str, Any]]) -> str | list[dict[str, Any]]:
    """Returns one string where all parts are text."""
    if all(part.keys() == {"type", "text"} for part in parts):
        return "".join(part["text"] for part in parts)
    return list(parts)


def _read_part(part: Any, where: str, clips: Clips) -> list[dict[str, Any]]:
    if isinstance(part, str):
        return split_text(part, where, clips)
    if not isinstance(part, Mapping):
        raise DataError(f"{where} must be an object or a text, got {format_json(part)}")
    kind = part.get("type")
    if kind in _IMAGE_TYPES or (kind is None and not _IMAGE_KEYS.isdisjoint(part)):
        raise DataError(f"{where} is an image, a video or another file; {NO_IMAGES_HINT}")
    is_typeless_clip = kind is None and any(key in part for key in CLIP_KEYS)
    if kind in AUDIO_TYPES or is_typeless_clip:
        return [_read_clip(part, where, clips)]
    if kind in _TEXT_TYPES or kind is None:
        key = next((key for key in (*_TEXT_TYPES, "content") if key in part), None)
        if key is not None and isinstance(part[key], str):
            extra = without(part, "type", key)
            texts = split_text(part[key], where, clips)
            return [{**text, **extra} for text in texts] if extra else texts
    return [dict(part)]


_IMAGE_KEYS = frozenset(("image", "image_url", "video", "video_url"))


def _read_clip(part: Mapping[str, Any], where: str, clips: Clips) -> dict[str, Any]:
    """Returns an audio part; one that names no clip takes the next of the row's."""
    key = next((key for key in CLIP_KEYS if not is_empty(part.get(key))), None)
    rest = without(part, "type", *CLIP_KEYS)
    if key is None and any(name in part for name in CLIP_KEYS):
        raise DataError(f"{where} names no clip, got {format_json(part)}")
    if key is None:
        clip = clips.take(f'{{"type": "{part.get("type", "audio")}"}}', where)
    else:
        clip = as_clip(part[key], where)
    return {"type": "audio", "audio": clip, **rest}


def _join_call(message: dict[str, Any], call: dict[str, Any], where: str) -> dict[str, Any]:
    """Returns an assistant's turn with a call that a turn of its own makes after it."""
    if message.get("loss") != call.get("loss") or message.get("weight") != call.get("weight"):
        raise DataError(
            f"{where} is one turn with the assistant's before it, and the two do not agree in their"
            " 'loss' or 'weight'"
        )
    text = message.get("content") or ""
    if not isinstance(text, str):
        raise DataError(f"{where} follows a turn whose content is no text: {format_json(text)}")
    return {**message, "content": text + call["content"]}
