"""Rollouts packed into rows of static shape, and values of their tokens moved there and back.

The rollouts of a prompt share its audio: a row with several of them holds the features once. Where
attention supports shared prefixes, they share the whole prompt, which is then computed once a row.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jaxtyping import Float32, Int32
from numpy.typing import NDArray

from stepaudio_jax.audio.lengths import audio_embeddings_per_chunk, audio_indices
from stepaudio_jax.config import DataConfig
from stepaudio_jax.errors import DataError
from stepaudio_jax.rl.rollouts import Rollout

# NumPy on the host, jax.Array in an update, shapes alone in a plan.
if TYPE_CHECKING:
    Array = Any
else:
    Array = np.ndarray | jax.Array | jax.ShapeDtypeStruct


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RolloutBatch:
    """Packed rollouts: B rows of T tokens and C audio chunks.

    Attributes:
        tokens, positions, segment_ids, audio_index: as in `data.Batch`.
        targets: the tokens that the policy wrote; padding elsewhere.
        features: the encoder's output of each chunk, 0 beyond its end.
        prefix_ids: the segment of the prompt that a reply continues, -1 for none; None where
            prompts are not shared.
    """

    tokens: Int32[Array, "B T"]
    targets: Int32[Array, "B T"]
    positions: Int32[Array, "B T"]
    segment_ids: Int32[Array, "B T"]
    audio_index: Int32[Array, "B T"]
    features: Float32[Array, "B C audio_frames encoder_hidden"]
    prefix_ids: Int32[Array, "B T"] | None = None


class PackedRollouts:
    """Assigns rollouts to rows, in order, each to the first row with room.

    The last token of a prompt predicts the first one of each reply: it stands in front of each
    reply, not at the end of the prompt. The last token of a reply is only a target.

    Args:
        rollouts: those of a prompt one after the other.
        data: the sizes of a row; the number of rows is a multiple of `data.batch_size`.
        shared: whether the rollouts of a prompt share it, see `models.supports_shared_prefix`; else
            each has its own.

    Attributes:
        num_rows: including empty ones.

    Raises:
        DataError: a rollout does not fit an empty row.
    """

    def __init__(self, rollouts: Sequence[Rollout], data: DataConfig, *, shared: bool):
        self._rollouts, self._data, self._shared = rollouts, data, shared
        self._prompts: list[_Span] = []  # of each rollout
        self._replies: list[_Span] = []
        self._rows: list[_Row] = []
        for number, rollout in enumerate(rollouts):
            self._check_fits(rollout)
            prompt_key = rollout.group if shared else number
            row_index = self._row_with_room(rollout, prompt_key)
            row = self._rows[row_index]
            if rollout.group not in row.first_chunks:
                row.first_chunks[rollout.group] = row.chunks
                row.chunks += len(rollout.chunk_tokens)
            if prompt_key not in row.prompts:
                row.segments += 1
                row.prompts[prompt_key] = _Span(row_index, row.tokens, row.segments)
                row.tokens += len(rollout.prompt_tokens) - 1
            row.segments += shared  # else a reply continues its prompt's segment
            self._prompts.append(row.prompts[prompt_key])
            self._replies.append(_Span(row_index, row.tokens, row.segments))
            row.tokens += len(rollout.completion_tokens)
        self.num_rows = -(-max(len(self._rows), 1) // data.batch_size) * data.batch_size

    def batch(self, features: Sequence[NDArray[np.float32]], pad_token: int) -> RolloutBatch:
        """Builds the arrays of all rows, on the host.

        Args:
            features: of each prompt, by `Rollout.group`: [C,audio_frames,encoder_hidden], the
                encoder's output of its chunks.
            pad_token: where there is no token.
        """
        shape = (self.num_rows, self._data.seq_len)
        frames_and_hidden = next(
            (of_prompt.shape[1:] for of_prompt in features if of_prompt.size), (0, 0)
        )
        chunks = self._data.audio_chunks_per_seq if frames_and_hidden[0] else 0
        batch = RolloutBatch(
            tokens=np.full(shape, pad_token, np.int32),
            targets=np.full(shape, pad_token, np.int32),
            positions=np.zeros(shape, np.int32),
            segment_ids=np.zeros(shape, np.int32),
            audio_index=np.full(shape, -1, np.int32),
            features=np.zeros((self.num_rows, chunks, *frames_and_hidden), np.float32),
            prefix_ids=np.full(shape, -1, np.int32) if self._shared else None,
        )
        for rollout, prompt, reply in zip(
            self._rollouts, self._prompts, self._replies, strict=True
        ):
            inputs = np.concatenate([rollout.prompt_tokens, rollout.completion_tokens[:-1]])
            audio_index = np.full(inputs.size, -1, np.int32)
            audio_index[np.flatnonzero(rollout.is_audio)] = self._audio_index(rollout, reply.row)
            split = len(rollout.prompt_tokens) - 1
            for span, positions in (
                (prompt, np.arange(split)),
                (reply, np.arange(split, inputs.size)),
            ):
                here = np.s_[span.row, span.start : span.start + positions.size]
                batch.tokens[here] = inputs[positions]
                batch.positions[here] = positions
                batch.segment_ids[here] = span.segment
                batch.audio_index[here] = audio_index[positions]
            completion = np.s_[
                reply.row, reply.start : reply.start + len(rollout.completion_tokens)
            ]
            batch.targets[completion] = rollout.completion_tokens
            if batch.prefix_ids is not None:
                batch.prefix_ids[completion] = prompt.segment
            first_chunk = self._rows[reply.row].first_chunks[rollout.group]
            for chunk in range(len(rollout.chunk_tokens)):
                batch.features[reply.row, first_chunk + chunk] = features[rollout.group][chunk]
        return batch

    def scatter(
        self, values: Sequence[Float32[np.ndarray, " _completion_tokens"]]
    ) -> Float32[np.ndarray, "rows T"]:
        """Places values of each rollout's tokens where these are the targets; 0 elsewhere."""
        scattered = np.zeros((self.num_rows, self._data.seq_len), np.float32)
        for of_rollout, here in zip(values, self._completions(), strict=True):
            scattered[here] = of_rollout
        return scattered

    def gather(
        self, values: Float32[np.ndarray, "rows T"]
    ) -> list[Float32[np.ndarray, " _completion_tokens"]]:
        """Returns for each rollout the values at its tokens: the inverse of `scatter`."""
        return [values[here] for here in self._completions()]

    def _check_fits(self, rollout: Rollout) -> None:
        tokens = len(rollout.prompt_tokens) - 1 + len(rollout.completion_tokens)
        chunks = len(rollout.chunk_tokens)
        if tokens > self._data.seq_len or chunks > self._data.audio_chunks_per_seq:
            raise DataError(
                f"{rollout.record.origin}: prompt and reply take {tokens} tokens and {chunks} "
                f"audio chunks; a row holds seq_len={self._data.seq_len} and "
                f"audio_chunks_per_seq={self._data.audio_chunks_per_seq}; raise them"
            )

    def _row_with_room(self, rollout: Rollout, prompt_key: int) -> int:
        """Returns the first row with room for a rollout, where its prompt may be already."""
        for index, row in enumerate(self._rows):
            tokens = row.tokens + len(rollout.completion_tokens)
            if prompt_key not in row.prompts:
                tokens += len(rollout.prompt_tokens) - 1
            chunks = row.chunks
            if rollout.group not in row.first_chunks:
                chunks += len(rollout.chunk_tokens)
            if tokens <= self._data.seq_len and chunks <= self._data.audio_chunks_per_seq:
                return index
        self._rows.append(_Row())
        return len(self._rows) - 1

    def _audio_index(self, rollout: Rollout, row: int) -> NDArray[np.int32]:
        """Returns for each audio token of the prompt its index among the row's audio embeddings."""
        per_chunk = audio_embeddings_per_chunk(self._data.mel_frames_per_chunk)
        first_chunk = self._rows[row].first_chunks[rollout.group]
        return audio_indices(rollout.chunk_tokens, per_chunk, first_chunk)

    def _completions(self) -> Iterator[tuple[int, slice]]:
        """Yields for each rollout its row and the positions whose targets it wrote."""
        for rollout, reply in zip(self._rollouts, self._replies, strict=True):
            yield reply.row, slice(reply.start, reply.start + len(rollout.completion_tokens))


@dataclasses.dataclass(frozen=True)
class Minibatch:
    """The rollouts of one update, packed.

    Attributes:
        indices: where its rollouts are among those of the step.
        packed: their places in rows.
        batches: the rows, `data.batch_size` each, on the mesh.
    """

    indices: slice
    packed: PackedRollouts
    batches: list[RolloutBatch]


@dataclasses.dataclass(frozen=True)
class _Span:
    """Where a prompt or a reply lies: its row, its first position there, and its segment id."""

    row: int
    start: int
    segment: int


@dataclasses.dataclass
class _Row:
    """How full a row is, and where prompts (by key) and their audio (by group) begin."""

    tokens: int = 0
    segments: int = 0
    chunks: int = 0
    prompts: dict[int, _Span] = dataclasses.field(default_factory=dict)
    first_chunks: dict[int, int] = dataclasses.field(default_factory=dict)
