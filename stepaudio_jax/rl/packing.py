"""Rollouts in rows: many replies of different lengths as packed, static-shape arrays, and back.

The replies to one prompt share its sound: a row that holds several of them holds the clip's
features once. Where attention lets
a token see two segments they share all of the prompt: it stands in a row once, and is computed
once.
"""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from numpy.typing import NDArray

from stepaudio_jax.audio.lengths import audio_embeddings_per_chunk, audio_indices
from stepaudio_jax.config import DataConfig
from stepaudio_jax.data import Array
from stepaudio_jax.errors import DataError
from stepaudio_jax.rl.rollouts import Rollout


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RolloutBatch:
    """What the policy read and wrote, in rows (B rows, T tokens, C audio chunks a row).

    tokens, targets, positions, segment_ids, audio_index [B,T] i32: as in `data.Batch`; targets only
    where the policy wrote them.
    features: [B,C,E,H_encoder], the encoder's of each chunk, zero beyond it.
    prefix_ids: [B,T] i32, the segment of the prompt that a reply's continues, -1 for none; None
    where no prompt is shared.
    """

    tokens: Array
    targets: Array
    positions: Array
    segment_ids: Array
    audio_index: Array
    features: Array
    prefix_ids: Array | None = None


@dataclasses.dataclass(frozen=True)
class _Span:
    """Where a prompt, or a reply, lies: its row, its first token there, and the segment that it is."""

    row: int
    start: int
    segment: int


@dataclasses.dataclass
class _Row:
    """What a row holds so far: its tokens, segments, chunks, and where prompts and their sound begin."""

    tokens: int = 0
    segments: int = 0
    chunks: int = 0
    prompts: dict[int, _Span] = dataclasses.field(default_factory=dict)
    first_chunks: dict[int, int] = dataclasses.field(default_factory=dict)


