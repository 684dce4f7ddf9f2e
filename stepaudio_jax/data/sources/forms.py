"""The forms of rows that are read, and how a row's form is found out."""

from collections.abc import Callable, Mapping
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
from stepaudio_jax.data.sources.json_values import (
    format_json,
    is_empty,
    is_json_list,
    is_list_of_objects,
    parse_literal,
    without_nulls,
)
from stepaudio_jax.data.sources.messages import RECORD_KEYS
from stepaudio_jax.data.sources.placeholders import clip_columns, count_placeholders
from stepaudio_jax.data.sources.turn_parts import AUDIO_TYPES, FOREIGN_TYPES
from stepaudio_jax.data.sources.turns import REASONING_KEYS, ROLES
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
]

PROJECT = "project"
_NULL_LEVELS = 6  # as deep as `parse_record` looks: record, messages, message, parts, part, ..


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

# What `columns` may name, besides the keys of docs/data.md.
COLUMN_KEYS = (
    *RECORD_KEYS,
    *("prompt", "chosen", "rejected", "audios", "system", "tools", "audio", "text", "reply"),
    *("start_s", "end_s"),
)
_DIALOGUES = ("messages", "conversations", "conversation", "query", "instruction")
_MS_SWIFT_KEYS = (
    *("audios", "rejected_response", "rejected_messages", "solution", "system"),
    *("system_prompt", "label", "ground_truth"),
)
# Roles that the project's own form reads.
_OWN_ROLES = ("system", "user", "human", "assistant", "input", "tool", "tools", "tool_json_schemas")
_OPENAI_MESSAGE_KEYS = ("refusal", "function_call", "tool_call_id")


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
    check_options(options)
    value = _rename(_as_object(row.value, row.origin), options.columns, row.origin)
    name = _form_name(value, row.origin, options)
    if name == PROJECT:
        return _spelled_out(value)
    return FORMS[name].adapt(value, row.origin, options)


def row_form(row: Row, options: FormOptions = FormOptions()) -> str:  # noqa: B008
    """Returns the name of the form in which `to_project_form` reads a row.

    Raises:
        DataError: begins with the row's origin; its form is not known.
    """
    value = _rename(_as_object(row.value, row.origin), options.columns, row.origin)
    return _form_name(value, row.origin, options)


def detect_form(value: Any, origin: str = "the row") -> str:
    """Returns the name of a row's form, by its keys and the types of their values.

    Args:
        value: of a row.
        origin: the start of an error.

    Raises:
        DataError: it is in no known form, or in several; names its keys and what to do.
    """
    return _detect(without_nulls(_as_object(value, origin), levels=_NULL_LEVELS), origin)


def count_tags(value: Any) -> int:
    """Returns the number of placeholders of clips in a row; 0 in the project's own form."""
    value = _as_object(value, "the row")
    return 0 if detect_form(value) == PROJECT else count_placeholders(value)


def _form_name(value: Mapping[str, Any], origin: str, options: FormOptions) -> str:
    if options.format != AUTO:
        return options.format
    return "llama_factory" if options.dataset_info else _detect(value, origin)


def _as_object(value: Any, origin: str) -> Mapping[str, Any]:
    """Returns a row as an object: a list of turns is a dialogue, a sample of a tar is one row."""
    if is_list_of_objects(value) and all("role" in turn for turn in value):
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
    moved = {*columns, *columns.values()}
    renamed = {key: item for key, item in value.items() if key not in moved}
    renamed |= {key: value[column] for key, column in columns.items() if column}
    if columns.get("messages"):  # the dialogue is named: no other is looked for
        renamed = {key: item for key, item in renamed.items() if key not in _DIALOGUES[1:]}
    # An empty name says that there is no such column: other names are then not asked about.
    dismissed = {key: None for key, column in columns.items() if not column}
    return {**without_nulls(renamed, levels=_NULL_LEVELS), **dismissed}


def _detect(value: Mapping[str, Any], origin: str) -> str:
    given = {key for key, item in value.items() if not is_empty(item)}
    dialogues = [key for key in _DIALOGUES if key in given]
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
    if not given.isdisjoint((*_DIALOGUES, "problem", "completion", "chosen", "chosen_messages")):
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
    "openai": _is_openai,
    "qwen": _is_qwen,
    "ms_swift": _is_ms_swift,
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


def _spelled_out(value: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a row of the project's form whose dialogue is a string: a table of strings."""
    return {
        key: parse_literal(item) if key in ("messages", "rubric", "sampling") else item
        for key, item in value.items()
    }
