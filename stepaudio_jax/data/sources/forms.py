"""The forms of rows that are read: their names, and the way from a row of any to one of ours."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from stepaudio_jax.data.containers.base import Row
from stepaudio_jax.data.sources import (
    lhotse,
    llama_factory,
    ms_swift,
    openai,
    qwen,
    recognition,
    trl,
    verl,
    webdataset,
)
from stepaudio_jax.data.sources.base import AUTO, Form, FormOptions
from stepaudio_jax.data.sources.detection import DIALOGUE_KEYS, PROJECT, detect
from stepaudio_jax.data.sources.json_values import (
    as_list_of_objects,
    format_json,
    is_empty,
    is_turns,
    parse_literal,
    without_nulls,
)
from stepaudio_jax.data.sources.messages import RECORD_KEYS
from stepaudio_jax.data.sources.placeholders import count_placeholders
from stepaudio_jax.data.sources.preferences import PREFERENCE_KEYS
from stepaudio_jax.errors import ConfigError, DataError
from stepaudio_jax.storage import did_you_mean

__all__ = [
    "FORMS",
    "Form",
    "FormOptions",
    "check_options",
    "detect_form",
    "row_form",
    "to_project_form",
    "unread_keys",
]

_NULL_LEVELS = 8  # as deep as `parse_record` looks: record, messages, message, parts, part, ..


def _unchanged(value: Mapping[str, Any], origin: str, options: FormOptions) -> dict[str, Any]:
    """Returns a row that is in the project's form."""
    del origin, options
    return dict(value)


FORMS: Mapping[str, Form] = MappingProxyType(
    {
        form.name: form
        for form in (
            Form(PROJECT, "the project's own form", _unchanged),
            Form("ms_swift", "ms-swift: messages or query, with audios beside", ms_swift.adapt),
            Form("llama_factory", "LLaMA-Factory: sharegpt or alpaca", llama_factory.adapt),
            Form("trl", "TRL: messages, prompt and completion, preference", trl.adapt),
            Form("openai", "OpenAI: chat messages or preference", openai.adapt),
            Form("qwen", "Qwen: parts without a type", qwen.adapt),
            Form("verl", "verl: prompt and reward_model", verl.adapt),
            Form("recognition", "one clip and its text: a table", recognition.adapt),
            Form("nemo", "one clip and its text: a manifest of NeMo", recognition.adapt),
            Form("kaldi", "one clip and its text: a data folder of Kaldi", recognition.adapt),
            Form("lhotse", "cuts of Lhotse", lhotse.adapt),
        )
    }
)

# Keys of a row that have turns, in any form.
_TURN_KEYS = frozenset(
    (
        *("messages", "conversations", "conversation", "prompt", "completion"),
        *("chosen", "rejected", "chosen_messages", "rejected_messages"),
    )
)

# What `columns` may name, besides the keys of docs/data.md.
COLUMN_KEYS = (
    *RECORD_KEYS,
    *("prompt", "chosen", "rejected", "audios", "system", "tools", "audio", "text", "reply"),
    *("start_s", "end_s", "segments"),
)


def check_options(options: FormOptions) -> None:
    """Checks the settings of a source's form, before a row is read.

    Raises:
        ConfigError: the format is unknown, or `columns` names a key that no row has.
    """
    if options.format != AUTO and options.format not in FORMS:
        raise ConfigError(
            f"format: unknown form {format_json(options.format)}"
            f"{did_you_mean(options.format, FORMS)} (allowed: {', '.join((AUTO, *FORMS))})"
        )
    for key in options.columns:
        if key not in COLUMN_KEYS:
            raise ConfigError(
                f"columns: unknown key {format_json(key)}{did_you_mean(key, COLUMN_KEYS)}"
                f" (allowed: {', '.join(COLUMN_KEYS)})"
            )


