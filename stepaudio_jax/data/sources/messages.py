"""Preferences: the forms that other libraries write them in, and what two replies must be to be preferred to one another.

{"prompt": [{"role": "user", "content": ".."}], "chosen": [{"role": "assistant", "content": ".."}],
"rejected": [..]} {"messages": [{"role": "user", "content": ".."}], "chosen": "..", "rejected":
".."} {"chosen": [{"role": "user", ..}, {"role": "assistant", ..}], "rejected": [the same user's
turn, another reply]}
"""

import json
import os
import unicodedata
from collections.abc import Mapping
from typing import Any, get_args

from stepaudio_jax.data.record import Criterion, Record
from stepaudio_jax.data.sources import foreign_keys
from stepaudio_jax.data.sources.foreign_keys import (
    FOREIGN_MESSAGE_KEYS,
    check_keys,
    did_you_mean,
    format_json,
    is_empty,
    is_json_list,
    without_nulls,
)
from stepaudio_jax.errors import DataError
from stepaudio_jax.storage import expand_home
from stepaudio_jax.text.dialogue import AudioPart, Message, Part, Role, TextPart

# The JSON form of a dialogue -> Record, checked key by key.

_ROLES: Mapping[str, Role] = {
    **{role: role for role in get_args(Role)},
    "human": "user",
    "tools": "tool_json_schemas",
    "tool": "input",
}
_RECORD_KEYS = (
    *(
        "messages",
        "id",
        "source",
        "reference_reply",
        "rejected_reply",
        "margin",
        "rubric",
        "reference_meets",
    ),
    *("rejected_meets", "reference_critique", "rejected_critique", "answer", "sampling"),
)
_MESSAGE_KEYS = ("role", "content", "reasoning_content", "loss", "weight")
_PART_KEYS = {"text": ("type", "text"), "audio": ("type", "audio", "transcript", "attributes")}
_NULL_LEVELS = 6  # record, messages, message, parts, part, attributes
_THINK_START, _THINK_END = "<think>", "</think>"


def parse_record(value: Any, *, origin: str, folder: str, source: str, default_id: str) -> Record:
    """Checks one JSON value and turns it into a Record.

    A key whose value is null is a key not given, and a system turn without content is no turn.

    Args:
        value: what `json.loads` gave.
        origin: `file:line`, the start of every error message.
        folder: what relative audio paths are relative to. Whether the files exist is not looked at
        here.
        source: the record's source where it does not name one itself.
        default_id: its id where it has none.

    Raises:
        DataError: naming the origin, the key, the value and what is allowed.
    """
    if not isinstance(value, Mapping):
        raise DataError(
            f"{origin}: a record must be a JSON object with the key 'messages', got {format_json(value)}"
        )
    value = without_nulls(value, levels=_NULL_LEVELS)
    preferred = is_preference(value)
    names = ("chosen", "rejected") if preferred else ("reference_reply", "rejected_reply")
    known = frozenset((*_RECORD_KEYS, *PREFERENCE_KEYS) if preferred else _RECORD_KEYS)
    foreign_keys.check_record_keys(value, known, origin)
    if preferred:
        value = preference_to_dialogue(value, origin)
    if "messages" not in value:
        raise DataError(
            f"{origin}: the key 'messages' is missing (keys given: {format_json(list(value))}); {foreign_keys.MESSAGES_HINT}"
        )
    messages = value["messages"]
    if not is_json_list(messages) or not messages:
        raise DataError(
            f"{origin}: 'messages' must be a list of at least one message, got {format_json(messages)}"
        )
    numbered = [
        (number, _parse_message(item, f"{origin}: message {number}", folder))
        for number, item in enumerate(messages, 1)
        if not _is_empty_system(item)
    ]
    if not numbered:
        raise DataError(
            f"{origin}: 'messages' has an empty system turn and no other; give it the user's turn"
        )
    foreign_keys.check_placeholders(numbered, origin)
    if not any(message.audio for _, message in numbered):
        foreign_keys.check_unread_audio(value, known, origin)
    record = Record(
        id=_scalar_text(value.get("id"), f"{origin}: 'id'") or default_id,
        messages=tuple(message for _, message in numbered),
        source=_scalar_text(value.get("source"), f"{origin}: 'source'") or source,
        origin=origin,
        reference_reply=_parse_reply(value.get("reference_reply"), f"{origin}: {names[0]!r}"),
        rejected_reply=_parse_reply(value.get("rejected_reply"), f"{origin}: {names[1]!r}"),
        margin=_parse_margin(value.get("margin"), origin),
        rubric=_parse_rubric(value.get("rubric"), origin),
        reference_meets=_parse_criteria_met(
            value.get("reference_meets"), f"{origin}: 'reference_meets'"
        ),
        rejected_meets=_parse_criteria_met(
            value.get("rejected_meets"), f"{origin}: 'rejected_meets'"
        ),
        reference_critique=_scalar_text(
            value.get("reference_critique"), f"{origin}: 'reference_critique'"
        ),
        rejected_critique=_scalar_text(
            value.get("rejected_critique"), f"{origin}: 'rejected_critique'"
        ),
        answer=_scalar_text(value.get("answer"), f"{origin}: 'answer'"),
        sampling=_parse_sampling(value.get("sampling"), origin),
    )
    check_preference_pair(record, names)
    return record


