"""What the judge compares of rollouts: each with its record's reference, or with its group."""

from collections.abc import Sequence

from stepaudio_jax.data import Record
from stepaudio_jax.judge.pairs import Continuation, DialoguePair
from stepaudio_jax.rl.rollouts import Rollout
from stepaudio_jax.text import Message, TextPart


def reference_pair(rollout: Rollout, *, is_continuation: bool) -> DialoguePair:
    """Returns the comparison of a rollout with its record's reference.

    Args:
        rollout: whose record has the reference.
        is_continuation: whether that is the record's continuation of several turns, or its reply.
    """
    record = rollout.record
    reference = record.reference_continuation
    if not is_continuation:
        assert record.reference_reply is not None
        reference = (Message("assistant", (TextPart(record.reference_reply),)),)
    return _pair(record, rollout.continuation, reference)


def group_pair(rollout: Rollout, other: Rollout) -> DialoguePair:
    """Returns the comparison of two rollouts of one prompt."""
    return _pair(rollout.record, rollout.continuation, other.continuation)


def ring_pairs(indices: Sequence[int], opponents: int | None) -> list[tuple[int, int]]:
    """Returns which rollouts of a prompt are compared, each two of them at most once.

    Args:
        indices: of the rollouts.
        opponents: each is compared with so many that follow it in a ring; None: with all others.
    """
    size = len(indices)
    reach = size - 1 if opponents is None else min(opponents, size - 1)
    pairs: dict[frozenset[int], tuple[int, int]] = {}
    for step in range(1, reach + 1):
        for place, first in enumerate(indices):
            second = indices[(place + step) % size]
            pairs.setdefault(frozenset((first, second)), (first, second))
    return list(pairs.values())


def _pair(record: Record, ours: Sequence[Message], theirs: Sequence[Message]) -> DialoguePair:
    """Returns the comparison of two ways in which a record's dialogue goes on."""
    return DialoguePair(
        tuple(record.messages),
        Continuation(tuple(ours)),
        Continuation(tuple(theirs)),
        record.rubric,
        record.origin,
    )