def to_project_form(row: Row, options: FormOptions = FormOptions()) -> dict[str, Any]:  # noqa: B008
    """Returns a row in the project's own JSON form, which `messages.parse_record` then checks.

    A row in that form already comes back as it is.

    Args:
        row: of any container.
        options: of its source.

    Raises:
        DataError: begins with the row's origin; its form is not known, or forbids what it holds.
        ConfigError: as of `check_options`.
    """
    value, name = _named(row, options)
    if name == PROJECT:
        return _spelled_out(value)
    return FORMS[name].adapt(value, row.origin, options)


def unread_keys(value: Mapping[str, Any]) -> list[str]:
    """Returns the keys of a row in the project's form that nothing reads, in its order."""
    read = (*RECORD_KEYS, *PREFERENCE_KEYS)
    return [key for key, item in value.items() if key not in read and not is_empty(item)]


def row_form(row: Row, options: FormOptions = FormOptions()) -> str:  # noqa: B008
    """Returns the name of the form in which `to_project_form` reads a row.

    Raises:
        DataError: begins with the row's origin; its form is not known.
        ConfigError: as of `check_options`.
    """
    return _named(row, options)[1]


def detect_form(value: Any, origin: str = "the row") -> str:
    """Returns the name of a row's form, by its keys and the types of their values.

    Args:
        value: of a row.
        origin: the start of an error.

    Raises:
        DataError: it is in no known form, or in several; names its keys and what to do.
    """
    return detect(without_nulls(_as_object(value, origin), levels=_NULL_LEVELS), origin)


def count_tags(value: Any) -> int:
    """Returns the number of placeholders of clips in a row; 0 in the project's own form."""
    value = _as_object(value, "the row")
    return 0 if detect_form(value) == PROJECT else count_placeholders(value)


def _named(row: Row, options: FormOptions) -> tuple[dict[str, Any], str]:
    """Returns a row under the project's keys, and the name of its form."""
    check_options(options)
    value = _rename(_as_object(row.value, row.origin), options.columns, row.origin)
    if options.format != AUTO:
        return value, options.format
    return value, "llama_factory" if options.dataset_info else detect(value, row.origin)


def _as_object(value: Any, origin: str) -> Mapping[str, Any]:
    """Returns a row as an object: a list of turns is a dialogue, a sample of a tar is one row."""
    if is_turns(value):
        return {"messages": value}
    if not isinstance(value, Mapping):
        raise DataError(f"{origin}: a row must be a JSON object, got {format_json(value)}")
    return webdataset.flatten_sample(value, origin) if webdataset.is_sample(value) else value


def _rename(value: Mapping[str, Any], columns: Mapping[str, str], origin: str) -> dict[str, Any]:
    """Returns the row under the project's keys."""
    for column in columns.values():
        if column and column not in value:
            raise DataError(
                f"{origin}: has no column {column!r}, which 'columns' names"
                f" (columns: {', '.join(map(repr, value))})"
            )
    if value.get("audios", ()) is None:  # a table's row without clips, whose turns may have tags
        value = {**value, "audios": []}
    value = {
        key: as_list_of_objects(item) if key in _TURN_KEYS or key in columns.values() else item
        for key, item in value.items()
    }
    moved = {*columns, *columns.values()}
    renamed = {key: item for key, item in value.items() if key not in moved}
    renamed |= {key: value[column] for key, column in columns.items() if column}
    if columns.get("messages"):  # the dialogue is named: no other is looked for
        renamed = {key: item for key, item in renamed.items() if key not in DIALOGUE_KEYS[1:]}
    # An empty name says that there is no such column: other names are then not asked about.
    dismissed = {key: None for key, column in columns.items() if not column}
    return {**without_nulls(renamed, levels=_NULL_LEVELS), **dismissed}


def _spelled_out(value: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a row of the project's form whose dialogue is a string: a table of strings."""
    return {
        key: parse_literal(item) if key in ("messages", "rubric", "sampling") else item
        for key, item in value.items()
    }
