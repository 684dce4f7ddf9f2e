"""The JSON form of a dialogue -> Record, checked key by key (docs/data.md describes the form)."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from stepaudio_jax.data.annotations import parse_annotations
from stepaudio_jax.data.record import Criterion, Record
from stepaudio_jax.data.sources import foreign_keys
from stepaudio_jax.data.sources.json_values import (
    check_keys,
    format_json,
    is_empty,
    is_json_list,
    without_nulls,
)
from stepaudio_jax.data.sources.parts import parse_parts
from stepaudio_jax.data.sources.preferences import (
    PREFERENCE_KEYS,
    check_preference_pair,
    is_preference,
    preference_to_dialogue,
)
from stepaudio_jax.data.sources.segments import check_segment_texts
from stepaudio_jax.errors import DataError
from stepaudio_jax.storage import did_you_mean
from stepaudio_jax.text.dialogue import (
    THINK_END_TAG,
    THINK_START_TAG,
    AudioPart,
    Message,
    Role,
    TextPart,
)

_ROLES: Mapping[str, Role] = {
    **{role: role for role in get_args(Role)},
    "human": "user",
    "tools": "tool_json_schemas",
    "tool": "input",
}
RECORD_KEYS = (
    *(
        "messages",
        "id",
        "source",
        "reference_reply",
        "rejected_reply",
        "reference_reasoning",
        "rejected_reasoning",
        "margin",
        "rubric",
        "reference_meets",
    ),
    *("rejected_meets", "reference_critique", "rejected_critique", "answer", "label"),
    *("sampling", "annotations", "scenario", "reference_continuation"),
)
_MESSAGE_KEYS = ("role", "content", "reasoning_content", "loss", "weight")
# record, messages, message, parts, part, segments, segment, attributes
_NULL_LEVELS = 8


def parse_record(value: Any, *, origin: str, folder: str, source: str, default_id: str) -> Record:
    """Checks one JSON value and turns it into a Record.

    A key whose value is null counts as not given, and an empty system turn is dropped. A dialogue
    whose `label` is false ends in a bad reply, which is taken out of the loss.

    Args:
        value: the result of `json.loads`.
        origin: `file:line`, the start of every error message.
        folder: the base of relative audio paths. Whether the files exist is not checked here.
        source: the record's source, unless it names one.
        default_id: the record's id, unless it has one.

    Raises:
        DataError: names the origin, the key, the value and what is allowed.
    """
    if not isinstance(value, Mapping):
        raise DataError(
            f"{origin}: a record must be a JSON object with the key 'messages',"
            f" got {format_json(value)}"
        )
    value = without_nulls(value, levels=_NULL_LEVELS)
    preferred = is_preference(value)
    names = ("chosen", "rejected") if preferred else ("reference_reply", "rejected_reply")
    known = frozenset((*RECORD_KEYS, *PREFERENCE_KEYS) if preferred else RECORD_KEYS)
    foreign_keys.check_record_keys(value, known, origin)
    if preferred:
        value = preference_to_dialogue(value, origin)
    if "messages" not in value:
        raise DataError(
            f"{origin}: the key 'messages' is missing (keys given: {format_json(list(value))});"
            f" {foreign_keys.MESSAGES_HINT}"
        )
    messages = value["messages"]
    if not is_json_list(messages) or not messages:
        raise DataError(
            f"{origin}: 'messages' must be a list of at least one message,"
            f" got {format_json(messages)}"
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
    foreign_keys.check_tagged_files(numbered, origin)
    foreign_keys.check_spelled_parts(numbered, origin)
    check_segment_texts(numbered, origin)
    if not any(message.audio for _, message in numbered):
        foreign_keys.check_unread_audio(value, known, origin)
    label = _parse_label(value.get("label"), numbered, origin)
    if label is False:
        numbered[-1] = (numbered[-1][0], dataclasses.replace(numbered[-1][1], in_loss=False))
    rubric = parse_rubric(value.get("rubric"), origin)
    reference_reasoning, reference_reply = _parse_reply(value, "reference", names[0], origin)
    rejected_reasoning, rejected_reply = _parse_reply(value, "rejected", names[1], origin)
    record = Record(
        id=_scalar_text(value.get("id"), f"{origin}: 'id'") or default_id,
        messages=tuple(message for _, message in numbered),
        source=_scalar_text(value.get("source"), f"{origin}: 'source'") or source,
        origin=origin,
        reference_reply=reference_reply,
        rejected_reply=rejected_reply,
        reference_reasoning=reference_reasoning,
        rejected_reasoning=rejected_reasoning,
        margin=_parse_margin(value.get("margin"), origin),
        rubric=rubric,
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
        scenario=_scalar_text(value.get("scenario"), f"{origin}: 'scenario'"),
        reference_continuation=_parse_continuation(value.get("reference_continuation"), origin),
        label=label,
        sampling=_parse_sampling(value.get("sampling"), origin),
        annotations=parse_annotations(
            value.get("annotations"), num_criteria=len(rubric), origin=origin
        ),
    )
    check_preference_pair(record, names)
    return record


def _is_empty_system(value: Any) -> bool:
    """Returns whether a message is an empty system turn, as exports write it if there is none."""
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
            f"{where} has the unknown role {format_json(role)}{did_you_mean(role, _ROLES)}"
            f" (allowed: {', '.join(_ROLES)})"
        )
    where = f"{where} ({role})"
    if value.get("content") is None:
        raise DataError(f"{where} has no 'content'; give its text or parts, or remove the turn")
    parts = parse_parts(value["content"], where, folder)
    if _ROLES[role] != "assistant":
        for key in ("reasoning_content", "loss", "weight"):
            # `loss: false` on a user turn is true anyway; anything else is a mistake.
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


def _split_reasoning(
    reasoning: Any, text: str, where: str, key: str = "reasoning_content"
) -> tuple[str | None, str]:
    """Returns (reasoning, reply) of an assistant turn.

    The reasoning has a key of its own, or is `<think>..</think>` at the start of the content.
    """
    if reasoning is not None and not isinstance(reasoning, str):
        raise DataError(f"{where}: {key!r} must be a string, got {format_json(reasoning)}")
    inline = text.lstrip()
    if not inline.startswith(THINK_START_TAG):
        return reasoning, text
    if reasoning is not None:
        raise DataError(
            f"{where} has both {key!r} and a {THINK_START_TAG} in its content; keep one"
        )
    thought, end, reply = inline.removeprefix(THINK_START_TAG).partition(THINK_END_TAG)
    if not end:
        raise DataError(f"{where} opens {THINK_START_TAG} and never closes it with {THINK_END_TAG}")
    return thought.strip(), reply.lstrip("\n")


def _parse_reply(
    value: Mapping[str, Any], side: str, name: str, origin: str
) -> tuple[str | None, str | None]:
    """Returns (reasoning, reply) of one of the two replies to be compared; None where not given.

    Args:
        value: the record.
        side: "reference" or "rejected", the beginning of its keys.
        name: the file's key of the reply.
        origin: the start of an error.
    """
    what = f"{origin}: {name!r}"
    text = _scalar_text(value.get(f"{side}_reply"), what)
    reasoning = value.get(f"{side}_reasoning")
    if text is None:
        if reasoning is not None:
            raise DataError(f"{origin}: has '{side}_reasoning' and no '{side}_reply'")
        return None, None
    reasoning, reply = _split_reasoning(reasoning, text, what, f"{side}_reasoning")
    if reasoning is not None and not reply.strip():
        raise DataError(f"{what} is a reasoning without a reply")
    return reasoning or None, reply  # an empty reasoning says nothing


def _parse_in_loss(value: Mapping[str, Any], where: str) -> bool:
    """Returns whether an assistant turn is in the loss: `loss` (boolean) or `weight` (0 or 1)."""
    loss, weight = value.get("loss"), value.get("weight")
    if loss is not None and not isinstance(loss, bool):
        raise DataError(f"{where}: 'loss' must be true or false, got {format_json(loss)}")
    if weight is not None and (isinstance(weight, bool) or weight not in (0, 1)):
        raise DataError(f"{where}: 'weight' must be 0 or 1, got {format_json(weight)}")
    if loss is not None and weight is not None and loss != bool(weight):
        raise DataError(
            f"{where}: 'loss' {format_json(loss)} and 'weight' {format_json(weight)} contradict"
            " each other; keep one"
        )
    if loss is not None:
        return loss
    return weight is None or weight == 1


def parse_rubric(value: Any, origin: str) -> tuple[Criterion, ...]:
    """Returns the criteria of a rubric: texts, or objects of `criterion` and `weight`.

    Raises:
        DataError: it is something else; names the origin, the criterion and what is allowed.
    """
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
                f"{origin}: criterion {number}: 'weight' must be a finite number,"
                f" got {format_json(weight)}"
            )
        criteria.append(Criterion(text=fields["criterion"], weight=float(weight)))
    return tuple(criteria)


def _parse_label(value: Any, numbered: Sequence[tuple[int, Message]], origin: str) -> bool | None:
    """Returns whether the dialogue's last reply is a good one; None if that is not said."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if not isinstance(value, bool):
        raise DataError(
            f"{origin}: 'label' says whether the last reply is a good one, true or false, got"
            f" {format_json(value)}; write what a verifier compares with as 'answer', or rename"
            " the key"
        )
    if numbered[-1][1].role != "assistant":
        raise DataError(
            f"{origin}: 'label' {format_json(value)} rates the last reply, and 'messages' do not"
            " end in one"
        )
    return value