def _is_empty_system(value: Any) -> bool:
    """Returns whether a message is a system turn that says nothing, as exports write it where there is none."""
    if not isinstance(value, Mapping) or value.get("role") != "system":
        return False
    if any(key not in ("role", "content") and not is_empty(item) for key, item in value.items()):
        return False
    content = value.get("content")
    if is_json_list(content):
        return all(_is_blank_part(part) for part in content)
    return content is None or (isinstance(content, str) and not content.strip())


def _is_blank_part(value: Any) -> bool:
    is_text = (
        isinstance(value, Mapping)
        and value.get("type") == "text"
        and value.keys() <= {"type", "text"}
    )
    return is_text and isinstance(value.get("text", ""), str) and not value.get("text", "").strip()


def _parse_message(value: Any, where: str, folder: str) -> Message:
    if not isinstance(value, Mapping):
        raise DataError(
            f"{where} must be an object with 'role' and 'content', got {format_json(value)}"
        )
    check_keys(value, _MESSAGE_KEYS, where, foreign_keys.FOREIGN_MESSAGE_KEYS)
    if "role" not in value:
        raise DataError(f"{where} has no 'role' (allowed: {', '.join(_ROLES)})")
    role = value["role"]
    if isinstance(role, str) and role in foreign_keys.FOREIGN_ROLES:
        raise DataError(
            f"{where} has the unknown role {format_json(role)}; {foreign_keys.FOREIGN_ROLES[role]}"
        )
    if not isinstance(role, str) or role not in _ROLES:
        raise DataError(
            f"{where} has the unknown role {format_json(role)}{did_you_mean(role, _ROLES)} (allowed: {', '.join(_ROLES)})"
        )
    where = f"{where} ({role})"
    if value.get("content") is None:
        raise DataError(f"{where} has no 'content'; give its text or parts, or remove the turn")
    parts = _parse_parts(value["content"], where, folder)
    if _ROLES[role] != "assistant":
        for key in ("reasoning_content", "loss", "weight"):
            # `loss: false` on a user's turn says what is true anyway; anything else there is a
            # mistake.
            if value.get(key) and value[key] is not None:
                raise DataError(f"{where} has {key!r}, which only an assistant turn can have")
        return Message(role=_ROLES[role], parts=parts)
    if any(isinstance(part, AudioPart) for part in parts):
        raise DataError(f"{where} has an audio part; an assistant turn is text")
    text = "".join(part.text for part in parts if isinstance(part, TextPart))
    reasoning, reply = _split_reasoning(value.get("reasoning_content"), text, where)
    if not reply.strip():
        raise DataError(
            f"{where} has an empty reply; give its text in 'content', or remove the turn"
        )
    return Message(
        role="assistant",
        parts=(TextPart(reply),),
        reasoning=reasoning,
        in_loss=_parse_in_loss(value, where),
    )


