"""Rows of ms-swift: SFT, DPO, KTO and GRPO, `query`/`response`, `conversation`.

{"messages": [{"role": "user", "content": "<audio>When?"}, ..], "audios": ["a.wav"]}
{"messages": [..], "audios": [..], "rejected_response": ".."}      the last reply is the better one
{"messages": [..], "audios": [..], "solution": "7"}                what a verifier compares with
{"system": "..", "query": "<audio>When?", "response": "..", "history": [["..", ".."]], ..}
{"instruction": "<audio>When?", "input": "", "output": "..", ..}
{"system": "..", "conversation": [{"human": "..", "assistant": ".."}], ..}

Its rule for clips without placeholders is kept: where no text of the dialogue has any, all clips
are heard at the start of the first turn after the system turn. `channel`, by which it groups
losses, becomes the row's `source`.
"""

from collections.abc import Mapping
from typing import Any

from stepaudio_jax.data.sources.base import (
    FormOptions,
    alpaca_turns,
    assistant_turn,
    history_turns,
    text_of,
    user_turn,
    without,
)
from stepaudio_jax.data.sources.json_values import (
    format_json,
    is_empty,
    is_list_of_objects,
    parse_literal,
)
from stepaudio_jax.data.sources.placeholders import Clips, count_placeholders, take_clips
from stepaudio_jax.data.sources.rows import (
    ANSWER_KEYS,
    finish_preference,
    read_answer,
    read_label,
    split_reply,
)
from stepaudio_jax.data.sources.tools import insert_schemas
from stepaudio_jax.data.sources.turns import AUDIO_TYPES, CLIP_KEYS, ROLES, read_turns
from stepaudio_jax.errors import DataError

_TURN_KEYS = (
    *("messages", "conversation", "conversations", "query", "response", "history"),
    *("instruction", "input", "output"),
)
_READ_KEYS = (
    *("system", "system_prompt", "tools", "rejected_response", "rejected_messages"),
    *("label", "channel", *ANSWER_KEYS),
)
_ADVICE = "write a placeholder where each clip is heard, or none at all: they are then heard first"


def adapt(value: Mapping[str, Any], origin: str, options: FormOptions) -> dict[str, Any]:
    """Returns a row of ms-swift in the project's form.

    Raises:
        DataError: a placeholder has no clip or stands in an assistant's turn, a clip has no
            placeholder where others have one, or a key has the wrong type.
    """
    del options
    found, row = take_clips(value, origin)
    key, turns = _turns(row, origin)
    turns = _place_untagged(turns, len(found))
    clips = Clips(found, origin)
    system = text_of(row, "system", origin) or text_of(row, "system_prompt", origin)
    messages = read_turns(turns, f"{origin}: {key!r}", clips, system=system)
    rest: dict[str, Any] = without(row, *_TURN_KEYS, *_READ_KEYS)
    rest |= read_answer(row, origin) | read_label(row, ("label",), origin)
    if not is_empty(row.get("channel")) and "source" not in rest:
        rest["source"] = row["channel"]
    result = {**rest, "messages": insert_schemas(messages, row.get("tools"), origin)}
    clips.check_all_taken(_ADVICE)
    return _with_rejected(result, row, found, system, origin, clips)


def _with_rejected(
    result: dict[str, Any],
    row: Mapping[str, Any],
    found: tuple[str, ...],
    system: str | None,
    origin: str,
    clips: Clips,
) -> dict[str, Any]:
    """Returns the row with its last reply and a worse one, if it has one."""
    if not is_empty(row.get("rejected_response")):
        messages, chosen, rejected = split_reply(
            result["messages"], row["rejected_response"], "rejected_response", origin, clips
        )
        return finish_preference({**result, "messages": messages}, chosen, rejected, origin)
    if is_empty(row.get("rejected_messages")):
        return result
    again = Clips(found, origin)  # the rejected dialogue names the same clips once more
    turns = _place_untagged(parse_literal(row["rejected_messages"]), len(found))
    rejected = read_turns(turns, f"{origin}: 'rejected_messages'", again, system=system)
    rejected = insert_schemas(rejected, row.get("tools"), origin)
    return finish_preference(without(result, "messages"), result["messages"], rejected, origin)


def _turns(row: Mapping[str, Any], origin: str) -> tuple[str, Any]:
    """Returns the key that has the dialogue, and its turns in `role`/`content`."""
    for key in ("messages", "conversation", "conversations"):
        if not is_empty(row.get(key)):
            turns = parse_literal(row[key])
            if is_list_of_objects(turns):
                turns = [item for turn in turns for item in _split_pair(turn, origin, key)]
            return key, turns
    if "query" not in row and not is_empty(row.get("instruction")):
        return "instruction", alpaca_turns(row, origin)
    query, response = text_of(row, "query", origin), text_of(row, "response", origin)
    if query is None:
        raise DataError(
            f"{origin}: has no 'messages', 'conversation' or 'query'"
            f" (keys given: {format_json(list(row))})"
        )
    turns = [*history_turns(row.get("history"), origin), user_turn(query)]
    return "query", [*turns, assistant_turn(response)] if response is not None else turns


def _split_pair(turn: Mapping[str, Any], origin: str, key: str) -> list[Mapping[str, Any]]:
    """Returns the turns of `{"human": .., "assistant": ..}`; any other turn as it is."""
    if "role" in turn or "from" in turn:
        return [turn]
    for name in turn:
        if name not in ROLES:
            raise DataError(
                f"{origin}: {key!r} has the turn {format_json(turn)} with the unknown role"
                f" {format_json(name)}; the roles are {', '.join(ROLES)}"
            )
    return [{"role": name, "content": content} for name, content in turn.items()]


def _place_untagged(turns: Any, clips: int) -> Any:
    """Returns the turns with a placeholder for each clip in the first, if no turn has any."""
    if not clips or not is_list_of_objects(turns):
        return turns
    contents = [turn.get("content", turn.get("value")) for turn in turns]
    if any(count_placeholders(content) or _has_audio_part(content) for content in contents):
        return turns
    roles = [ROLES.get(str(turn.get("role", turn.get("from")))) for turn in turns]
    first = next((index for index, role in enumerate(roles) if role != "system"), None)
    if first is None or roles[first] != "user":
        return turns
    turn = turns[first]
    key = "content" if "content" in turn else "value"
    tags = "<audio>" * clips
    content = parse_literal(turn.get(key)) if not isinstance(turn.get(key), str) else turn[key]
    placed = f"{tags}{content}" if isinstance(content, str) else [tags, *(content or [])]
    return [*turns[:first], {**turn, key: placed}, *turns[first + 1 :]]


def _has_audio_part(content: Any) -> bool:
    return isinstance(content, list) and any(
        isinstance(part, Mapping)
        and (
            part.get("type") in AUDIO_TYPES
            or (part.get("type") is None and any(key in part for key in CLIP_KEYS))
        )
        for part in content
    )
