"""Rows of the OpenAI API: chat messages and the preference form of its fine-tuning.

{"messages": [{"role": "developer", ..}, {"role": "user", "content": [{"type": "input_audio",
"input_audio": {"data": BASE64, "format": "wav"}}, ..]}, ..], "tools": [..]}
{"input": {"messages": [..], "tools": [..]}, "preferred_output": [..], "non_preferred_output": [..]}

Base64 becomes a `data:` URI, `developer` is the system turn, a `refusal` is a reply, `weight` says
whether a turn is trained on. `parallel_tool_calls` is a setting of the API and left out.
"""

from collections.abc import Mapping
from typing import Any

from stepaudio_jax.data.sources import trl
from stepaudio_jax.data.sources.base import FormOptions, without
from stepaudio_jax.data.sources.json_values import format_json, is_empty, parse_literal
from stepaudio_jax.errors import DataError

_OUTPUTS = {"preferred_output": "chosen", "non_preferred_output": "rejected"}
_SETTINGS = ("parallel_tool_calls", "tool_choice")


def adapt(value: Mapping[str, Any], origin: str, options: FormOptions) -> dict[str, Any]:
    """Returns a row of the OpenAI API in the project's form.

    Raises:
        DataError: `input` has no messages, an output is missing or is not one turn of the
            assistant's; or as of `trl.adapt`.
    """
    row = without(value, *_SETTINGS)
    if any(key in row for key in _OUTPUTS):
        row = _preference(row, origin)
    functions = row.pop("functions", None)
    if not is_empty(functions):
        if not is_empty(row.get("tools")):
            raise DataError(f"{origin}: has both 'tools' and 'functions'; keep one")
        row["tools"] = functions
    return trl.adapt(row, origin, options)


def _preference(row: Mapping[str, Any], origin: str) -> dict[str, Any]:
    asked = parse_literal(row.get("input"))
    if not isinstance(asked, Mapping) or is_empty(asked.get("messages")):
        raise DataError(
            f"{origin}: 'input' must be an object with 'messages', got {format_json(asked)}"
        )
    for key in _OUTPUTS:
        if is_empty(row.get(key)):
            raise DataError(f"{origin}: has no {key!r}; give the two replies that are compared")
    return {
        **without(row, "input", *_OUTPUTS),
        **without(asked, *_SETTINGS),
        **{name: row[key] for key, name in _OUTPUTS.items()},
    }
