"""What is compared: a dialogue's beginning, and two ways in which it goes on."""

import dataclasses
import math
import os
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from stepaudio_jax.data import Record
from stepaudio_jax.data.record import Criterion
from stepaudio_jax.data.sources.messages import parse_record
from stepaudio_jax.data.sources.serialization import part_times, serialize_record, serialize_rubric
from stepaudio_jax.errors import DataError
from stepaudio_jax.judge.pairs import check_continuation
from stepaudio_jax.serving.preferences.study import parse_short_rubric
from stepaudio_jax.text import AudioPart, Message, TextPart

Side = Literal["a", "b"]
MAX_NAME_CHARACTERS = 500


@dataclasses.dataclass(frozen=True)
class Continuation:
    """One way in which a dialogue goes on.

    Attributes:
        turns: an assistant's turn; or several, each user's turn followed by an assistant's.
        model: the name of the model that wrote it; None where it is not known.
        sampling: the settings that it was written with.
    """

    turns: tuple[Message, ...]
    model: str | None = None
    sampling: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def reply(self) -> str:
        """Returns the assistant's words, of several turns one after the other."""
        return "\n".join(turn.text for turn in self.turns if turn.role == "assistant")


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A dialogue and two continuations.

    Attributes:
        messages: the dialogue's beginning, which ends in a user's turn.
        a, b: its continuations; that a is better is a verdict above 0.
        rubric: criteria that are asked for.
        source: of the records that come of it.
    """

    messages: tuple[Message, ...]
    a: Continuation
    b: Continuation
    rubric: tuple[Criterion, ...] = ()
    source: str = "people"

    @property
    def is_of_dialogues(self) -> bool:
        """Returns whether more than one turn of the assistant's is compared."""
        return len(self.a.turns) > 1 or len(self.b.turns) > 1

    @property
    def is_same(self) -> bool:
        """Whether the two say the same, so that neither can be better."""
        return _normalized(self.a.reply) == _normalized(self.b.reply)

    @property
    def clips(self) -> list[AudioPart]:
        """All clips, each once, in order; the continuations' after the others, a's first."""
        turns = (*self.messages, *self.a.turns, *self.b.turns)
        return [*{part.name: part for turn in turns for part in turn.audio}.values()]

    @property
    def clips_to_hear(self) -> list[AudioPart]:
        """The clips of what is answered: of the last turn, and of those in the continuations."""
        turns = (self.messages[-1], *self.a.turns, *self.b.turns)
        named = {part.name: part for turn in turns for part in turn.audio}
        return [*named.values()]


def comparison_of_record(record: Record) -> Comparison:
    """Returns the comparison that a prepared pair asks for: a is its reference reply.

    Raises:
        DataError: the record lacks a reply.
    """
    if record.reference_reply is None or record.rejected_reply is None:
        raise DataError(f"{record.origin}: needs two replies: 'chosen' and 'rejected'")
    if record.messages[-1].role == "assistant":
        raise DataError(
            f"{record.origin}: its dialogue must end in the turn that the replies answer"
        )

    def reply(text: str) -> Continuation:
        return Continuation((Message("assistant", (TextPart(text),)),))

    return Comparison(
        messages=record.messages,
        a=reply(record.reference_reply),
        b=reply(record.rejected_reply),
        rubric=record.rubric,
        source=record.source,
    )


def comparison_to_json(comparison: Comparison, folder: str) -> dict[str, Any]:
    """Returns a comparison as `assignments.jsonl` has it; `parse_comparison` reads it.

    Args:
        comparison: any.
        folder: clips below it are named relative to it.
    """
    continuations = {
        name: {
            "turns": turns_to_json(side.turns, folder),
            "model": side.model,
            "sampling": dict(side.sampling),
        }
        for name, side in (("a", comparison.a), ("b", comparison.b))
    }
    return {
        "messages": turns_to_json(comparison.messages, folder),
        **continuations,
        "rubric": serialize_rubric(comparison.rubric),
        "source": comparison.source,
    }


def turns_to_json(turns: Sequence[Message], folder: str | None = None) -> list[dict[str, Any]]:
    """Returns turns in the project's own form, clips below a folder named relative to it."""
    record = Record(id="", messages=tuple(turns), source="", origin="")
    prefix = os.path.join(folder, "") if folder is not None else "\0"

    def clip_keys(part: AudioPart) -> dict[str, Any]:
        return {"audio": part.path.removeprefix(prefix), **part_times(part)}

    return serialize_record(record, clip_keys)["messages"]


def parse_comparison(value: Mapping[str, Any], *, folder: str, origin: str) -> Comparison:
    """Returns a comparison from JSON, each turn checked as of any record.

    Args:
        value: messages, a, b, rubric and source, as of `comparison_to_json`.
        folder: the base of relative paths.
        origin: the start of every error.

    Raises:
        DataError: names the origin, the key and what is allowed.
    """
    messages = _parse_turns(value.get("messages"), f"{origin}: the dialogue", folder)
    if messages[-1].role == "assistant":
        raise DataError(f"{origin}: the dialogue must end in the turn that both sides answer")
    continuations = []
    for name in ("a", "b"):
        side = value.get(name)
        where = f"{origin}: {name!r}"
        if not isinstance(side, Mapping):
            raise DataError(f"{where} must be an object with 'turns'")
        turns = _parse_turns(side.get("turns"), where, folder)
        check_continuation(turns, where)
        model, sampling = side.get("model"), side.get("sampling") or {}
        if not (model is None or (isinstance(model, str) and len(model) <= MAX_NAME_CHARACTERS)):
            raise DataError(f"{where}: 'model' must be the name of a model")
        if not isinstance(sampling, Mapping) or not all(map(_is_setting, sampling.values())):
            raise DataError(f"{where}: 'sampling' must be an object of numbers and texts")
        continuations.append(Continuation(turns, model, dict(sampling)))
    source = value.get("source") or Comparison.source
    if not isinstance(source, str) or len(source) > MAX_NAME_CHARACTERS:
        raise DataError(f"{origin}: 'source' must be a name")
    rubric = parse_short_rubric(value.get("rubric"), origin)
    first, second = continuations
    return Comparison(messages, first, second, rubric, source)


def _parse_turns(value: Any, origin: str, folder: str) -> tuple[Message, ...]:
    row = {"messages": value}
    return parse_record(row, origin=origin, folder=folder, source="", default_id="").messages


def _is_setting(value: Any) -> bool:
    if isinstance(value, str):
        return len(value) <= MAX_NAME_CHARACTERS
    return value is None or (isinstance(value, int | float) and math.isfinite(value))


def _normalized(text: str) -> str:
    return unicodedata.normalize("NFC", text).strip()
