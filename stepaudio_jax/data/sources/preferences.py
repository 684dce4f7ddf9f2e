"""Preferences: the forms of other libraries, and the check that one of two replies can be better.

{"prompt": [{"role": "user", "content": ".."}], "chosen": [{"role": "assistant", "content": ".."}],
"rejected": [..]}
{"messages": [{"role": "user", "content": ".."}], "chosen": "..", "rejected": ".."}
{"chosen": [{"role": "user", ..}, {"role": "assistant", ..}],
"rejected": [the same user turn, another reply]}
"""

import unicodedata
from collections.abc import Mapping
from typing import Any

from stepaudio_jax.data.record import Record
from stepaudio_jax.data.sources.foreign_keys import FOREIGN_MESSAGE_KEYS
from stepaudio_jax.data.sources.json_values import check_keys, format_json, is_json_list
from stepaudio_jax.errors import DataError

PREFERENCE_KEYS = ("prompt", "chosen", "rejected")
_REPLY_KEYS = ("role", "content", "reasoning_content", "loss", "weight")


def is_preference(value: Mapping[str, Any]) -> bool:
    """Returns whether a record has a chosen or a rejected reply in the form of other libraries."""
    return "chosen" in value or "rejected" in value


def preference_to_dialogue(value: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """Converts a record to one with `messages`, `reference_reply` (chosen) and `rejected_reply`.

    The messages end before the turn that the two replies answer.

    Args:
        value: a record for which `is_preference` holds, without nulls.
        origin: its file and line.

    Raises:
        DataError: names the origin and what does not fit.
    """
    keys = ("reference_reply", "rejected_reply", "reference_reasoning", "rejected_reasoning")
    for key in keys:
        if key in value:
            name = "chosen" if "chosen" in value else "rejected"
            raise DataError(f"{origin}: has both {name!r} and {key!r}; keep one of the two forms")
    for key, other in (("chosen", "rejected"), ("rejected", "chosen")):
        if key not in value:
            raise DataError(f"{origin}: has {other!r} and no {key!r}")
    # Where files of several forms were joined, a row of one form has the other's key, empty.
    names = [key for key in ("prompt", "messages") if value.get(key) not in (None, [], "")]
    names = names or [key for key in ("prompt", "messages") if key in value][:1]
    if len(names) == 2:
        raise DataError(
            f"{origin}: has 'chosen' and both 'prompt' and 'messages';"
            " keep one of these as the dialogue before it"
        )
    prompt = _messages(value, names[0], origin) if names else None
    before, reference = _split_last_turn(value, "chosen", prompt, origin)
    before_rejected, rejected = _split_last_turn(value, "rejected", prompt, origin)
    if before != before_rejected:
        raise DataError(
            f"{origin}: 'chosen' and 'rejected' do not answer the same dialogue;"
            " give it once, as 'prompt'"
        )
    if not before:
        raise DataError(
            f"{origin}: 'chosen' and 'rejected' have no dialogue before the reply;"
            " give it as 'prompt'"
        )
    if isinstance(before[-1], Mapping) and before[-1].get("role") == "assistant":
        raise DataError(
            f"{origin}: {names[0] if names else 'chosen'!r} has an assistant's turn just before"
            " the one to be compared; the dialogue must end in the turn that 'chosen' and"
            " 'rejected' answer"
        )
    rest = {key: item for key, item in value.items() if key not in PREFERENCE_KEYS}
    replies: dict[str, Any] = {}
    for side, (reasoning, reply) in (("reference", reference), ("rejected", rejected)):
        replies[f"{side}_reply"] = reply
        if reasoning is not None:
            replies[f"{side}_reasoning"] = reasoning
    return {**rest, "messages": before, **replies}


def check_preference_pair(record: Record, names: tuple[str, str]) -> None:
    """Checks that one reply of a record can be better than the other.

    Two replies are equal if they differ only in surrounding white space, reasoning, or Unicode's
    composition; then neither is better. An empty reply is an error too. Neither is checked where
    `margin` is 0, from which a judge learns that both are equal.

    Args:
        record: any record.
        names: the file's keys of its better and its worse reply.

    Raises:
        DataError: names the record's file and line, and the reply.
    """
    replies = (record.reference_reply, record.rejected_reply)
    if record.margin == 0:
        return
    for name, reply in zip(names, replies, strict=True):
        if reply is not None and not reply.strip():
            raise DataError(
                f"{record.origin}: {name!r} is an empty reply;"
                " give its text, or leave the record out"
            )
    reference, rejected = replies
    if reference is not None and rejected is not None and is_same_reply(reference, rejected):
        raise DataError(
            f"{record.origin}: {names[0]!r} and {names[1]!r} are the same reply,"
            f" {format_json(rejected)}; leave the record out, or set 'margin' to 0, from which a"
            " judge learns that both are equal"
        )


def is_same_reply(first: str, second: str) -> bool:
    """Returns whether two texts are equal but for white space at their ends and Unicode form."""
    return _normalized(first) == _normalized(second)


def _normalized(reply: str) -> str:
    return unicodedata.normalize("NFC", reply).strip()


def _split_last_turn(
    value: Mapping[str, Any], key: str, prompt: list[Any] | None, origin: str
) -> tuple[list[Any], tuple[Any, str]]:
    """Returns the dialogue before the last turn of `value[key]`, and that turn.

    Of the turn: its `reasoning_content`, None without one, and its text.
    """
    turns = _messages(value, key, origin)
    last = turns[-1]
    is_turn = isinstance(last, Mapping) and last.get("role") == "assistant"
    if is_turn:
        check_keys(last, _REPLY_KEYS, f"{origin}: the last turn of {key!r}", FOREIGN_MESSAGE_KEYS)
    content = _text(last.get("content")) if is_turn else last
    # An empty reasoning says nothing: others write it where a turn has none.
    reasoning = (last.get("reasoning_content") or None) if is_turn else None
    if not isinstance(content, str) or (isinstance(last, str) and prompt is None):
        raise DataError(
            f"{origin}: {key!r} must end in an assistant's turn whose content is a string"
        )
    before = turns[:-1]
    if prompt is None:
        return before, (reasoning, content)
    if before:
        raise DataError(
            f"{origin}: {key!r} must be one turn of the assistant's,"
            " for the dialogue is given beside it; two dialogues are compared by judges alone"
            " (launch.judge)"
        )
    return prompt, (reasoning, content)


def _text(content: Any) -> Any:
    """Returns the text of a content that is a string or text parts; anything else as it is."""
    if is_json_list(content) and content and all(_is_text_part(part) for part in content):
        return "".join(part["text"] for part in content)
    return content


def _is_text_part(part: Any) -> bool:
    return (
        isinstance(part, Mapping)
        and part.keys() == {"type", "text"}
        and part["type"] == "text"
        and isinstance(part["text"], str)
    )


def _messages(value: Mapping[str, Any], key: str, origin: str) -> list[Any]:
    turns = value[key]
    if isinstance(turns, str) and (turns or key != "prompt") and key != "messages":
        return [{"role": "user", "content": turns}] if key == "prompt" else [turns]
    if not isinstance(turns, list) or not turns:
        form = "a list of messages" if key == "messages" else "a list of messages, or a string"
        raise DataError(f"{origin}: {key!r} must be {form}, got {format_json(turns)}")
    return turns