def _split_reasoning(reasoning: Any, text: str, where: str) -> tuple[str | None, str]:
    """(reasoning, reply) of an assistant turn, from its own key or from `<think>..</think>` at the start of the content."""
    if reasoning is not None and not isinstance(reasoning, str):
        raise DataError(
            f"{where}: 'reasoning_content' must be a string, got {format_json(reasoning)}"
        )
    inline = text.lstrip()
    if not inline.startswith(_THINK_START):
        return reasoning, text
    if reasoning is not None:
        raise DataError(
            f"{where} has both 'reasoning_content' and a {_THINK_START} in its content; keep one"
        )
    thought, end, reply = inline.removeprefix(_THINK_START).partition(_THINK_END)
    if not end:
        raise DataError(f"{where} opens {_THINK_START} and never closes it with {_THINK_END}")
    return thought.strip(), reply.lstrip("\n")


def _parse_reply(value: Any, what: str) -> str | None:
    """A reply to compare with others: without the reasoning that may stand before it, for that is no part of it."""
    text = _scalar_text(value, what)
    if text is None:
        return None
    reasoning, reply = _split_reasoning(None, text, what)
    if reasoning is not None and not reply.strip():
        raise DataError(f"{what} is a reasoning without a reply")
    return reply


def _parse_in_loss(value: Mapping[str, Any], where: str) -> bool:
    """Whether an assistant turn is learnt: `loss` (a boolean) or `weight` (0 or 1) says so; True where neither is given."""
    loss, weight = value.get("loss"), value.get("weight")
    if loss is not None and not isinstance(loss, bool):
        raise DataError(f"{where}: 'loss' must be true or false, got {format_json(loss)}")
    if weight is not None and (isinstance(weight, bool) or weight not in (0, 1)):
        raise DataError(f"{where}: 'weight' must be 0 or 1, got {format_json(weight)}")
    if loss is not None and weight is not None and loss != bool(weight):
        raise DataError(
            f"{where}: 'loss' {format_json(loss)} and 'weight' {format_json(weight)} contradict each other; keep one"
        )
    if loss is not None:
        return loss
    return weight is None or weight == 1


def _parse_parts(content: Any, where: str, folder: str) -> tuple[Part, ...]:
    if isinstance(content, str):
        if not content:
            raise DataError(
                f"{where}: 'content' is empty; give its text or parts, or remove the turn"
            )
        return (TextPart(content),)
    if not is_json_list(content) or not content:
        raise DataError(
            f"{where}: 'content' must be a string or a list of at least one part, got {format_json(content)}"
        )
    return tuple(
        _parse_part(item, f"{where}: part {number}", folder)
        for number, item in enumerate(content, 1)
    )


