r"""Tools of other libraries -> turns of the prompt format: schemas, calls and results.

The released model reads the schemas as a turn `tool_json_schemas` after the system turn, writes a
call at the end of its reply,

    <tool_call>function\n{name}\n{arguments as JSON}</tool_call>

one behind the other if there are several, and reads each result as a turn `input`.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from stepaudio_jax.data.sources.json_values import (
    format_json,
    is_empty,
    is_json_list,
    parse_literal,
)
from stepaudio_jax.errors import DataError

_THOUGHT = re.compile(r"\s*<think>.*?</think>\s*", re.S)
_CALL_FORM = '{"name": NAME, "arguments": OBJECT}'


def schemas_text(tools: Any, where: str) -> str | None:
    """Returns the text of a `tool_json_schemas` turn; None where there are no tools.

    Args:
        tools: a list of schemas, or a string, which is taken as it is unless it is JSON.
        where: the start of an error.

    Raises:
        DataError: it is neither.
    """
    if is_empty(tools):
        return None
    value = parse_literal(tools)
    if isinstance(value, str):
        return value
    if not is_json_list(value) and not isinstance(value, Mapping):
        raise DataError(f"{where} must be a list of schemas, got {format_json(tools)}")
    return _as_json(value)


def insert_schemas(
    messages: Sequence[dict[str, Any]], tools: Any, origin: str
) -> list[dict[str, Any]]:
    """Returns the messages with a turn of the row's `tools`, if it has any, after the system turn.

    Raises:
        DataError: as of `schemas_text`.
    """
    text = schemas_text(tools, f"{origin}: 'tools'")
    if text is None:
        return list(messages)
    start = next(
        (index for index, message in enumerate(messages) if message.get("role") != "system"),
        len(messages),
    )
    turn = {"role": "tool_json_schemas", "content": text}
    return [*messages[:start], turn, *messages[start:]]


def calls_text(calls: Any, where: str) -> str:
    """Returns the calls of a turn as the model writes them.

    Args:
        calls: one call or a list of them, each `{"name": .., "arguments": ..}` or
            `{"function": {..}}`, with the arguments as an object or as its JSON.
        where: the start of an error.

    Raises:
        DataError: a call has no name, or its arguments are no JSON object.
    """
    return "".join(
        _call_text(call, where) for call in ([calls] if isinstance(calls, Mapping) else calls)
    )


def parse_calls(text: Any, where: str) -> str:
    """Returns the content of a turn that is a call in JSON, as the model writes it.

    A thought in front of it (`<think>..</think>`) stays there.

    Raises:
        DataError: it is no call.
    """
    if isinstance(text, Mapping) or is_json_list(text):
        return calls_text(text, where)
    thought = _THOUGHT.match(text) if isinstance(text, str) else None
    start = thought.end() if thought else 0
    value = parse_literal(text[start:]) if isinstance(text, str) else text
    if not isinstance(value, Mapping) and not is_json_list(value):
        raise DataError(f"{where} must be a call, {_CALL_FORM}, as JSON, got {format_json(text)}")
    return (text[:start] if thought else "") + calls_text(value, where)


def result_text(content: Any) -> Any:
    """Returns a tool's result as text, where it is JSON; anything else as it is."""
    if isinstance(content, Mapping) or (
        is_json_list(content)
        and not any(isinstance(part, Mapping) and "type" in part for part in content)
    ):
        return _as_json(content)
    return json.dumps(content) if isinstance(content, int | float) else content


def call_ids(message: Mapping[str, Any]) -> list[str]:
    """Returns the ids of a turn's calls; none unless all have one."""
    calls = message.get("tool_calls")
    ids = [
        call.get("id") if isinstance(call, Mapping) else None
        for call in (calls if is_json_list(calls) else [])
    ]
    return [item for item in ids if isinstance(item, str)] if all(ids) else []


def order_results(
    results: Sequence[dict[str, Any]], ids: Sequence[str], origin: str
) -> list[dict[str, Any]]:
    """Returns the results that follow a turn in the order of its calls, without their ids.

    The prompt format has no ids: the first result is that of the first call.

    Args:
        results: messages, of which those that name their call have a `tool_call_id`.
        ids: of the calls of the turn before them; empty where they have none.
        origin: the start of an error.

    Raises:
        DataError: a result names a call that the turn before it does not have.
    """
    named_ids = [result.get("tool_call_id") for result in results]
    if ids and results and all(named_ids):
        for named_id in named_ids:
            if named_id not in ids:
                raise DataError(
                    f"{origin}: a tool's result has the 'tool_call_id' {format_json(named_id)}, and"
                    f" the turn before it calls {', '.join(map(format_json, ids))}"
                )
        results = sorted(results, key=lambda result: ids.index(result["tool_call_id"]))
    return [
        {key: item for key, item in result.items() if key != "tool_call_id"} for result in results
    ]


def _call_text(call: Any, where: str) -> str:
    function = call.get("function", call) if isinstance(call, Mapping) else call
    if isinstance(function, str) and isinstance(call, Mapping):
        function = call  # {"function": NAME, "arguments": ..}
    name = None
    if isinstance(function, Mapping):
        name = function.get("name", function.get("function"))
    if not isinstance(name, str) or not name:
        raise DataError(f"{where}: a call must be {_CALL_FORM}, got {format_json(call)}")
    value: Any = next(
        (function[key] for key in ("arguments", "parameters", "input") if key in function), {}
    )
    arguments = parse_literal(value) if value != "" else {}
    if not isinstance(arguments, Mapping):
        raise DataError(
            f"{where}: the arguments of {name!r} must be a JSON object, got {format_json(value)}"
        )
    return f"<tool_call>function\n{name}\n{_as_json(arguments)}</tool_call>"


def _as_json(value: Any) -> str:
    """Returns JSON as chat templates write it (`tojson` of transformers)."""
    return json.dumps(value, ensure_ascii=False)
