"""Finds out the form of a row by its keys and the types of their values."""

from collections.abc import Callable, Mapping
from typing import Any

from stepaudio_jax.data.sources import lhotse, recognition
from stepaudio_jax.data.sources.json_values import (
    is_empty,
    is_json_list,
    is_list_of_objects,
    parse_literal,
)
from stepaudio_jax.data.sources.placeholders import (
    clip_columns,
    count_placeholders,
    names_file,
)
from stepaudio_jax.data.sources.turn_parts import AUDIO_TYPES, FOREIGN_TYPES
from stepaudio_jax.data.sources.turns import REASONING_KEYS, ROLES
from stepaudio_jax.errors import DataError

PROJECT = "project"
DIALOGUE_KEYS = ("messages", "conversations", "conversation", "query", "instruction")
_MS_SWIFT_KEYS = (
    *("audios", "rejected_response", "rejected_messages", "solution", "system"),
    *("system_prompt", "label", "ground_truth"),
)
# Roles that the project's own form reads.
_OWN_ROLES = ("system", "user", "human", "assistant", "input", "tool", "tools", "tool_json_schemas")
_OPENAI_MESSAGE_KEYS = ("refusal", "function_call", "tool_call_id")


def detect(value: Mapping[str, Any], origin: str) -> str:
    """Returns the name of a row's form.

    Args:
        value: of a row, without nulls; a sample of a tar as one row.
        origin: the start of an error.

    Raises:
        DataError: the row is in no known form, or has several dialogues; names its keys.
    """
    given = {key for key, item in value.items() if not is_empty(item)}
    dialogues = [key for key in DIALOGUE_KEYS if key in given]
    if len(dialogues) > 1:
        raise DataError(
            f"{origin}: has {' and '.join(map(repr, dialogues))}, each a dialogue; name the one to"
            " be read: columns={'messages': 'COLUMN'}, or leave the other out"
        )
    for name, is_form in _RULES.items():
        if is_form(value, given):
            return name
    raise DataError(
        f"{origin}: is in no form that is known (keys: {', '.join(map(repr, value))});"
        " name the columns, for example columns={'audio': .., 'text': ..} or {'audio': ..,"
        " 'prompt': .., 'reply': ..}, or write it in the form of docs/data.md"
    )


Rule = Callable[[Mapping[str, Any], set[str]], bool]


def _is_verl(value: Mapping[str, Any], given: set[str]) -> bool:
    return "prompt" in given and not {"reward_model", "data_source"}.isdisjoint(given)


def _is_openai(value: Mapping[str, Any], given: set[str]) -> bool:
    if not {"preferred_output", "non_preferred_output"}.isdisjoint(value):
        return True
    return ("functions" in given and "messages" in given) or _any_turn(value, _is_openai_turn)


def _is_openai_turn(turn: Mapping[str, Any]) -> bool:
    if turn.get("role") == "developer" or any(key in turn for key in _OPENAI_MESSAGE_KEYS):
        return True
    return any(
        isinstance(part, Mapping)
        and part.get("type") in ("input_audio", "audio_url", "input_text", "output_text", "refusal")
        for part in _parts(turn)
    )


def _is_qwen(value: Mapping[str, Any], given: set[str]) -> bool:
    return _any_turn(value, _is_qwen_turn)


def _is_qwen_turn(turn: Mapping[str, Any]) -> bool:
    content = turn.get("content")
    if isinstance(content, str) and turn.get("role") != "assistant" and names_file(content):
        return True
    for part in _parts(turn):
        if not isinstance(part, Mapping):
            return True
        if "type" not in part and ("text" in part or "audio" in part):
            return True
        if part.get("type") in AUDIO_TYPES and not isinstance(part.get("audio"), str):
            return any(not is_empty(part.get(key)) for key in ("audio", "audio_url", "path", "url"))
    return False