def _parse_part(value: Any, where: str, folder: str) -> Part:
    if not isinstance(value, Mapping) or "type" not in value:
        kinds = [kind for kind in _PART_KEYS if isinstance(value, Mapping) and kind in value]
        advice = f'; add "type": "{kinds[0]}"' if len(kinds) == 1 else ""
        raise DataError(
            f"{where} must be an object with a 'type' ({' or '.join(_PART_KEYS)}), got {format_json(value)}{advice}"
        )
    kind = value["type"]
    if isinstance(kind, str) and kind in foreign_keys.PART_TYPES:
        raise DataError(
            f"{where} has the unknown type {format_json(kind)}; {foreign_keys.PART_TYPES[kind]}"
        )
    if not isinstance(kind, str) or kind not in _PART_KEYS:
        raise DataError(
            f"{where} has the unknown type {format_json(kind)}{did_you_mean(kind, _PART_KEYS)} (allowed: {', '.join(_PART_KEYS)})"
        )
    check_keys(value, _PART_KEYS[kind], where, foreign_keys.PART_KEYS)
    if kind not in value:
        raise DataError(f"{where} is of type {kind!r} and has no key {kind!r}")
    body = value[kind]
    if not isinstance(body, str) or (kind == "audio" and not body):
        wanted = "a string" if kind == "text" else "the path of a file"
        raise DataError(f"{where}: {kind!r} must be {wanted}, got {format_json(body)}")
    if kind == "text":
        return TextPart(body)
    foreign_keys.check_audio_path(body, where)
    transcript, attributes = value.get("transcript"), value.get("attributes") or {}
    if transcript is not None and not isinstance(transcript, str):
        raise DataError(f"{where}: 'transcript' must be a string, got {format_json(transcript)}")
    if not isinstance(attributes, Mapping) or not all(
        isinstance(item, str) for item in attributes.values()
    ):
        raise DataError(
            f"{where}: 'attributes' must be an object of strings, got {format_json(attributes)}"
        )
    return AudioPart(
        path=os.path.join(folder, expand_home(body)),
        transcript=transcript,
        attributes=dict(attributes),
    )


def _parse_rubric(value: Any, origin: str) -> tuple[Criterion, ...]:
    if value is None:
        return ()
    form = "a list of strings or of objects {'criterion': text, 'weight': number}"
    if not is_json_list(value):
        raise DataError(f"{origin}: 'rubric' must be {form}, got {format_json(value)}")
    criteria = []
    for number, item in enumerate(value, 1):
        fields = {"criterion": item} if isinstance(item, str) else item
        if (
            not isinstance(fields, Mapping)
            or not isinstance(fields.get("criterion"), str)
            or not fields["criterion"]
        ):
            raise DataError(
                f"{origin}: 'rubric' must be {form}, got {format_json(item)} as number {number}"
            )
        check_keys(fields, ("criterion", "weight"), f"{origin}: criterion {number}")
        weight = fields.get("weight", 1.0)
        if (
            isinstance(weight, bool)
            or not isinstance(weight, int | float)
            or not abs(weight) < float("inf")
        ):
            raise DataError(
                f"{origin}: criterion {number}: 'weight' must be a finite number, got {format_json(weight)}"
            )
        criteria.append(Criterion(text=fields["criterion"], weight=float(weight)))
    return tuple(criteria)


def _parse_margin(value: Any, origin: str) -> int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
        raise DataError(
            f"{origin}: 'margin' must be a whole number, 0 or more, got {format_json(value)}"
        )
    return value


def _parse_criteria_met(value: Any, what: str) -> tuple[bool, ...]:
    if value is None:
        return ()
    if not is_json_list(value) or not all(isinstance(item, bool) for item in value):
        raise DataError(
            f"{what} must be a list of true and false, one for each criterion, got {format_json(value)}"
        )
    return tuple(value)


