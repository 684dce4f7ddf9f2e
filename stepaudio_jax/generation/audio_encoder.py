"""Encodes audio chunks on the device, in groups of few static shapes, for callers on the host."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepaudio_jax.generation.prompts import bucket
from stepaudio_jax.models import Parameters

MAX_GROUP_CHUNKS = 8  # encoded together
_MIN_SINGLE_FRAMES = 128


@dataclasses.dataclass(frozen=True)
class ChunkGroup:
    """Chunks that are encoded together.

    Attributes:
        indices: of the chunks, at most `rows`.
        rows: of the batch; those without a chunk are zeros of length 0.
        frames: length to which each chunk is padded.
    """

    indices: tuple[int, ...]
    rows: int
    frames: int


EncodeChunks = Callable[[Parameters, NDArray[np.float32], NDArray[np.int32]], Any]
"""(parameters, chunks [rows, D, frames], lengths [rows]) -> one output array [rows, ..] on the
device."""

GroupChunks = Callable[[Sequence[int]], list[ChunkGroup]]
"""Lengths of all chunks -> groups, each chunk in one of them."""


class AudioEncoder:
    """Runs a program over chunks in groups, and gathers its outputs on the host.

    Args:
        encode: the program, compiled for each shape of a group.
        group: chooses the groups.

    Attributes:
        shapes: a name for each shape that was needed.
        num_encoded: chunks encoded so far.
    """

    def __init__(self, encode: EncodeChunks, group: GroupChunks):
        self._encode, self._group = encode, group
        self.shapes: set[str] = set()
        self.num_encoded = 0

    def encode(
        self, parameters: Parameters, chunks: Sequence[NDArray[np.float32]]
    ) -> list[NDArray[np.float32]]:
        """Returns the program's output for each chunk [D, length] of log-mel, in order, f32."""
        outputs: dict[int, NDArray[np.float32]] = {}
        for group in self._group([chunk.shape[1] for chunk in chunks]):
            batch = np.zeros((group.rows, chunks[0].shape[0], group.frames), np.float32)
            lengths = np.zeros(group.rows, np.int32)
            for row, index in enumerate(group.indices):
                length = chunks[index].shape[1]
                batch[row, :, :length], lengths[row] = chunks[index], length
            encoded = np.asarray(self._encode(parameters, batch, lengths), np.float32)
            outputs |= {index: encoded[row] for row, index in enumerate(group.indices)}
            self.shapes.add(f"encode_audio {group.rows} x {group.frames}")
        self.num_encoded += len(chunks)
        return [outputs[index] for index in range(len(chunks))]


def bucketed_groups(lengths: Sequence[int], *, max_frames: int) -> list[ChunkGroup]:
    """Groups chunks of one bucket of lengths by 1, 2, 4 or 8: little padding for any mixture.

    Args:
        lengths: frames of each chunk, at most `max_frames`.
        max_frames: most frames that the encoder's positions hold.
    """
    buckets = [min(bucket(length), max_frames) for length in lengths]
    groups = []
    for frames in sorted(set(buckets)):
        indices = [index for index, size in enumerate(buckets) if size == frames]
        while indices:
            rows = min(1 << (len(indices) - 1).bit_length(), MAX_GROUP_CHUNKS)
            groups.append(ChunkGroup(tuple(indices[:rows]), rows, frames))
            indices = indices[rows:]
    return groups


def single_groups(lengths: Sequence[int], *, max_frames: int) -> list[ChunkGroup]:
    """Encodes each chunk by itself, padded to one of few lengths (see `single_group_frames`)."""
    shapes = single_group_frames(max_frames)
    return [
        ChunkGroup((index,), 1, next(frames for frames in shapes if length <= frames))
        for index, length in enumerate(lengths)
    ]


def single_group_frames(max_frames: int) -> list[int]:
    """Returns the lengths to which `single_groups` pads: two a doubling, up to `max_frames`."""
    sizes = [min(_MIN_SINGLE_FRAMES, max_frames)]
    while sizes[-1] < max_frames:
        sizes.append(min(bucket(sizes[-1] + 1), max_frames))
    return sizes


def fixed_groups(lengths: Sequence[int], *, rows: int, frames: int) -> list[ChunkGroup]:
    """Groups chunks by `rows`, all padded to `frames`: a single program for any mixture."""
    return [
        ChunkGroup(tuple(range(start, min(start + rows, len(lengths)))), rows, frames)
        for start in range(0, len(lengths), rows)
    ]
