"""Example: one dialogue, or several readings of one, as arrays that are not yet packed."""

import dataclasses

import numpy as np
from numpy.typing import NDArray


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