def _is_ms_swift(value: Mapping[str, Any], given: set[str]) -> bool:
    if not {"query", "conversation"}.isdisjoint(given):
        return True
    if "conversations" in given:
        turns = parse_literal(value["conversations"])
        return is_list_of_objects(turns) and "role" in turns[0]
    if "messages" not in given and "problem" in given:
        return True
    if "messages" not in given or not given.isdisjoint(("chosen", "rejected")):
        return False
    if not given.isdisjoint(_MS_SWIFT_KEYS) or bool(clip_columns(value)):
        return True
    # An empty list of clips beside a placeholder: a clip is missing, and not a word in a text.
    return "audios" in value and count_placeholders(parse_literal(value["messages"])) > 0


def _is_llama_factory(value: Mapping[str, Any], given: set[str]) -> bool:
    if not {"conversations", "chosen_messages"}.isdisjoint(given) or "kto_tag" in value:
        return True
    if "instruction" in given and not {"output", "chosen"}.isdisjoint(value):
        return True
    return _any_turn(value, lambda turn: "from" in turn)


def _is_lhotse(value: Mapping[str, Any], given: set[str]) -> bool:
    return "messages" not in given and lhotse.is_lhotse(value)


def _is_recognition(value: Mapping[str, Any], given: set[str]) -> bool:
    if not given.isdisjoint((*DIALOGUE_KEYS, "problem", "completion", "chosen", "chosen_messages")):
        return False
    return bool(recognition.find_clip_columns(value)) and not is_json_list(value.get("prompt"))


def _is_trl(value: Mapping[str, Any], given: set[str]) -> bool:
    if "messages" in given and given.isdisjoint(("chosen", "rejected")):
        return "tools" in given or _any_turn(value, _is_trl_turn)
    if not {"chosen", "rejected"}.isdisjoint(given):
        return _has_more_than_replies(value)
    return "prompt" in given or isinstance(value.get("text"), str)


def _is_trl_turn(turn: Mapping[str, Any]) -> bool:
    """Returns whether a turn has more than the project's own form reads."""
    role = turn.get("role")
    if any(key in turn for key in ("tool_calls", "loss_scale", "loss_weight", *REASONING_KEYS)):
        return True
    if role in ROLES and (role not in _OWN_ROLES or (ROLES[role] == "input" and "name" in turn)):
        return True
    return any(
        isinstance(part, Mapping)
        and (
            part.get("type") in FOREIGN_TYPES
            or (part.get("type") == "audio" and "audio" not in part)
            or (part.get("type") == "text" and "text" not in part and "value" in part)
        )
        for part in _parts(turn)
    )


def _has_more_than_replies(value: Mapping[str, Any]) -> bool:
    """Returns whether a preference has more than the project's own form reads."""
    return (
        any(key in value for key in ("tools", "system"))
        or bool(clip_columns(value))
        or _any_turn(value, _is_trl_turn)
        or any(
            isinstance(value[key], Mapping) or parse_literal(value[key]) is not value[key]
            for key in ("messages", "prompt", "chosen", "rejected")
            if key in value
        )
    )


def _is_project(value: Mapping[str, Any], given: set[str]) -> bool:
    return "messages" in value or not {"chosen", "rejected"}.isdisjoint(value)


# In this order: the first that holds names the form.
_RULES: Mapping[str, Rule] = {
    "lhotse": _is_lhotse,
    "verl": _is_verl,
    "ms_swift": _is_ms_swift,
    "openai": _is_openai,
    "qwen": _is_qwen,
    "llama_factory": _is_llama_factory,
    "recognition": _is_recognition,
    "trl": _is_trl,
    PROJECT: _is_project,
}


def _any_turn(value: Mapping[str, Any], test: Callable[[Mapping[str, Any]], bool]) -> bool:
    for key in ("messages", "conversations", "prompt", "completion", "chosen", "rejected"):
        turns = parse_literal(value.get(key))
        turns = [turns] if isinstance(turns, Mapping) else turns
        if is_json_list(turns) and any(isinstance(turn, Mapping) and test(turn) for turn in turns):
            return True
    return False


def _parts(turn: Mapping[str, Any]) -> list[Any]:
    content = turn.get("content", turn.get("value"))
    return list(content) if is_json_list(content) else []
