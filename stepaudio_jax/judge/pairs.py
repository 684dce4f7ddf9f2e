"""What a judge compares: two replies to one dialogue, or two ways in which a dialogue goes on."""

import dataclasses
from collections.abc import Sequence

from stepaudio_jax.data import Criterion
from stepaudio_jax.errors import DataError
from stepaudio_jax.text import Message, TextPart


@dataclasses.dataclass(frozen=True)
class Continuation:
    """One way in which a dialogue goes on.

    Attributes:
        turns: the assistant's first and last, and a user's between two of them. A user's turn may
            hold sound; the reasoning of an assistant's turn is not shown to a judge.
    """

    turns: tuple[Message, ...]


@dataclasses.dataclass(frozen=True)
class ReplyPair:
    """Two replies to one dialogue, the policy's and the reference, and their rubric, if any.

    Attributes:
        dialogue: ends in the turn that both answer.
        reply, reference: the words of each.
        rubric: what they are judged by.
        origin: of the record (`file:line`), for error messages.
    """

    dialogue: tuple[Message, ...]
    reply: str
    reference: str
    rubric: tuple[Criterion, ...] = ()
    origin: str = ""

    @property
    def sides(self) -> tuple[Continuation, Continuation]:
        """Returns both replies as continuations of one turn each, the policy's first."""
        return _of_reply(self.reply), _of_reply(self.reference)


@dataclasses.dataclass(frozen=True)
class DialoguePair:
    """Two continuations of one dialogue, the policy's and the reference, of several turns each.

    Attributes:
        dialogue: the common beginning; ends in a user's turn.
        continuation, reference: may differ in their users' turns too, and in their number of turns.
        rubric: what they are judged by.
        origin: of the record (`file:line`), for error messages.

    Raises:
        DataError: the turns are not in this order; names the origin.
    """

    dialogue: tuple[Message, ...]
    continuation: Continuation
    reference: Continuation
    rubric: tuple[Criterion, ...] = ()
    origin: str = ""

    def __post_init__(self) -> None:
        prefix = f"{self.origin}: " if self.origin else ""
        if not self.dialogue or self.dialogue[-1].role == "assistant":
            raise DataError(
                f"{prefix}the beginning of two dialogues must end in the turn that both answer"
            )
        for name, side in (("continuation", self.continuation), ("reference", self.reference)):
            check_continuation(side.turns, f"{prefix}the {name}")

    @property
    def sides(self) -> tuple[Continuation, Continuation]:
        """Returns both continuations, the policy's first."""
        return self.continuation, self.reference


Pair = ReplyPair | DialoguePair


def check_continuation(turns: Sequence[Message], name: str) -> None:
    """Checks the order of a continuation's turns.

    Raises:
        DataError: the assistant's turns are not the first, the third and so on to the last;
            begins with `name`.
    """
    for number, turn in enumerate(turns, 1):
        role = "assistant" if number % 2 else "user"
        if turn.role != role:
            raise DataError(f"{name}: turn {number} must be the {role}'s, and is the {turn.role}'s")
    if len(turns) % 2 == 0:
        raise DataError(f"{name}: must end in the assistant's turn")


def _of_reply(text: str) -> Continuation:
    return Continuation((Message("assistant", (TextPart(text),)),))
