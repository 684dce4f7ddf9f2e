"""Sampled replies -> training data: the best of n, all that are right, or pairs.

With a rule for grounded reasoning it is the distillation of Step-Audio-R1: replies of
the model itself that are right and whose reasoning names what was heard are what it is trained on
next.
"""

import collections
import dataclasses
import importlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from stepaudio_jax.data import Record
from stepaudio_jax.data.containers.places import absolute_path
from stepaudio_jax.data.sources.preferences import is_same_reply
from stepaudio_jax.data.sources.serialization import part_times, serialize_record
from stepaudio_jax.errors import DataError
from stepaudio_jax.rl.rewards import Reward, RewardFunction
from stepaudio_jax.rl.rollouts import PolicyTurn, Rollout
from stepaudio_jax.text import Message, ParsedReply, TextPart

Keep = Literal["best", "right", "pairs"]
IsGrounded = Callable[[str, Record], bool]
"""(reasoning of a reply, record) -> whether the reasoning names what was heard."""


@dataclasses.dataclass(frozen=True)
class Selection:
    """What was selected.

    Attributes:
        rows: records in JSON form, to be trained on.
        counts: replies and dialogues by what became of them.
    """

    rows: list[dict[str, Any]]
    counts: Mapping[str, int]


def select_replies(
    records: Sequence[Record],
    lines: Sequence[Mapping[str, Any]],
    compute_rewards: RewardFunction,
    *,
    keep: Keep,
    min_reward: float | None = None,
    is_grounded: IsGrounded | None = None,
) -> Selection:
    """Selects replies of a file that `launch.generate` wrote.

    Malformed replies are never selected, nor those without a reward, with one below `min_reward`
    or, with a rule, with a reasoning that is not grounded. Of the others:

    * "best": the one with the highest reward, of each dialogue; of equal ones the first;
    * "right": all to which the verifier gave its full score;
    * "pairs": the best as the preferred reply, and the dialogue's worst one that has a reward, also
      of those that were not good enough to be preferred, as the rejected reply, where their rewards
      and their texts differ.

    Args:
        records: the dialogues that were answered.
        lines: of the replies, one for each of them, in order.
        compute_rewards: scores them.
        keep: which replies.
        min_reward: lowest reward of a reply that is kept; None for no limit.
        is_grounded: rule of grounded reasoning; None for none.

    Raises:
        DataError: the lines are not those of the records; or a reward cannot be computed.
        JudgeError: the judge abstained too often.
    """
    if len(lines) != len(records):
        raise DataError(
            f"there are replies to {len(lines)} dialogues, and the input has {len(records)}: give"
            " the input that was answered"
        )
    counts: collections.Counter[str] = collections.Counter(dialogues=len(records))
    rollouts: list[Rollout] = []
    for group, (record, line) in enumerate(zip(records, lines, strict=True)):
        identity = line.get("id") if isinstance(line, Mapping) else None
        if identity != record.id:
            raise DataError(
                f"{record.origin}: has the id {record.id!r}, and the reply in its place"
                f" {identity!r}: give the input that was answered"
            )
        if "error" in line:
            counts["unanswered"] += 1
            continue
        compute_rewards.check_record(record)
        try:
            samples = line.get("samples", [line])
            rollouts += [_rollout(group, record, sample) for sample in samples]
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{record.origin}: the reply in its place is none that launch.generate wrote"
                f" ({type(error).__name__}: {error})"
            ) from None
    counts["replies"] = len(rollouts)
    by_group: dict[int, list[tuple[Rollout, Reward]]] = collections.defaultdict(list)
    for rollout, reward in zip(rollouts, compute_rewards(rollouts), strict=True):
        by_group[rollout.group].append((rollout, reward))
    rows = []
    for group, scored in by_group.items():
        good = []
        for rollout, reward in scored:
            obstacle = _obstacle(rollout, reward, keep, min_reward, is_grounded)
            if obstacle:
                counts[obstacle] += 1
            else:
                good.append((rollout, reward))
        kept = _kept_rows(records[group], scored, good, keep)
        counts["dialogues_kept"] += bool(kept)
        rows += kept
    counts["kept"] = len(rows)
    return Selection(rows, dict(counts))


def names_attributes(reasoning: str, record: Record) -> bool:
    """Returns whether a reasoning names an attribute of a clip of its dialogue.

    The values of the audio parts' `attributes` count ("female", "fast"), as words of their own.
    """
    values = (
        value
        for message in record.messages
        for part in message.audio
        for value in part.attributes.values()
    )
    return any(
        re.search(rf"(?<!\w){re.escape(value)}(?!\w)", reasoning, re.IGNORECASE) for value in values
    )


