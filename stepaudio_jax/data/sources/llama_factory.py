"""Rows of LLaMA-Factory: sharegpt, alpaca, openai and ranking, named by `dataset_info.json`.

{"conversations": [{"from": "human", "value": "<audio>When?"}, ..], "system": "..", "audios": [..]}
{"instruction": "<audio>Write it down.", "input": "", "output": "..", "audios": [..]}
{"messages": [{"role": "user", "content": [{"type": "audio_url", "value": "a.wav"}, ..]}, ..]}
{"chosen_messages": [..], "rejected_messages": [..]}
{"conversations": [..], "chosen": {"from": "gpt", "value": ".."}, "rejected": {..}, "audios": [..]}

An entry of `dataset_info.json` renames the columns, and the keys and roles of the turns; without
one, the names above hold. Every clip needs its `<audio>`.
"""

import os
from collections.abc import Mapping
from typing import Any

from stepaudio_jax.data.sources.base import (
    FormOptions,
    alpaca_turns,
    text_of,
    without,
)
from stepaudio_jax.data.sources.json_values import (
    format_json,
    is_empty,
    is_list_of_objects,
    parse_literal,
)
from stepaudio_jax.data.sources.placeholders import Clips, take_clips
from stepaudio_jax.data.sources.rows import finish_preference, read_label
from stepaudio_jax.data.sources.tools import insert_schemas
from stepaudio_jax.data.sources.turns import read_replies, read_turns
from stepaudio_jax.errors import DataError

# What an entry of dataset_info.json calls a column -> the column's usual name.
_COLUMNS = {
    "messages": "conversations",
    "prompt": "instruction",
    "query": "input",
    "response": "output",
    "history": "history",
    "system": "system",
    "tools": "tools",
    "images": "images",
    "videos": "videos",
    "audios": "audios",
    "chosen": "chosen",
    "rejected": "rejected",
    "kto_tag": "kto_tag",
}
# What an entry calls a role -> the role.
_ROLE_TAGS = {
    "user_tag": "user",
    "assistant_tag": "assistant",
    "observation_tag": "observation",
    "function_tag": "function_call",
    "system_tag": "system",
}
_ADVICE = (
    'write one <audio> where each clip is heard, or name format="ms_swift",'
    " by whose rule clips without any are heard first"
)


def dataset_entry(info: Mapping[str, Any], path: str) -> Mapping[str, Any] | None:
    """Returns the entry of a `dataset_info.json` that describes a file; None if there is none.

    Args:
        info: the content of the file.
        path: of the data, in the folder of `dataset_info.json` or below it.
    """
    for entry in info.values():
        name = entry.get("file_name") if isinstance(entry, Mapping) else None
        if isinstance(name, str) and name and _ends_in(path, name):
            return entry
    return None


def adapt(value: Mapping[str, Any], origin: str, options: FormOptions) -> dict[str, Any]:
    """Returns a row of LLaMA-Factory in the project's form.

    Raises:
        DataError: a placeholder has no clip or stands in an assistant's turn, a clip has no
            placeholder, or the row lacks a column that `dataset_info.json` names.
    """
    row = _rename(value, options.dataset_info or {}, origin)
    paths, row = take_clips(row, origin)
    clips = Clips(paths, origin)
    if not is_empty(row.get("chosen_messages")):
        return _whole_dialogues(row, paths, origin)
    ranking = not is_empty(row.get("chosen")) or not is_empty(row.get("rejected"))
    if is_empty(row.get("conversations")):
        what, turns = "'instruction'", alpaca_turns(row, origin, with_reply=not ranking)
    else:
        what, turns = "'conversations'", row["conversations"]
    system = text_of(row, "system", origin)
    messages = read_turns(turns, f"{origin}: {what}", clips, system=system)
    rest: dict[str, Any] = without(row, *_COLUMNS.values())
    rest |= {key: row[key] for key in ("images", "videos") if key in row}  # refused by name
    rest |= read_label(row, ("kto_tag",), origin)
    result = {**rest, "messages": insert_schemas(messages, row.get("tools"), origin)}
    clips.check_all_taken(_ADVICE)
    if not ranking:
        return result
    chosen, rejected = (
        read_replies(row.get(key), f"{origin}: {key!r}", clips) for key in ("chosen", "rejected")
    )
    return finish_preference(result, chosen, rejected, origin)


def _whole_dialogues(row: Mapping[str, Any], paths: tuple[str, ...], origin: str) -> dict[str, Any]:
    """Returns the row of two dialogues that differ in their last turn."""
    dialogues = []
    for key in ("chosen_messages", "rejected_messages"):
        clips = Clips(paths, origin)
        messages = read_turns(row.get(key), f"{origin}: {key!r}", clips)
        clips.check_all_taken(_ADVICE)
        dialogues.append(insert_schemas(messages, row.get("tools"), origin))
    rest = without(row, "chosen_messages", "rejected_messages", "tools")
    return finish_preference(rest, dialogues[0], dialogues[1], origin)


def _rename(value: Mapping[str, Any], info: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """Returns the row with the usual names of columns, roles and keys of turns."""
    columns = info.get("columns") or {}
    renamed: dict[str, Any] = {}
    for kind, usual in _COLUMNS.items():
        column = columns.get(kind)
        if column is None or column == usual:
            continue
        if column not in value and kind in ("messages", "prompt", "chosen", "rejected"):
            raise DataError(
                f"{origin}: has no {column!r}, which dataset_info.json names as {kind!r}"
                f" (keys given: {format_json(list(value))})"
            )
        if column in value:
            renamed[usual] = value[column]
    moved = set(columns.values()) - set(_COLUMNS.values())
    row = {key: item for key, item in value.items() if key not in moved}
    row |= renamed
    tags = info.get("tags") or {}
    if tags:
        for key in ("conversations", "chosen", "rejected"):
            if key in row:
                row[key] = _rename_turns(parse_literal(row[key]), tags)
    return row


def _rename_turns(turns: Any, tags: Mapping[str, str]) -> Any:
    """Returns turns with `role`, `content` and usual roles in place of those that `tags` name."""
    if isinstance(turns, Mapping):
        return _rename_turn(turns, tags)
    return [_rename_turn(turn, tags) for turn in turns] if is_list_of_objects(turns) else turns


def _rename_turn(turn: Mapping[str, Any], tags: Mapping[str, str]) -> Mapping[str, Any]:
    roles = {tags[tag]: role for tag, role in _ROLE_TAGS.items() if tag in tags}
    role_key, content_key = tags.get("role_tag", "from"), tags.get("content_tag", "value")
    renamed = without(turn, role_key, content_key)
    if role_key in turn:
        renamed["role"] = roles.get(turn[role_key], turn[role_key])
    if content_key in turn:
        renamed["content"] = turn[content_key]
    return renamed


def _ends_in(path: str, name: str) -> bool:
    parts, wanted = (os.path.normpath(item).split(os.sep) for item in (path, name))
    return parts[-len(wanted) :] == wanted
