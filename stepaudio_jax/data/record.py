"""Record: one dialogue, as every reader yields it and every consumer takes it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepaudio_jax.config import AuxiliaryConfig
from stepaudio_jax.text.dialogue import Message


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


# Example: one dialogue, or several readings of one, as arrays that are not yet packed.


@dataclasses.dataclass(frozen=True)
class ChunkLabels:
    """Labels of one audio chunk for the auxiliary losses.

    `words` are indices into the word vocabulary plus one, None where the chunk has no transcript;
    `attributes` are the indices of the values, -1 where unknown.
    """

    words: tuple[int, ...] | None
    attributes: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class AudioChunk:
    """One audio chunk (at most 25 s): its log-mel [128, F] f32, F its own mel frames, and its labels."""

    mel: NDArray[np.float32]
    labels: ChunkLabels | None


@dataclasses.dataclass(frozen=True)
class Example:
    """What is packed as one piece (T tokens, C chunks, both its own): views of one record that share its audio.

    tokens, targets [T] i32; loss_weights [T] f32, that of `targets`; positions [T] i32, from 0 in
    each view. segment_ids [T] i32: 0, 1, .. for the views. audio_index [T] i32: chunk (of this
    example) * outputs per chunk + offset, -1 for text.
    """

    tokens: NDArray[np.int32]
    targets: NDArray[np.int32]
    loss_weights: NDArray[np.float32]
    positions: NDArray[np.int32]
    segment_ids: NDArray[np.int32]
    audio_index: NDArray[np.int32]
    chunks: tuple[AudioChunk, ...]

    @property
    def num_segments(self) -> int:
        """Dialogues in this example, each a segment of its own."""
        return int(self.segment_ids[-1]) + 1


def label_sizes(config: AuxiliaryConfig, audio_embeddings_per_chunk: int) -> tuple[int, int]:
    """Words that a chunk's transcript may have (half as many as adaptor outputs: six a second), and attributes of a clip."""
    return audio_embeddings_per_chunk // 2 if config.ctc_weight > 0 else 0, len(
        config.attributes
    ) if config.attribute_weight > 0 else 0


@dataclasses.dataclass(frozen=True)
class Visit:
    """One reading of a record: record `record` of source `source`, for the time `epoch` (from 0)."""

    source: int
    record: int
    epoch: int