def _parse_sampling(value: Any, origin: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise DataError(
            f"{origin}: 'sampling' must be an object of settings, got {format_json(value)}"
        )
    return dict(value)


def _scalar_text(value: Any, what: str) -> str | None:
    """A string, or a number as written in JSON: an answer of 7 is the answer "7"."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError(f"{what} must be a string or a number, got {format_json(value)}")
    return json.dumps(value)


PREFERENCE_KEYS = ("prompt", "chosen", "rejected")
_REPLY_KEYS = ("role", "content", "reasoning_content", "loss", "weight")


def is_preference(value: Mapping[str, Any]) -> bool:
    """Returns whether a record has a chosen or a rejected reply in the form of other libraries."""
    return "chosen" in value or "rejected" in value


def preference_to_dialogue(value: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """The record with `messages` up to the turn to be answered, `reference_reply` (the chosen one) and `rejected_reply`.

    Args:
        value: a record for which `is_preference` holds, without nulls.
        origin: its file and line.

    Raises:
        DataError: naming the origin and what does not fit.
    """
    for key in ("reference_reply", "rejected_reply"):
        if key in value:
            name = "chosen" if "chosen" in value else "rejected"
            raise DataError(f"{origin}: has both {name!r} and {key!r}; keep one of the two forms")
    for key, other in (("chosen", "rejected"), ("rejected", "chosen")):
        if key not in value:
            raise DataError(f"{origin}: has {other!r} and no {key!r}")
    # Where files of several forms are put together, a row of one has the other's list of turns, and
    # nothing in it.
    names = [key for key in ("prompt", "messages") if value.get(key) not in (None, [], "")]
    names = names or [key for key in ("prompt", "messages") if key in value][:1]
    if len(names) == 2:
        raise DataError(
            f"{origin}: has 'chosen' and both 'prompt' and 'messages'; keep one of these as the dialogue before it"
        )
    prompt = _messages(value, names[0], origin) if names else None
    before, reference = _split_last_turn(value, "chosen", prompt, origin)
    before_rejected, rejected = _split_last_turn(value, "rejected", prompt, origin)
    if before != before_rejected:
        raise DataError(
            f"{origin}: 'chosen' and 'rejected' do not answer the same dialogue; give it once, as 'prompt'"
        )
    if not before:
        raise DataError(
            f"{origin}: 'chosen' and 'rejected' have no dialogue before the reply; give it as 'prompt'"
        )
    if isinstance(before[-1], Mapping) and before[-1].get("role") == "assistant":
        raise DataError(
            f"{origin}: {names[0] if names else 'chosen'!r} has an assistant's turn just before the one to be "
            "compared; the dialogue must end in the turn that 'chosen' and 'rejected' answer"
        )
    rest = {key: item for key, item in value.items() if key not in PREFERENCE_KEYS}
    return {**rest, "messages": before, "reference_reply": reference, "rejected_reply": rejected}


def check_preference_pair(record: Record, names: tuple[str, str]) -> None:
    """Checks that one reply of a record can be better than the other, wherever preferences are used.

    Replies are equal that differ by white space around them, by their reasoning or by Unicode's
    composition at most. Of such two none is better, and an empty one is no reply; but where
    `margin` is 0, a judge is to learn that both are equal.

    Args:
        record: any record.
        names: what the file calls its better and its worse reply.

    Raises:
        DataError: naming the record's file and line, and the reply.
    """
    replies = (record.reference_reply, record.rejected_reply)
    if record.margin == 0:
        return
    for name, reply in zip(names, replies, strict=True):
        if reply is not None and not reply.strip():
            raise DataError(
                f"{record.origin}: {name!r} is an empty reply; give its text, or leave the record out"
            )
    reference, rejected = replies
    if (
        reference is not None
        and rejected is not None
        and _normalized(reference) == _normalized(rejected)
    ):
        raise DataError(
            f"{record.origin}: {names[0]!r} and {names[1]!r} are the same reply, {format_json(rejected)}; leave "
            "the record out, or set 'margin' to 0, from which a judge learns that both are equal"
        )


def _normalized(reply: str) -> str:
    return unicodedata.normalize("NFC", reply).strip()


def _split_last_turn(
    value: Mapping[str, Any], key: str, prompt: list[Any] | None, origin: str
) -> tuple[list[Any], str]:
    """The dialogue before the last turn of `value[key]`, and the text of that turn."""
    turns = _messages(value, key, origin)
    last = turns[-1]
    is_turn = isinstance(last, Mapping) and last.get("role") == "assistant"
    if is_turn:
        check_keys(last, _REPLY_KEYS, f"{origin}: the last turn of {key!r}", FOREIGN_MESSAGE_KEYS)
    content = _text(last.get("content")) if is_turn else last
    if not isinstance(content, str) or (isinstance(last, str) and prompt is None):
        raise DataError(
            f"{origin}: {key!r} must end in an assistant's turn whose content is a string"
        )
    before = turns[:-1]
    if prompt is None:
        return before, content
    if before:
        raise DataError(
            f"{origin}: {key!r} must be one turn of the assistant's, for the dialogue is given beside it"
        )
    return prompt, content


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
