"""Turns as other libraries write them -> messages of the project's form.

One reader serves all of them, since their files mix each other's spellings: `role` or `from`,
`content` or `value`, parts with or without a type, calls as `tool_calls` or as turns of their own.
Keys that it does not know stay in the message: `parse_record` refuses them by name.
"""

from collections.abc import Mapping
from typing import Any

from stepaudio_jax.data.sources import tools
from stepaudio_jax.data.sources.base import without
from stepaudio_jax.data.sources.json_values import (
    format_json,
    is_empty,
    is_list_of_objects,
    parse_literal,
)
from stepaudio_jax.data.sources.placeholders import Clips
from stepaudio_jax.data.sources.turn_parts import read_content, read_reply, split_results
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
REASONING_KEYS = ("reasoning", "thinking", "thought", "reasoning_text")


def read_turns(
    value: Any,
    where: str,
    clips: Clips,
    *,
    system: str | None = None,
    joins_replies: bool = False,
) -> list[dict[str, Any]]:
    """Returns the messages of a dialogue, each clip at its place.

    Args:
        value: a list of turns, or the string that spells one; or a text, the user's only turn.
        where: the origin and the key, the start of an error.
        clips: those that the row names beside the dialogue.
        system: the text of its system turn, if the row names that beside the dialogue too.
        joins_replies: whether an assistant's turn just after another goes on with it.

    Raises:
        DataError: names the turn and what it must be.
    """
    value = parse_literal(value)
    if isinstance(value, str) and value.strip():
        value = [{"role": "user", "content": value}]
    if not is_list_of_objects(value):
        raise DataError(f"{where} must be a list of turns, got {format_json(value)}")
    value = _with_system(value, system, where)
    value = [part for turn in value for part in split_results(turn)]
    messages: list[dict[str, Any]] = []
    ids: list[str] = []
    results: list[dict[str, Any]] = []
    for number, turn in enumerate(value, 1):
        role, message = _read_turn(turn, f"{where}: turn {number}", clips)
        if role == "input":
            results.append(message)
            continue
        messages += tools.order_results(results, ids, where)
        results = []
        goes_on = role == _CALL or (joins_replies and role == "assistant")
        if goes_on and messages and messages[-1]["role"] == "assistant":
            messages[-1] = _join_replies(messages[-1], message, f"{where}: turn {number}")
            ids = [*ids, *tools.call_ids(turn)]
        else:
            messages.append(message)
            ids = tools.call_ids(turn) if role == "assistant" else ids
    return [*messages, *tools.order_results(results, ids, where)]


def read_replies(
    value: Any,
    where: str,
    clips: Clips,
    *,
    system: str | None = None,
    joins_replies: bool = False,
) -> list[dict[str, Any]]:
    """Returns the turns of a reply that is compared or completed: a text is the assistant's.

    Raises:
        DataError: as of `read_turns`.
    """
    value = parse_literal(value)
    if isinstance(value, str):
        value = [{"role": "assistant", "content": value}]
    turns = [value] if isinstance(value, Mapping) else value
    return read_turns(turns, where, clips, system=system, joins_replies=joins_replies)


def _with_system(turns: Any, system: str | None, where: str) -> Any:
    """Returns the turns with a row's `system` as their first.

    Raises:
        DataError: they have a system turn that says something else.
    """
    if system is None or not system.strip():
        return turns
    first = turns[0]
    if ROLES.get(str(first.get("role", first.get("from")))) != "system":
        return [{"role": "system", "content": system}, *turns]
    content = first.get("content", first.get("value"))
    if not is_empty(content) and content != system:
        raise DataError(
            f"{where}: the row has 'system', {format_json(system)}, and another system turn,"
            f" {format_json(content)}; keep one"
        )
    return [{"role": "system", "content": system}, *turns[1:]]


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
        message["content"] = read_reply(content, message, where, clips)
    elif role == "tool_json_schemas":
        message["content"] = tools.schemas_text(content, where)
    elif role == "input":
        message.pop("name", None)  # the turn before it says which tool it called
        message["content"] = read_content(tools.result_text(content), where, clips)
    else:
        message["content"] = read_content(content, where, clips)
    return role, message


def _read_reasoning(turn: Mapping[str, Any], message: dict[str, Any], where: str) -> None:
    for key in REASONING_KEYS:
        if is_empty(turn.get(key)):
            continue
        if not is_empty(message.get("reasoning_content")):
            raise DataError(f"{where} has both {key!r} and 'reasoning_content'; keep one")
        message["reasoning_content"] = turn[key]


def _read_loss(message: dict[str, Any], where: str) -> None:
    """Replaces the numbers of ms-swift and LLaMA-Factory by the project's `loss`."""
    loss = message.get("loss")
    if isinstance(loss, int | float) and not isinstance(loss, bool) and loss in (0, 1):
        message["loss"] = bool(loss)
    for key in ("loss_scale", "loss_weight"):
        scale = message.pop(key, None)
        if scale is None:
            continue
        if isinstance(scale, bool) or scale not in (0, 1):
            raise DataError(
                f"{where} has the {key!r} {format_json(scale)}; a turn is trained on (1) or not (0)"
            )
        if message.get("loss", bool(scale)) != bool(scale):
            raise DataError(f"{where} has 'loss' and {key!r} that contradict each other")
        message["loss"] = bool(scale)


def _join_replies(message: dict[str, Any], more: dict[str, Any], where: str) -> dict[str, Any]:
    """Returns an assistant's turn that goes on in a second one, as a call or as more text."""
    for key in ("loss", "weight"):
        if more.get(key) is not None and more[key] != message.get(key):
            raise DataError(
                f"{where} is one turn with the assistant's before it, and the two do not agree in"
                f" their {key!r}"
            )
    texts = [message.get("content") or "", more.get("content") or ""]
    if not all(isinstance(text, str) for text in texts):
        raise DataError(f"{where} goes on with a turn, and one of the two is no text")
    return {**more, **message, "content": "".join(texts)}
