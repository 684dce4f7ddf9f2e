"""JSON values as the readers of records take them: nulls left out, keys checked, shown in messages on one line."""

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeGuard

from stepaudio_jax.data.record import DataError

_MAX_VALUE_CHARACTERS = 60
_NO_ADVICE: Mapping[str, str] = {}


def without_nulls(value: Any, *, levels: int) -> Any:
    """Returns a JSON value in which keys whose value is null are left out, down to so many levels of objects and lists.

    `datasets` gives every row all keys that any row has, and fills them with null: such a key was
    not given.
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


def check_keys(
    value: Mapping[str, Any],
    allowed: Sequence[str],
    where: str,
    advice: Mapping[str, str] = _NO_ADVICE,
) -> None:
    """Checks that an object has no other keys than the allowed ones; a key of another format may be there and empty.

    Args:
        value: the object.
        allowed: its keys.
        where: the object's place, the start of the message.
        advice: for keys of other formats, what to write instead.

    Raises:
        DataError: naming the place, the key, and what is allowed or what to write instead.
    """
    for key in value:
        if key in allowed:
            continue
        if key in advice and is_empty(value[key]):
            continue
        if key in advice:
            raise DataError(f"{where} has the unknown key {format_json(key)}; {advice[key]}")
        raise DataError(
            f"{where} has the unknown key {format_json(key)}{did_you_mean(key, allowed)} (allowed: {', '.join(allowed)})"
        )


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """Returns the end of an error message: what a misspelt word probably means, or nothing."""
    close = difflib.get_close_matches(str(word)[:_MAX_VALUE_CHARACTERS].lower(), known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


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