def _parse_continuation(value: Any, origin: str) -> tuple[Message, ...]:
    """Returns the turns of a reference continuation, the assistant's first and last."""
    if value is None:
        return ()
    what = f"{origin}: 'reference_continuation'"
    if not is_json_list(value) or not value:
        raise DataError(
            f"{what} must be a list of messages that begins and ends with an assistant's, got"
            f" {format_json(value)}"
        )
    turns = []
    for number, item in enumerate(value, 1):
        where = f"{what}, message {number}"
        turn = _parse_message(item, where, folder="")
        expected = "assistant" if number % 2 else "user"
        if turn.role != expected:
            raise DataError(
                f"{where} is of the role {turn.role!r}, and the turns must be the assistant's and"
                f" the user's in turn: write {expected!r}"
            )
        if turn.audio:
            raise DataError(f"{where} has sound; write what is said as text")
        turns.append(turn)
    if len(turns) % 2 == 0:
        raise DataError(f"{what} must end in the assistant's turn, and ends in the user's")
    return tuple(turns)


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
            f"{what} must be a list of true and false, one for each criterion,"
            f" got {format_json(value)}"
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
    """Returns a string, or a number as JSON writes it: an answer of 7 is "7"."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError(f"{what} must be a string or a number, got {format_json(value)}")
    return json.dumps(value)