def find_grounding(name: str) -> IsGrounded:
    """Returns the rule "attributes" (`names_attributes`), or a custom one by "module:function".

    Raises:
        ValueError: there is none of that name, or the function cannot be imported.
    """
    if name == "attributes":
        return names_attributes
    module, colon, function = name.partition(":")
    if not colon:
        raise ValueError(f"{name!r} is neither 'attributes' nor module:function")
    try:
        rule: IsGrounded = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{name!r}: {error}") from None
    return rule


def _rollout(group: int, record: Record, sample: Mapping[str, Any]) -> Rollout:
    """Returns a sampled reply as a rollout, of which rewards need no tokens but their number."""
    tokens = int(sample["completion_tokens"])
    turn = PolicyTurn(
        prompt_tokens=np.zeros(0, np.int32),
        is_audio=np.zeros(0, bool),
        chunk_tokens=(),
        completion_tokens=np.zeros(tokens, np.int32),
        sampler_logprobs=np.zeros(tokens, np.float32),
        parsed=ParsedReply(sample["reasoning"], sample["reply"], tuple(sample["problems"])),
        truncated=sample["finish_reason"] in ("length", "repetition"),
    )
    return Rollout(group, record, (turn,))


def _obstacle(
    rollout: Rollout,
    reward: Reward,
    keep: Keep,
    min_reward: float | None,
    is_grounded: IsGrounded | None,
) -> str:
    """Returns why a reply is not kept, as it is counted; "" if nothing speaks against it."""
    if not rollout.turns[-1].is_answerable:
        return "malformed"
    if reward.value is None:
        return "abstained"
    if keep == "right" and not reward.is_correct:
        return "wrong"
    if min_reward is not None and reward.value < min_reward:
        return "below_min_reward"
    if is_grounded is not None and not is_grounded(rollout.parsed.reasoning, rollout.record):
        return "not_grounded"
    return ""


def _kept_rows(
    record: Record,
    scored: Sequence[tuple[Rollout, Reward]],
    good: Sequence[tuple[Rollout, Reward]],
    keep: Keep,
) -> list[dict[str, Any]]:
    """Returns what is written of a dialogue; `good` are the replies that nothing speaks against."""
    if not good:
        return []
    if keep == "right":
        return [
            _dialogue(record, rollout, f"{record.id}-{number}" if len(good) > 1 else record.id)
            for number, (rollout, _) in enumerate(good)
        ]
    best, best_reward = max(good, key=lambda pair: _value(pair[1]))
    if keep == "best":
        return [_dialogue(record, best, record.id)]
    comparable = [
        (rollout, reward)
        for rollout, reward in scored
        if reward.value is not None
        and rollout.parsed.reply.strip()
        and not is_same_reply(rollout.parsed.reply, best.parsed.reply)
    ]
    if not comparable:
        return []
    worst, worst_reward = min(comparable, key=lambda pair: _value(pair[1]))
    if _value(worst_reward) == _value(best_reward):
        return []
    pair = dataclasses.replace(
        record,
        reference_reply=best.parsed.reply,
        reference_reasoning=best.parsed.reasoning or None,
        rejected_reply=worst.parsed.reply,
        rejected_reasoning=worst.parsed.reasoning or None,
        margin=None,
        annotations=(),
        reference_meets=(),
        rejected_meets=(),
        reference_critique=None,
        rejected_critique=None,
    )
    return [_serialize(pair)]


def _value(reward: Reward) -> float:
    assert reward.value is not None  # replies without one are left out before
    return reward.value


def _dialogue(record: Record, rollout: Rollout, identity: str) -> dict[str, Any]:
    """Returns the dialogue that ends in a reply, in JSON form."""
    parsed = rollout.parsed
    answer = Message("assistant", (TextPart(parsed.reply),), parsed.reasoning or None)
    history = tuple(
        dataclasses.replace(message, in_loss=False) if message.role == "assistant" else message
        for message in record.messages
    )
    dialogue = Record(identity, (*history, answer), record.source, record.origin)
    return _serialize(dialogue)


def _serialize(record: Record) -> dict[str, Any]:
    """Returns a record in JSON form; clips are named from the root, wherever the file will lie."""
    return serialize_record(
        record, lambda part: {"audio": absolute_path(part.path), **part_times(part)}
    )
