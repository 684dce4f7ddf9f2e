"""Rollouts in rows: many replies of different lengths as packed, static-shape arrays, and back.

The replies to one prompt share its sound: a row that holds several of them holds the clip's features once.
"""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from numpy.typing import NDArray

from stepaudio_jax.config import DataConfig
from stepaudio_jax.data import Array, DataError, outputs_per_chunk
from stepaudio_jax.rl.rollouts import Rollout


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RolloutBatch:
    """What the policy read and wrote, in rows (B rows, T tokens, C audio chunks a row).

    tokens, targets, positions, segment_ids, audio_slot [B,T] i32: as in `data.Batch`.
    features: [B,C,E,H_encoder], the encoder's of each chunk, zero beyond it.
    """

    tokens: Array
    targets: Array
    positions: Array
    segment_ids: Array
    audio_slot: Array
    features: Array


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where a rollout lies: its row, its first token there, and the segment that it is."""

    row: int
    start: int
    segment: int


class Layout:
    """Rollouts packed into rows, in their order, each into the first row that has room.

    Args:
        rollouts: those of a prompt one after the other.
        data: the sizes of a row; the number of rows becomes a multiple of `data.rows`.

    Raises:
        DataError: a rollout does not fit an empty row.
    """

    def __init__(self, rollouts: Sequence[Rollout], data: DataConfig):
        self._rollouts, self._data = rollouts, data
        self._places: list[_Place] = []
        used: list[int] = []  # tokens of each row
        segments: list[int] = []
        self._chunks: list[dict[int, int]] = []  # of each row: prompt -> its first chunk
        self._chunks_used: list[int] = []
        for rollout in rollouts:
            size, chunks = len(rollout.prompt_tokens) + len(rollout.reply), len(rollout.chunk_tokens)
            if size > data.tokens_per_row or chunks > data.chunks_per_row:
                raise DataError(
                    f"{rollout.record.origin}: prompt and reply have {size} tokens and {chunks} audio chunks; a row holds "
                    f"tokens_per_row={data.tokens_per_row} and chunks_per_row={data.chunks_per_row}; raise them"
                )

            def has_room(row: int) -> bool:
                more = 0 if rollout.group in self._chunks[row] else chunks  # noqa: B023
                return used[row] + size <= data.tokens_per_row and self._chunks_used[row] + more <= data.chunks_per_row  # noqa: B023

            row = next((row for row in range(len(used)) if has_room(row)), len(used))
            if row == len(used):
                used.append(0)
                segments.append(0)
                self._chunks.append({})
                self._chunks_used.append(0)
            if rollout.group not in self._chunks[row]:
                self._chunks[row][rollout.group] = self._chunks_used[row]
                self._chunks_used[row] += chunks
            segments[row] += 1
            self._places.append(_Place(row, used[row], segments[row]))
            used[row] += size
        self.rows = -(-max(len(used), 1) // data.rows) * data.rows

    def batch(self, features: Sequence[NDArray[np.float32]], pad_token: int) -> RolloutBatch:
        """All rows as arrays on the host.

        Args:
            features: of each prompt (by `Rollout.group`) [C,E,H_encoder], the encoder's of its chunks.
            pad_token: what stands where no token is.
        """
        rows, tokens, chunks = self.rows, self._data.tokens_per_row, self._data.chunks_per_row
        width = next((of_prompt.shape[1:] for of_prompt in features if of_prompt.size), (0, 0))
        batch = RolloutBatch(
            tokens=np.full((rows, tokens), pad_token, np.int32),
            targets=np.full((rows, tokens), pad_token, np.int32),
            positions=np.zeros((rows, tokens), np.int32),
            segment_ids=np.zeros((rows, tokens), np.int32),
            audio_slot=np.full((rows, tokens), -1, np.int32),
            features=np.zeros((rows, chunks if width[0] else 0, *width), np.float32),
        )
        per_chunk = outputs_per_chunk(self._data.frames_per_chunk)
        for rollout, place in zip(self._rollouts, self._places, strict=True):
            whole = np.concatenate([rollout.prompt_tokens, rollout.reply])
            here = np.s_[place.row, place.start : place.start + whole.size]
            batch.tokens[here] = whole
            batch.targets[here] = np.append(whole[1:], pad_token)
            batch.positions[here] = np.arange(whole.size)
            batch.segment_ids[here] = place.segment
            first = self._chunks[place.row][rollout.group]
            slots = [
                (first + chunk) * per_chunk + offset
                for chunk, count in enumerate(rollout.chunk_tokens)
                for offset in range(count)
            ]
            batch.audio_slot[place.row, place.start + np.flatnonzero(rollout.is_audio)] = slots
            for chunk in range(len(rollout.chunk_tokens)):
                batch.features[place.row, first + chunk] = features[rollout.group][chunk]
        return batch

    def spread(self, values: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Values of each rollout's own tokens [R] -> [B,T], each where its token is the target; 0 elsewhere."""
        spread = np.zeros((self.rows, self._data.tokens_per_row), np.float32)
        for of_rollout, here in zip(values, self._written(), strict=True):
            spread[here] = of_rollout
        return spread

    def gather(self, values: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """[B,T] -> of each rollout the values [R] at its own tokens: what `spread` spread."""
        return [values[here] for here in self._written()]

    def _written(self) -> list[tuple[int, slice]]:
        """Of each rollout, the places whose targets it wrote."""
        written = []
        for rollout, place in zip(self._rollouts, self._places, strict=True):
            first = place.start + len(rollout.prompt_tokens) - 1
            written.append((place.row, slice(first, first + len(rollout.reply))))
        return written