class PackedRollouts:
    """Rollouts packed into rows, in their order, each into the first row that has room.

    The prompt's last token is where a reply is read off: it stands in front of each reply, and not
    at the prompt's end. The last token of a reply is only a target.

    Args:
        rollouts: those of a prompt one after the other.
        data: the sizes of a row; the number of rows becomes a multiple of `data.batch_size`.
        shared: whether the replies to a prompt share it (see `models.supports_shared_prefix`); else
            each has its own.

    Raises:
        DataError: a rollout does not fit an empty row.
    """

    def __init__(self, rollouts: Sequence[Rollout], data: DataConfig, *, shared: bool):
        self._rollouts, self._data, self._shared = rollouts, data, shared
        self._prompts: list[_Span] = []  # of each rollout
        self._replies: list[_Span] = []
        self._rows: list[_Row] = []
        for number, rollout in enumerate(rollouts):
            prompt, reply, chunks = (
                len(rollout.prompt_tokens) - 1,
                len(rollout.completion_tokens),
                len(rollout.chunk_tokens),
            )
            if prompt + reply > data.seq_len or chunks > data.audio_chunks_per_seq:
                raise DataError(
                    f"{rollout.record.origin}: prompt and reply take {prompt + reply} tokens and {chunks} audio chunks; a row "
                    f"holds seq_len={data.seq_len} and audio_chunks_per_seq={data.audio_chunks_per_seq}; raise them"
                )
            key = rollout.group if shared else number
            index = self._row_for(rollout, key)
            row = self._rows[index]
            if rollout.group not in row.first_chunks:
                row.first_chunks[rollout.group] = row.chunks
                row.chunks += chunks
            if key not in row.prompts:
                row.segments += 1
                row.prompts[key] = _Span(index, row.tokens, row.segments)
                row.tokens += prompt
            row.segments += shared
            self._prompts.append(row.prompts[key])
            self._replies.append(_Span(index, row.tokens, row.segments))
            row.tokens += reply
        self.rows = -(-max(len(self._rows), 1) // data.batch_size) * data.batch_size

    def _row_for(self, rollout: Rollout, key: int) -> int:
        """The first row that has room for a rollout, whose prompt may be there already, by its `key`."""
        prompt, reply, chunks = (
            len(rollout.prompt_tokens) - 1,
            len(rollout.completion_tokens),
            len(rollout.chunk_tokens),
        )
        for index, row in enumerate(self._rows):
            tokens = row.tokens + reply + (0 if key in row.prompts else prompt)
            more = 0 if rollout.group in row.first_chunks else chunks
            if (
                tokens <= self._data.seq_len
                and row.chunks + more <= self._data.audio_chunks_per_seq
            ):
                return index
        self._rows.append(_Row())
        return len(self._rows) - 1

    def batch(self, features: Sequence[NDArray[np.float32]], pad_token: int) -> RolloutBatch:
        """All rows as arrays on the host.

        Args:
            features: of each prompt (by `Rollout.group`) [C,E,H_encoder], the encoder's of its
            chunks.
            pad_token: what stands where no token is.
        """
        rows, tokens, chunks = self.rows, self._data.seq_len, self._data.audio_chunks_per_seq
        width = next((of_prompt.shape[1:] for of_prompt in features if of_prompt.size), (0, 0))
        batch = RolloutBatch(
            tokens=np.full((rows, tokens), pad_token, np.int32),
            targets=np.full((rows, tokens), pad_token, np.int32),
            positions=np.zeros((rows, tokens), np.int32),
            segment_ids=np.zeros((rows, tokens), np.int32),
            audio_index=np.full((rows, tokens), -1, np.int32),
            features=np.zeros((rows, chunks if width[0] else 0, *width), np.float32),
            prefix_ids=np.full((rows, tokens), -1, np.int32) if self._shared else None,
        )
        for rollout, prompt, reply in zip(
            self._rollouts, self._prompts, self._replies, strict=True
        ):
            read = np.concatenate([rollout.prompt_tokens, rollout.completion_tokens[:-1]])
            slots = np.full(read.size, -1, np.int32)
            slots[np.flatnonzero(rollout.is_audio)] = self._audio_indices(rollout, reply.row)
            last = len(rollout.prompt_tokens) - 1
            for place, own in ((prompt, np.arange(last)), (reply, np.arange(last, read.size))):
                here = np.s_[place.row, place.start : place.start + own.size]
                batch.tokens[here] = read[own]
                batch.positions[here] = own
                batch.segment_ids[here] = place.segment
                batch.audio_index[here] = slots[own]
            written = np.s_[reply.row, reply.start : reply.start + len(rollout.completion_tokens)]
            batch.targets[written] = rollout.completion_tokens
            if batch.prefix_ids is not None:
                batch.prefix_ids[written] = prompt.segment
            first = self._rows[reply.row].first_chunks[rollout.group]
            for chunk in range(len(rollout.chunk_tokens)):
                batch.features[reply.row, first + chunk] = features[rollout.group][chunk]
        return batch

    def _audio_indices(self, rollout: Rollout, row: int) -> NDArray[np.int32]:
        """Of each audio token of the prompt, its place among the adaptor's outputs of the row."""
        per_chunk = audio_embeddings_per_chunk(self._data.mel_frames_per_chunk)
        first = self._rows[row].first_chunks[rollout.group]
        return audio_indices(rollout.chunk_tokens, per_chunk, first)

    def scatter(self, values: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Values of each rollout's own tokens [R] -> [B,T], each where its token is the target; 0 elsewhere."""
        scatter = np.zeros((self.rows, self._data.seq_len), np.float32)
        for of_rollout, here in zip(values, self._completion_slices(), strict=True):
            scatter[here] = of_rollout
        return scatter

    def gather(self, values: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """[B,T] -> of each rollout the values [R] at its own tokens: what `scatter` scatter."""
        return [values[here] for here in self._completion_slices()]

    def _completion_slices(self) -> list[tuple[int, slice]]:
        """Of each rollout, the places whose targets it wrote."""
        places = zip(self._rollouts, self._replies, strict=True)
        return [
            (place.row, slice(place.start, place.start + len(rollout.completion_tokens)))
            for rollout, place in places
        ]
