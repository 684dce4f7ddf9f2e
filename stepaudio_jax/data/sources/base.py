"""What all adapters share: their options, their type, and small readers of raw rows.

An adapter turns one raw row of a container into a row in the project's own JSON form, which
`messages.parse_record` then checks. Keys that it does not know stay in the row: `parse_record`
refuses those by which other libraries name sound, turns or answers, and ignores the others.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from stepaudio_jax.data.sources.json_values import (
    format_json,
    is_empty,
    is_json_list,
    is_list_of_objects,
    parse_literal,
)
from stepaudio_jax.errors import DataError

AUTO = "auto"


@dataclasses.dataclass(frozen=True)
class FormOptions:
    """Says what a source's rows do not say themselves.

    Attributes:
        format: the name of a form in `forms.FORMS`, or "auto": each row is looked at.
        columns: the project's key -> the row's column. Keys of any row: `id`, `source`, `answer`,
            `reference_reply`, `rejected_reply`, `label` and the other keys of docs/data.md. Of a
            dialogue: `messages`, `audios`, `system`, `tools`, `chosen`, `rejected`. Of a row with
            one clip: `audio`; `text`, what is said in it (the transcript and the reply); `reply`,
            a reply that is no transcript; `prompt`, the question behind the clip; `system`;
            `start_s` and `end_s`, the part of the file in seconds; `segments`, what is said when.
            An empty column name says that the row has no such column, whatever its names suggest.
        prompt: the text behind the clip in rows of one clip without a `prompt` of their own.
        dataset_info: the entry of LLaMA-Factory's `dataset_info.json` that describes the source.
    """

    format: str = AUTO
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
    prompt: str | None = None
    dataset_info: Mapping[str, Any] | None = None


Adapter = Callable[[Mapping[str, Any], str, FormOptions], dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Form:
    """Describes a form of rows.

    Attributes:
        name: as `FormOptions.format` names it.
        summary: what it is, in a few words.
        adapt: (row without nulls, origin, options) -> the row in the project's form. Raises
            DataError, which begins with the origin.
    """

    name: str
    summary: str
    adapt: Adapter


def without(value: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    """Returns a row without some keys: those that its adapter has read."""
    return {key: item for key, item in value.items() if key not in keys}


def text_of(value: Mapping[str, Any], key: str, origin: str) -> str | None:
    """Returns the text of a key; None where the key is missing or empty.

    Raises:
        DataError: it is no string.
    """
    item = value.get(key)
    if is_empty(item):
        return None
    if not isinstance(item, str):
        raise DataError(f"{origin}: {key!r} must be a string, got {format_json(item)}")
    return item


def answer_of(value: Any, what: str) -> str | int | float | None:
    """Returns what a verifier compares with; None where it is missing or empty.

    Raises:
        DataError: it is neither a string nor a number, nor a list of one.
    """
    if is_json_list(value) and len(value) == 1:  # as verl's own examples write it
        value = value[0]
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise DataError(
            f"{what} must be a string or a number, got {format_json(value)};"
            " write what a verifier compares with as 'answer'"
        )
    return value


def user_turn(text: str) -> Mapping[str, Any]:
    """Returns a user's turn of text."""
    return {"role": "user", "content": text}


def assistant_turn(text: str) -> Mapping[str, Any]:
    """Returns an assistant's turn of text."""
    return {"role": "assistant", "content": text}


def history_turns(value: Any, origin: str) -> Sequence[Mapping[str, Any]]:
    """Returns the turns of a `history`: pairs of what the user and the assistant said.

    Raises:
        DataError: it is no list of pairs of strings.
    """
    value = parse_literal(value)
    if is_empty(value):
        return []
    if is_list_of_objects(value):
        return list(value)
    turns: list[Mapping[str, Any]] = []
    for pair in value if is_json_list(value) else [value]:
        if not (
            is_json_list(pair) and len(pair) == 2 and all(isinstance(text, str) for text in pair)
        ):
            raise DataError(
                f"{origin}: 'history' must be a list of pairs [query, response],"
                f" got {format_json(pair)}"
            )
        turns += [user_turn(pair[0]), assistant_turn(pair[1])]
    return turns


def alpaca_turns(
    row: Mapping[str, Any], origin: str, *, with_reply: bool = True
) -> list[Mapping[str, Any]]:
    """Returns the turns of a row with `instruction`, `input`, `output` and `history`.

    Raises:
        DataError: it has neither an instruction nor an input.
    """
    instruction, question = text_of(row, "instruction", origin), text_of(row, "input", origin)
    if instruction is None and question is None:
        raise DataError(
            f"{origin}: has no dialogue and no 'instruction'"
            f" (keys given: {format_json(list(row))}); name its columns"
        )
    asked = "\n".join(text for text in (instruction, question) if text is not None)
    turns = [*history_turns(row.get("history"), origin), user_turn(asked)]
    reply = text_of(row, "output", origin) if with_reply else None
    return [*turns, assistant_turn(reply)] if reply is not None else turns
