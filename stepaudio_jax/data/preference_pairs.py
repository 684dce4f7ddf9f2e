"""Preference records -> what a stage learns from them: labels, and both replies in one example.

The replies of a record share its prompt and its sound. Where attention supports shared prefixes,
the prompt stands in the row once, and each reply is a segment of its own that continues it.
Elsewhere each reply has the prompt to itself, and they share the encoded sound only.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Float32, Int32
from numpy.typing import NDArray

from stepaudio_jax.config import Preference
from stepaudio_jax.data.record import (
    EQUAL_PAIR,
    NO_VERDICT,
    AudioChunk,
    Example,
    PairTargets,
    Record,
)
from stepaudio_jax.errors import DataError
from stepaudio_jax.text import Message, TextPart, TokenizedDialogue

# The replies of a pair, by the place of their sums.
CHOSEN, REJECTED, UNRELATED = range(3)
REPLIES_PER_PAIR = 3
# No pair takes fewer tokens: the prompt format alone has more.
MIN_PAIR_TOKENS = 8


@dataclasses.dataclass(frozen=True)
class PairFormat:
    """Says how preference records become examples.

    Attributes:
        objective: of the stage.
        shares_prompt: whether the replies of a record share its prompt; see
            `models.supports_shared_prefix`.
        reference_logprobs: for each source, the sums of the reference policy's log-probabilities
            over the tokens of each reply, NaN where there is no such reply; None where the step
            computes them.
    """

    objective: Preference
    shares_prompt: bool
    reference_logprobs: Sequence[Float32[np.ndarray, "records replies"]] | None = None


@dataclasses.dataclass(frozen=True)
class LabeledReplies:
    """The replies of a record, the better one first.

    Attributes:
        messages: the dialogue that they answer, without turns in the loss.
        replies: by `CHOSEN`, `REJECTED` and `UNRELATED`, those that there are. The unrelated one
            is of another record.
        label: the probability that the chosen reply is the better one.
        margin: by how many levels it is better; 0 where that is not known.
    """

    messages: tuple[Message, ...]
    replies: Mapping[int, Message]
    label: float
    margin: float

    @property
    def dialogues(self) -> list[tuple[Message, ...]]:
        """Returns the dialogue with each of the replies."""
        return [(*self.messages, reply) for reply in self.replies.values()]


def read_replies(
    record: Record, objective: Preference, unrelated: Message | None = None
) -> LabeledReplies:
    """Returns the replies of a record and which of them is better.

    Without annotations the reference reply is better by `margin` levels, or equal where that is 0.
    Several people's verdicts give the share of those who prefer it, half of those who call both
    equal added; if that is below one half, the replies are exchanged. Skipped verdicts do not
    count. For "kto" a dialogue whose last reply has a `label` is one reply, good or bad.

    Args:
        record: of any source.
        objective: of the stage.
        unrelated: a reply to another record, for the KL of "kto".

    Raises:
        DataError: it lacks a reply; or, of the kinds `EQUAL_PAIR` and `NO_VERDICT`, it is left out.
    """
    messages, replies = record.messages, {}
    label = margin = 1.0
    if record.reference_reply is not None and record.rejected_reply is not None:
        label, margin = _label(record)
        better = _reply(record.reference_reply, record.reference_reasoning)
        worse = _reply(record.rejected_reply, record.rejected_reasoning)
        if label < 0.5:
            better, worse, label = worse, better, 1 - label
        replies = {CHOSEN: better, REJECTED: worse}
    elif objective.loss == "kto" and record.label is not None:
        *before, reply = messages
        messages = tuple(before)
        replies = {CHOSEN if record.label else REJECTED: dataclasses.replace(reply, in_loss=True)}
        margin = 0.0
    else:
        alternative = ", or a 'label' of its last reply" if objective.loss == "kto" else ""
        raise DataError(
            "objective=preference needs a better and a worse reply, 'chosen' and 'rejected'"
            f"{alternative}; give them, or take the record out"
        )
    if label == 0.5 and objective.skips_equal_pairs:
        raise DataError("both replies are called equal", kind=EQUAL_PAIR)
    if not objective.has_soft_labels:
        label = 1.0
    if messages[-1].role not in ("user", "input"):
        raise DataError(
            "the dialogue must end in the turn that the replies answer, and ends in one of the role"
            f" {messages[-1].role!r}"
        )
    if unrelated is not None:
        replies[UNRELATED] = unrelated
    history = tuple(
        dataclasses.replace(message, in_loss=False) if message.role == "assistant" else message
        for message in messages
    )
    return LabeledReplies(history, replies, label, margin)


def any_reply(record: Record) -> Message | None:
    """Returns a reply of a record, for the KL of "kto" to other prompts; None where it has none."""
    if record.reference_reply is not None:
        return _reply(record.reference_reply, record.reference_reasoning)
    last = record.messages[-1]
    return dataclasses.replace(last, in_loss=True) if last.role == "assistant" else None


def join_replies(
    labeled: LabeledReplies,
    views: Sequence[TokenizedDialogue],
    audio_index: Callable[[TokenizedDialogue], Int32[np.ndarray, " T"]],
    chunks: tuple[AudioChunk, ...],
    *,
    shares_prompt: bool,
    record: tuple[int, int],
    reference_logprobs: Float32[np.ndarray, " replies"] | None,
) -> Example:
    """Joins the replies of a record into one example.

    Args:
        labeled: the replies.
        views: the dialogue with each of them, as tokens.
        audio_index: returns the audio embedding of each token of a view; -1 for text.
        chunks: of the dialogue's clips.
        shares_prompt: see `PairFormat`.
        record: index of its source, and its own.
        reference_logprobs: see `PairFormat`.
    """
    # The last token of the prompt predicts the first one of each reply: it stands in front of each.
    split = shared_tokens(views) - 1 if shares_prompt else 0
    arrays: dict[str, list[NDArray[np.generic]]] = {
        name: []
        for name in (
            *("tokens", "targets", "loss_weights", "positions", "segment_ids", "audio_index"),
            *("prefix_ids", "reply_ids"),
        )
    }

    def add(
        view: TokenizedDialogue, start: int, stop: int, segment: int, prefix: int, reply: int
    ) -> None:
        in_loss = view.loss_mask[start + 1 : stop + 1] & (reply >= 0)
        size = stop - start
        arrays["tokens"].append(view.tokens[start:stop])
        arrays["targets"].append(view.tokens[start + 1 : stop + 1])
        arrays["loss_weights"].append(in_loss.astype(np.float32))
        arrays["positions"].append(np.arange(start, stop, dtype=np.int32))
        arrays["segment_ids"].append(np.full(size, segment, np.int32))
        arrays["audio_index"].append(audio_index(view)[start:stop])
        arrays["prefix_ids"].append(np.full(size, prefix, np.int32))
        arrays["reply_ids"].append(np.where(in_loss, reply, -1).astype(np.int32))

    if split:
        add(views[0], 0, split, 0, -1, -1)
    for number, (reply, view) in enumerate(zip(labeled.replies, views, strict=True)):
        segment = number + (split > 0)
        # The last token of a reply is only a target.
        add(view, split, view.tokens.size - 1, segment, 0 if split else -1, reply)
    joined = {name: np.concatenate(parts) for name, parts in arrays.items()}
    prefix_ids, reply_ids = joined.pop("prefix_ids"), joined.pop("reply_ids")
    return Example(
        **joined,
        chunks=chunks,
        pair=PairTargets(
            prefix_ids=prefix_ids,
            reply_ids=reply_ids,
            label=labeled.label,
            margin=labeled.margin,
            record=record,
            reference_logprobs=reference_logprobs,
        ),
        teacher=None,
    )


def joined_size(views: Sequence[TokenizedDialogue], *, shares_prompt: bool) -> int:
    """Returns the number of tokens that `join_replies` makes of views."""
    split = shared_tokens(views) - 1 if shares_prompt else 0
    return split + sum(view.tokens.size - 1 - split for view in views)


def shared_tokens(views: Sequence[TokenizedDialogue]) -> int:
    """Returns how many first tokens all views have in common, none of them in the loss."""
    length = min(min(view.tokens.size for view in views), *map(_first_in_loss, views))
    first = views[0].tokens[:length]
    for view in views[1:]:
        differs = np.flatnonzero(view.tokens[:length] != first)
        if differs.size:
            length = min(length, int(differs[0]))
            first = first[:length]
    return length


def _first_in_loss(view: TokenizedDialogue) -> int:
    return int(np.argmax(view.loss_mask))


def _label(record: Record) -> tuple[float, float]:
    """Returns the probability that the reference reply is better, and by how many levels."""
    if not record.annotations:
        return (0.5 if record.margin == 0 else 1.0), float(record.margin or 0)
    verdicts = [item.verdict for item in record.annotations if item.verdict is not None]
    if not verdicts:
        raise DataError("every annotation of it was skipped", kind=NO_VERDICT)
    votes = [0.5 + 0.5 * float(np.sign(verdict)) for verdict in verdicts]
    label, levels = math.fsum(votes) / len(votes), sum(verdicts) / len(verdicts)
    # A few strong verdicts may outweigh, on average, the many weak ones that decide the direction.
    return label, max(levels if label >= 0.5 else -levels, 0.0)


def _reply(text: str, reasoning: str | None) -> Message:
    return Message(role="assistant", parts=(TextPart(text),), reasoning=reasoning)
