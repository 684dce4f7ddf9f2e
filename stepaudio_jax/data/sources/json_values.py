"""JSON values of rows: what is empty, what a string spells, and which keys an object may have."""

import ast
import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

from stepaudio_jax.errors import DataError
from stepaudio_jax.storage import did_you_mean

_MAX_VALUE_CHARACTERS = 60
_NO_ADVICE: Mapping[str, str] = {}


def without_nulls(value: Any, *, levels: int) -> Any:
    """Returns a JSON value without keys whose value is null, down to `levels` levels of nesting.

    `datasets` gives every row the keys of all rows and fills them with null: such a key was not
    given.
    """
    if levels == 0 or not isinstance(value, dict | list):
        return value
    if isinstance(value, list):
        return [without_nulls(item, levels=levels - 1) for item in value]
    return {
        key: without_nulls(item, levels=levels - 1) if isinstance(item, dict | list) else item
        for key, item in value.items()
        if item is not None
    }


def is_empty(value: Any, *, levels: int = 3) -> bool:
    """Returns whether a JSON value says nothing.

    That is null, false, white space, or a list or an object of nothing else, also one written as
    text.
    """
    if isinstance(value, str):
        return value.strip() in ("", "[]", "{}")
    if isinstance(value, list | dict) and levels:
        items = value.values() if isinstance(value, dict) else value
        return all(is_empty(item, levels=levels - 1) for item in items)
    return value is None or value is False


def is_json_list(value: Any) -> TypeGuard[Sequence[Any]]:
    """Returns whether a value is a JSON list."""
    return isinstance(value, Sequence) and not isinstance(value, str)


def is_list_of_objects(value: Any) -> bool:
    """Returns whether a value is a list of at least one object, and of nothing else."""
    return is_json_list(value) and bool(value) and all(isinstance(item, Mapping) for item in value)


def is_turns(value: Any) -> bool:
    """Returns whether a value is a list of turns, each with its role."""
    return is_list_of_objects(value) and all("role" in turn for turn in value)


def as_list_of_objects(value: Any) -> Any:
    """Returns an object of equally long lists as a list of objects; any other value as it is.

    So Arrow stores a `Sequence` of objects of the library `datasets`.
    """
    if not isinstance(value, Mapping):
        return value
    lists = {key: items for key, items in value.items() if items is not None}
    if not all(map(is_json_list, lists.values())) or len(set(map(len, lists.values()))) != 1:
        return value
    return [dict(zip(lists, items, strict=True)) for items in zip(*lists.values(), strict=True)]


def parse_literal(value: Any) -> Any:
    """Returns what a string spells as JSON or as Python writes lists; any other value as it is.

    Tables of strings (CSV, tf.train.Example) hold dialogues and lists of clips in that way.
    """
    if not isinstance(value, str) or value.strip()[:1] not in ("[", "{"):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(value.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return value


def check_keys(
    value: Mapping[str, Any],
    allowed: Sequence[str],
    where: str,
    advice: Mapping[str, str] = _NO_ADVICE,
) -> None:
    """Checks that an object has allowed keys only; a key of another format may be there if empty.

    Args:
        value: the object.
        allowed: its keys.
        where: the object's place, the start of the message.
        advice: keys of other formats -> what to write instead.

    Raises:
        DataError: names the place, the key, and what is allowed or what to write instead.
    """
    for key in value:
        if key in allowed:
            continue
        if key in advice and is_empty(value[key]):
            continue
        if key in advice:
            raise DataError(f"{where} has the unknown key {format_json(key)}; {advice[key]}")
        raise DataError(
            f"{where} has the unknown key {format_json(key)}{did_you_mean(key, allowed)}"
            f" (allowed: {', '.join(allowed)})"
        )


def format_json(value: Any) -> str:
    """Returns a value on one line of a readable length."""
    if isinstance(value, str):
        value = value[: _MAX_VALUE_CHARACTERS + 1]
    try:
        text = json.dumps(value, ensure_ascii=False)
        text = text if text.isprintable() else json.dumps(value)
    except RecursionError:
        return "a value that is nested too deeply to be shown"
    return text if len(text) <= _MAX_VALUE_CHARACTERS else f"{text[:_MAX_VALUE_CHARACTERS]}.."
