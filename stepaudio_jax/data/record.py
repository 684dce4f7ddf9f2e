"""The types that data passes on: Record -> Example -> packed rows, and the errors of a record.

A source yields a `Record`. Preprocessing makes an `Example` of it (arrays, not yet packed), which
`packing` puts into a row and `batch.collate` copies into a `Batch`.
"""

import contextlib
import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32, Int32

from stepaudio_jax.audio.lengths import SAMPLE_RATE
from stepaudio_jax.config import DataConfig, OnTooLong
from stepaudio_jax.data.annotations import Annotation
from stepaudio_jax.data.timed_turns import segments_obstacle, turn_groups
from stepaudio_jax.errors import AudioError, DataError, DataErrorKind, TextError
from stepaudio_jax.text.dialogue import Message

# Pairs that say nothing about which reply is better are left out and counted; they are no error.
EQUAL_PAIR: DataErrorKind = "equal_pair"
NO_VERDICT: DataErrorKind = "no_verdict"

_PLACEHOLDER = re.compile(r"<audio>|<\|AUDIO\|>", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Criterion:
    """States one criterion of a rubric; a negative weight marks what a reply must not do."""

    text: str
    weight: float


@dataclasses.dataclass(frozen=True)
class Record:
    """Holds a dialogue and what its file says about it.

    Attributes:
        id: that its row names, or else the place of the row; a file may have one twice.
        messages: the dialogue.
        source: the name of its source, for metrics.
        origin: the file and line it was read from (`file:line`), for error messages.
        reference_reply: a good answer to the last message, or the preferred one of a pair.
        rejected_reply: one that is worse than the reference.
        reference_reasoning, rejected_reasoning: the thoughts before that reply; None if they are
            not known.
        margin: by how many levels the reference is better than the rejected reply.
        rubric: what a reply is judged by.
        reference_meets, rejected_meets: for each criterion, whether that reply meets it.
        reference_critique, rejected_critique: a critique of that reply, written before the replies
            are compared.
        answer: what a verifier compares a reply with.
        scenario: who the user is and what they want, for a simulated user; the model never reads
            it.
        reference_continuation: a good way in which the dialogue goes on, the assistant's turns and
            the user's in text.
        label: whether the dialogue's last reply is a good one; None if that is not said.
        sampling: its own sampling settings (see `generation.Sampling`).
        annotations: what people said of the two replies, each with a verdict of their own.
    """

    id: str
    messages: tuple[Message, ...]
    source: str
    origin: str
    reference_reply: str | None = None
    rejected_reply: str | None = None
    reference_reasoning: str | None = None
    rejected_reasoning: str | None = None
    margin: int | None = None
    rubric: tuple[Criterion, ...] = ()
    reference_meets: tuple[bool, ...] = ()
    rejected_meets: tuple[bool, ...] = ()
    reference_critique: str | None = None
    rejected_critique: str | None = None
    answer: str | None = None
    scenario: str | None = None
    reference_continuation: tuple[Message, ...] = ()
    label: bool | None = None
    sampling: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    annotations: tuple[Annotation, ...] = ()


@dataclasses.dataclass(frozen=True)
class Content:
    """Counts what a number of records hold.

    Attributes:
        records: how many there are.
        clips: in their dialogues; one that occurs twice in a dialogue counts once.
        samples: of these clips at 16 kHz, as far as their headers say it.
        unmeasured_clips: whose headers do not say how long they are.
        tags: placeholders of clips (`<audio>`, `<|AUDIO|>`) that stand in their text as letters.
    """

    records: int = 0
    clips: int = 0
    samples: int = 0
    unmeasured_clips: int = 0
    tags: int = 0

    def __add__(self, other: "Content") -> "Content":
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return Content(*(mine + theirs for mine, theirs in pairs))

    def __str__(self) -> str:
        seconds = self.samples / SAMPLE_RATE
        sound = f"{seconds / 3600:.2f} h" if seconds >= 3600 else f"{seconds:.1f} s"
        more = f" and {self.unmeasured_clips} of unknown length" if self.unmeasured_clips else ""
        return (
            f"{self.records} records, {self.clips} clips ({sound} of sound{more}),"
            f" {self.tags} placeholders as text"
        )


def count_content(record: Record, samples: Sequence[int | None]) -> Content:
    """Returns what one record holds.

    Args:
        record: whose text is searched for placeholders.
        samples: of each of its clips, at 16 kHz; None where the header does not say it.
    """
    known = [count for count in samples if count is not None]
    return Content(
        records=1,
        clips=len(samples),
        samples=sum(known),
        unmeasured_clips=len(samples) - len(known),
        tags=sum(len(_PLACEHOLDER.findall(message.text)) for message in record.messages),
    )


@dataclasses.dataclass(frozen=True)
class Visit:
    """Names one reading of a record: its source, its index there, and the epoch (from 0)."""

    source: int
    record: int
    epoch: int


@dataclasses.dataclass(frozen=True)
class ChunkLabels:
    """Holds the labels of one audio chunk for the auxiliary losses.

    Attributes:
        words: indices into the word vocabulary plus one; None if the chunk has no transcript.
        attributes: the index of each attribute's value; -1 if it is unknown.
    """

    words: tuple[int, ...] | None
    attributes: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class AudioChunk:
    """Holds one audio chunk of at most 25 s: its log-mel, not padded, and its labels."""

    mel: Float32[np.ndarray, "mel_bins mel_frames"]
    labels: ChunkLabels | None


@dataclasses.dataclass(frozen=True)
class PairTargets:
    """Holds what an example of a preference record adds; T is the example's number of tokens.

    Attributes:
        prefix_ids: the segment that a token's own continues; -1 for none.
        reply_ids: the reply (`preference_pairs.CHOSEN` and so on) whose token is the target here;
            -1 for none.
        label: the probability that the chosen reply is the better one.
        margin: by how many levels it is better.
        record: index of its source, and its own.
        reference_logprobs: log-probabilities of each reply by the reference policy, summed over its
            tokens, NaN where there is none; None where they are not known beforehand.
    """

    prefix_ids: Int32[np.ndarray, " T"]
    reply_ids: Int32[np.ndarray, " T"]
    label: float
    margin: float
    record: tuple[int, int]
    reference_logprobs: Float32[np.ndarray, " replies"] | None = None


@dataclasses.dataclass(frozen=True)
class TeacherView:
    """Holds what a teacher reads of an example; S is its number of tokens, T the example's.

    Attributes:
        tokens: of the views, with transcripts in place of clips.
        positions: from 0 in each view.
        segment_ids: 0, 1, .. for the views.
        target_index: where in these tokens each of the example's targets in the loss is predicted;
            -1 for targets that the loss does not count.
    """

    tokens: Int32[np.ndarray, " S"]
    positions: Int32[np.ndarray, " S"]
    segment_ids: Int32[np.ndarray, " S"]
    target_index: Int32[np.ndarray, " T"]


@dataclasses.dataclass(frozen=True)
class Example:
    """Holds what is packed in one piece: training views of one record that share its audio.

    T is the number of tokens of all views, end to end.

    Attributes:
        tokens: of the views.
        targets: the token that follows, within the same view.
        loss_weights: 1 where the loss counts the target, else 0.
        positions: from 0 in each view.
        segment_ids: 0, 1, .. for the views.
        audio_index: chunk (of this example) * embeddings per chunk + offset; -1 for text.
        chunks: the audio chunks that have tokens, in order.
        pair: of a preference record, whose views are its replies; else None.
        teacher: where a teacher reads what the student hears; else None.
    """

    tokens: Int32[np.ndarray, " T"]
    targets: Int32[np.ndarray, " T"]
    loss_weights: Float32[np.ndarray, " T"]
    positions: Int32[np.ndarray, " T"]
    segment_ids: Int32[np.ndarray, " T"]
    audio_index: Int32[np.ndarray, " T"]
    chunks: tuple[AudioChunk, ...]
    pair: PairTargets | None = None
    teacher: TeacherView | None = None

    @property
    def row_tokens(self) -> int:
        """Returns the tokens of a row that it takes: its own, or the teacher's if they are more."""
        views = (self,) if self.teacher is None else (self, self.teacher)
        return max(int(view.tokens.size) for view in views)

    @property
    def num_segments(self) -> int:
        """Returns the number of views in it, each a segment of its own."""
        return int(self.segment_ids[-1]) + 1


@dataclasses.dataclass(frozen=True)
class PreparedRecord:
    """Holds the examples of one record, or why it was skipped.

    Attributes:
        visit: which reading of which record.
        examples: none if it was skipped.
        skipped: the kind of the error in one word, or "".
        message: the error in full, or "".
    """

    visit: Visit
    examples: tuple[Example, ...]
    skipped: str = ""
    message: str = ""


def split_obstacle(record: Record) -> str | None:
    """Returns why a dialogue that is too long cannot be split at times; None if it can."""
    for key in ("reference_reply", "rejected_reply", "rubric", "answer", "reference_continuation"):
        if getattr(record, key):
            return f"it has {key!r}, which is about all of it"
    messages = record.messages
    if messages[-1].role != "assistant":
        return "it does not end in a reply"
    if len(turn_groups(messages)) > 1:
        return None
    return segments_obstacle(messages)


@contextlib.contextmanager
def record_error_context(record: Record, on_too_long: OnTooLong = "error") -> Iterator[None]:
    """Turns any error about a record into a DataError that names its file and line.

    Args:
        record: what is done inside is about it.
        on_too_long: the setting, for the advice where the dialogue is too long.
    """
    try:
        yield
    except AudioError as error:
        raise DataError(f"{record.origin}: {error}", kind="bad_audio") from None
    except TextError as error:
        raise DataError(f"{record.origin}: {error}") from None
    except DataError as error:
        if error.kind != "too_long":
            raise DataError(f"{record.origin}: {error}", kind=error.kind) from None
        advice = _advice_on_length(record, on_too_long)
        raise DataError(f"{record.origin}: {error}, {advice}", kind="too_long") from None


def _advice_on_length(record: Record, on_too_long: OnTooLong) -> str:
    obstacle = split_obstacle(record)
    if on_too_long == "split":
        reason = "" if obstacle is None else f"; it cannot be split: {obstacle}"
        return f"or set on_too_long='skip'{reason}"
    if obstacle is None:
        return "or set on_too_long='split', which splits it at its times, or 'skip'"
    return "or set on_too_long='skip'"


def skip_reason(error: DataError, config: DataConfig) -> str | None:
    """Returns the error's kind if such records are skipped; None if it ends the run."""
    if error.kind in (EQUAL_PAIR, NO_VERDICT):
        return error.kind
    return error.kind if getattr(config, f"on_{error.kind}") == "skip" else None
