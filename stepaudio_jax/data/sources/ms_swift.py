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
from stepaudio_jax.data.sources.placeholders import (
    Clips,
    count_placeholders,
    read_clips,
    take_clips,
)
from stepaudio_jax.data.sources.rows import (
    ANSWER_KEYS,
    finish_preference,
    read_answer,
    read_label,
)
from stepaudio_jax.data.sources.tools import insert_schemas
from stepaudio_jax.data.sources.turn_parts import has_clip_part
from stepaudio_jax.data.sources.turns import ROLES, read_replies, read_turns
from stepaudio_jax.errors import DataError

_READ_KEYS = (
    *("system", "system_prompt", "tools", "rejected_response", "rejected_messages"),
    *("label", "channel", *ANSWER_KEYS),
)
_QUERY_KEYS = ("query", "problem", "question")
_ADVICE = "write a placeholder where each clip is heard, or none at all: they are then heard first"


def adapt(value: Mapping[str, Any], origin: str, options: FormOptions) -> dict[str, Any]:
    """Returns a row of ms-swift in the project's form.

    Raises:
        DataError: a placeholder has no clip or stands in an assistant's turn, a clip has no
            placeholder where others have one, or a key has the wrong type.
    """
    del options
    found, row = take_clips(value, origin)
    keys, turns = _turns(row, origin)
    messages = _messages(row, keys[0], turns, found, origin)
    rest: dict[str, Any] = without(row, *keys, *_READ_KEYS)
    rest |= read_answer(row, origin) | read_label(row, ("label",), origin)
    if not is_empty(row.get("channel")) and "source" not in rest:
        rest["source"] = row["channel"]
    if not is_empty(row.get("rejected_response")):
        rest = _without_equal(rest, row, found, origin)
        return _with_rejected_response(rest, messages, row["rejected_response"], origin)
    if is_empty(row.get("rejected_messages")):
        return {**rest, "messages": messages}
    others = found
    if not is_empty(row.get("rejected_audios")):
        others = tuple(read_clips(row["rejected_audios"], f"{origin}: 'rejected_audios'"))
    turns = parse_literal(row["rejected_messages"])
    tools = row.get("rejected_tools", row.get("tools"))
    rejected = _messages({**row, "tools": tools}, "rejected_messages", turns, others, origin)
    rest = without(rest, "rejected_audios", "rejected_tools")
    return finish_preference(rest, messages, rejected, origin)


def _messages(
    row: Mapping[str, Any], key: str, turns: Any, found: tuple[str, ...], origin: str
) -> list[dict[str, Any]]:
    """Returns the messages of a dialogue, with all clips, the system turn and the tools."""
    clips = Clips(found, origin)
    system = text_of(row, "system", origin) or text_of(row, "system_prompt", origin)
    if not count_placeholders(system):
        turns = _place_untagged(turns, len(found))
    messages = read_turns(turns, f"{origin}: {key!r}", clips, system=system, joins_replies=True)
    clips.check_all_taken(_ADVICE)
    return insert_schemas(messages, row.get("tools"), origin)


def _with_rejected_response(
    rest: Mapping[str, Any], messages: list[dict[str, Any]], other: Any, origin: str
) -> dict[str, Any]:
    """Returns the row of a dialogue whose last turn is better than another.

    ms-swift compares all that follows the last user's turn; here that must be one turn.
    """
    if not messages or messages[-1]["role"] != "assistant":
        raise DataError(
            f"{origin}: has 'rejected_response' and no better reply:"
            " its turns must end in the assistant's"
        )
    if len(messages) > 1 and messages[-2]["role"] == "input":
        raise DataError(
            f"{origin}: 'rejected_response' is compared with several turns, with calls of tools;"
            " one reply is compared with one: give 'rejected_messages', equal up to the last turn"
        )
    clips = Clips((), origin)
    rejected = read_replies(other, f"{origin}: 'rejected_response'", clips, joins_replies=True)
    row = {**rest, "messages": messages[:-1]}
    return finish_preference(row, messages[-1:], rejected, origin)


def _without_equal(
    rest: dict[str, Any], row: Mapping[str, Any], found: tuple[str, ...], origin: str
) -> dict[str, Any]:
    """Returns the keys that stay, without clips and tools of the worse reply that are the same.

    Others stay, and are refused: both replies answer one dialogue.
    """
    if not is_empty(row.get("rejected_audios")):
        where = f"{origin}: 'rejected_audios'"
        if tuple(read_clips(row["rejected_audios"], where)) == found:
            rest = without(rest, "rejected_audios")
    if row.get("rejected_tools") == row.get("tools"):
        rest = without(rest, "rejected_tools")
    return rest


def _turns(row: Mapping[str, Any], origin: str) -> tuple[tuple[str, ...], Any]:
    """Returns the keys that have the dialogue, and its turns in `role`/`content`."""
    for key in ("messages", "conversation", "conversations"):
        if not is_empty(row.get(key)):
            turns = parse_literal(row[key])
            if is_list_of_objects(turns):
                turns = [item for turn in turns for item in _split_pair(turn, origin, key)]
            return (key,), turns
    asked = next((key for key in _QUERY_KEYS if not is_empty(row.get(key))), None)
    if asked is None and not is_empty(row.get("instruction")):
        return ("instruction", "input", "output", "history"), alpaca_turns(row, origin)
    if asked is None:
        raise DataError(
            f"{origin}: has no 'messages', 'conversation' or 'query'"
            f" (keys given: {format_json(list(row))})"
        )
    turns = [*history_turns(row.get("history"), origin)]
    turns.append(user_turn(text_of(row, asked, origin) or ""))
    response = text_of(row, "response", origin)
    if response is not None:
        turns.append(assistant_turn(response))
    return (asked, "response", "history"), turns


def _split_pair(turn: Mapping[str, Any], origin: str, key: str) -> list[Mapping[str, Any]]:
    """Returns the turns of `{"human": .., "assistant": ..}`; any other turn as it is.

    The assistant answers, in whatever order a program has written the two keys.
    """
    if "role" in turn or "from" in turn:
        return [turn]
    for name in turn:
        if name not in ROLES:
            raise DataError(
                f"{origin}: {key!r} has the turn {format_json(turn)} with the unknown role"
                f" {format_json(name)}; the roles are {', '.join(ROLES)}"
            )
    names = sorted(turn, key=lambda name: ROLES[name] == "assistant")
    return [{"role": name, "content": turn[name]} for name in names]


def _place_untagged(turns: Any, clips: int) -> Any:
    """Returns the turns with a placeholder for each clip in the first, if no turn has any."""
    if not clips or not is_list_of_objects(turns):
        return turns
    contents = [turn.get("content", turn.get("value")) for turn in turns]
    if any(count_placeholders(content) or has_clip_part(content) for content in contents):
        return turns
    roles = [ROLES.get(str(turn.get("role", turn.get("from")))) for turn in turns]
    first = next((index for index, role in enumerate(roles) if role != "system"), None)
    if first is None or roles[first] != "user":
        return turns
    turn = turns[first]
    key = "content" if "content" in turn else "value"
    tags = "<audio>" * clips
    content = turn.get(key)
    if isinstance(content, Mapping):
        return turns  # no content of a turn, as reading it says
    placed = f"{tags}{content}" if isinstance(content, str) else [tags, *(content or [])]
    return [*turns[:first], {**turn, key: placed}, *turns[first + 1 :]]
