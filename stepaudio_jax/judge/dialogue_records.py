"""Records of two dialogues: one beginning, and two ways in which it went on, the better first.

{"messages": [{"role": "user", ..}],
"chosen": [{"role": "assistant", ..}, {"role": "user", ..}, {"role": "assistant", ..}],
"rejected": [{"role": "assistant", ..}, ..]}

`launch.data preferences` writes them to `dialogues.jsonl`. Only judges read them.
"""

import dataclasses
import unicodedata
from collections.abc import Iterator, Mapping
from typing import Any

from stepaudio_jax.data import Record, open_source
from stepaudio_jax.data.containers.base import Row
from stepaudio_jax.data.sources.json_values import format_json
from stepaudio_jax.data.sources.messages import parse_record
from stepaudio_jax.errors import DataError
from stepaudio_jax.judge.pairs import (
    Continuation,
    DialoguePair,
    Pair,
    ReplyPair,
    check_continuation,
)
from stepaudio_jax.storage import PathLike

_SIDES = ("chosen", "rejected")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DialogueRecord(Record):
    """Holds a record of two dialogues; `messages` is their common beginning.

    Attributes:
        better, worse: how each goes on. What a record says of its reference and rejected reply
            (what they meet, critiques, verdicts of people) is of these.
    """

    better: Continuation
    worse: Continuation


def read_judged_records(path: PathLike) -> Iterator[Record]:
    """Yields the records of a source that a judge reads: of two replies, or of two dialogues.

    Raises:
        DataError: it cannot be read, or a record is wrong; names the place and why.
    """
    source = open_source(path)
    for index in range(len(source)):
        row = source.raw_row(index)
        if is_of_dialogues(row.value):
            yield parse_dialogue_record(row, source=source.name)
        else:
            yield source[index]


def is_of_dialogues(value: Any) -> bool:
    """Returns whether a row has several turns of the assistant's and others behind its messages."""
    if not isinstance(value, Mapping) or not value.get("messages"):
        return False
    sides = [value.get(side) for side in _SIDES]
    return any(
        isinstance(turns, list)
        and len(turns) > 1
        and isinstance(turns[0], Mapping)
        and turns[0].get("role") == "assistant"
        for turns in sides
    )


def parse_dialogue_record(row: Row, *, source: str) -> DialogueRecord:
    """Checks a row for which `is_of_dialogues` holds, and turns it into a record.

    Args:
        row: of a file.
        source: the record's source, unless it names one.

    Raises:
        DataError: names the origin, the key and what is allowed.
    """
    rest = {key: value for key, value in row.value.items() if key not in _SIDES}
    record = parse_record(
        rest, origin=row.origin, folder=row.folder, source=source, default_id=row.default_id
    )
    for key in ("reference_reply", "rejected_reply"):
        if getattr(record, key) is not None:
            raise DataError(
                f"{row.origin}: has both 'chosen' and {key!r}; keep one of the two forms"
            )
    if record.messages[-1].role == "assistant":
        raise DataError(
            f"{row.origin}: 'messages' must end in the turn that 'chosen' and 'rejected' answer"
        )
    better, worse = (_parse_side(row, side) for side in _SIDES)
    if record.margin != 0 and _words(better) == _words(worse):
        raise DataError(
            f"{row.origin}: the assistant says the same in 'chosen' and 'rejected',"
            f" {format_json(_words(better))}; leave the record out, or set 'margin' to 0, from"
            " which a judge learns that both are equal"
        )
    fields = {field.name: getattr(record, field.name) for field in dataclasses.fields(Record)}
    return DialogueRecord(**fields, better=better, worse=worse)


def pair_of_record(record: Record) -> Pair:
    """Returns what a judge compares of a record, the better reply or dialogue first.

    Raises:
        DataError: the record lacks a reply.
    """
    if isinstance(record, DialogueRecord):
        return DialoguePair(
            record.messages, record.better, record.worse, record.rubric, record.origin
        )
    if record.reference_reply is None or record.rejected_reply is None:
        raise DataError(
            f"{record.origin}: needs a better and a worse reply: 'chosen' and 'rejected'"
        )
    return ReplyPair(
        record.messages,
        record.reference_reply,
        record.rejected_reply,
        record.rubric,
        record.origin,
    )


def _parse_side(row: Row, side: str) -> Continuation:
    where = f"{row.origin}: {side!r}"
    turns = row.value.get(side)
    if not isinstance(turns, list) or not turns:
        raise DataError(
            f"{where} must be a list of turns, as the other side is, got {format_json(turns)}"
        )
    parsed = parse_record(
        {"messages": turns},
        origin=where,
        folder=row.folder,
        source="",
        default_id="",
    )
    check_continuation(parsed.messages, where)
    return Continuation(parsed.messages)


def _words(side: Continuation) -> list[str]:
    """Returns the assistant's words, turn by turn."""
    return [
        unicodedata.normalize("NFC", turn.text).strip()
        for turn in side.turns
        if turn.role == "assistant"
    ]
