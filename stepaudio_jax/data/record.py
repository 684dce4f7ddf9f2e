"""Record: one dialogue, as every reader yields it and every consumer takes it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from stepaudio_jax.text.dialogue import Message


class DataError(ValueError):
    """A data file, one of its lines, or a clip in it cannot be used; the message names it (file:line), why, and what to do."""


@dataclasses.dataclass(frozen=True)
class Criterion:
    """One line of a rubric; a negative weight marks what a reply must not do."""

    text: str
    weight: float


@dataclasses.dataclass(frozen=True)
class Record:
    """A dialogue and what else is known of it.

    `id` is unique within its source; `origin` names the file and line it was read from, for error
    messages. `sampling` are settings of its own for whoever answers it (see `generation.Sampling`).
    """

    id: str
    messages: tuple[Message, ...]
    source: str
    origin: str
    reference_reply: str | None = None
    rejected_reply: str | None = None  # one that is worse than the reference
    margin: int | None = None  # by how many levels the reference is better than the rejected reply
    rubric: tuple[Criterion, ...] = ()
    reference_meets: tuple[bool, ...] = ()  # each criterion of the rubric
    rejected_meets: tuple[bool, ...] = ()
    reference_critique: str | None = (
        None  # what is to be thought of the reply before it is compared
    )
    rejected_critique: str | None = None
    answer: str | None = None  # verifiable
    sampling: Mapping[str, Any] = dataclasses.field(default_factory=dict)
