"""Rollouts packed into rows of static shape, and values of their tokens moved there and back.

Each reply of a rollout is a sequence of its own, in the context in which it was sampled: a later
turn does not see the reasoning of an earlier one. The rollouts of a prompt share its audio: a row
with several of them holds the features once. Where attention supports shared prefixes, their first
replies share the whole prompt, which is then computed once a row.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jaxtyping import Float32, Int32
from numpy.typing import NDArray

from stepaudio_jax.audio.lengths import audio_embeddings_per_chunk, audio_indices
from stepaudio_jax.config import DataConfig
from stepaudio_jax.errors import DataError
from stepaudio_jax.rl.rollouts import PolicyTurn, Rollout

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
    """Assigns the replies of rollouts to rows, in order, each to the first row with room.

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
        DataError: a reply with its prompt does not fit an empty row.
    """

    def __init__(self, rollouts: Sequence[Rollout], data: DataConfig, *, shared: bool):
        self._rollouts, self._data, self._shared = rollouts, data, shared
        self._sequences: list[_Sequence] = []  # turn after turn of each rollout
        self._rows: list[_Row] = []
        for number, rollout in enumerate(rollouts):
            for turn in range(len(rollout.turns)):
                self._sequences.append(self._place(number, turn))
        self.num_rows = -(-max(len(self._rows), 1) // data.batch_size) * data.batch_size

    def batch(
        self,
        features: Sequence[NDArray[np.float32]],
        pad_token: int,
        spoken: Sequence[Sequence[NDArray[np.float32]]] | None = None,
    ) -> RolloutBatch:
        """Builds the arrays of all rows, on the host.

        Args:
            features: of each prompt, by `Rollout.group`: [C,audio_frames,encoder_hidden], the
                encoder's output of its chunks.
            pad_token: where there is no token.
            spoken: likewise for each user's turn of each rollout, by another encoder; None for
                `UserTurn.features`.
        """
        if spoken is None:
            spoken = [[turn.features for turn in rollout.user_turns] for rollout in self._rollouts]
        shape = (self.num_rows, self._data.seq_len)
        frames_and_hidden = next(
            (
                of_clips.shape[1:]
                for of_clips in itertools.chain(features, *spoken)
                if of_clips.size
            ),
            (0, 0),
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
        for sequence in self._sequences:
            turn, prompt, reply = sequence.turn, sequence.prompt, sequence.reply
            inputs = np.concatenate([turn.prompt_tokens, turn.completion_tokens[:-1]])
            audio_index = np.full(inputs.size, -1, np.int32)
            audio_index[np.flatnonzero(turn.is_audio)] = self._audio_index(sequence)
            split = len(turn.prompt_tokens) - 1
            for span, positions in (
                (prompt, np.arange(split)),
                (reply, np.arange(split, inputs.size)),
            ):
                here = np.s_[span.row, span.start : span.start + positions.size]
                batch.tokens[here] = inputs[positions]
                batch.positions[here] = positions
                batch.segment_ids[here] = span.segment
                batch.audio_index[here] = audio_index[positions]
            completion = sequence.row_slice
            batch.targets[completion] = turn.completion_tokens
            if batch.prefix_ids is not None:
                batch.prefix_ids[completion] = prompt.segment
            for clips in sequence.clips:
                first_chunk = self._rows[reply.row].first_chunks[clips.key]
                for chunk in range(clips.num_chunks):
                    source = (
                        features[clips.group]
                        if clips.user_turn is None
                        else spoken[sequence.rollout][clips.user_turn]
                    )
                    batch.features[reply.row, first_chunk + chunk] = source[chunk]
        return batch

    def scatter(
        self, values: Sequence[Float32[np.ndarray, " _completion_tokens"]]
    ) -> Float32[np.ndarray, "rows T"]:
        """Places values of each rollout's tokens where these are the targets; 0 elsewhere."""
        scattered = np.zeros((self.num_rows, self._data.seq_len), np.float32)
        for sequence in self._sequences:
            scattered[sequence.row_slice] = values[sequence.rollout][sequence.tokens]
        return scattered

    def gather(
        self, values: Float32[np.ndarray, "rows T"]
    ) -> list[Float32[np.ndarray, " _completion_tokens"]]:
        """Returns for each rollout the values at its tokens: the inverse of `scatter`."""
        of_rollouts: list[list[NDArray[np.float32]]] = [[] for _ in self._rollouts]
        for sequence in self._sequences:
            of_rollouts[sequence.rollout].append(values[sequence.row_slice])
        return [np.concatenate(of_rollout) for of_rollout in of_rollouts]

    def _place(self, number: int, turn_index: int) -> "_Sequence":
        """Finds a place for one reply of a rollout, with its prompt and its sound."""
        rollout = self._rollouts[number]
        turn = rollout.turns[turn_index]
        clips = _clips(rollout, number, turn_index)
        self._check_fits(rollout, turn)
        # Later turns continue dialogues that differ.
        is_shared = self._shared and turn_index == 0
        prompt_key = (rollout.group,) if is_shared else (number, turn_index)
        row_index = self._row_with_room(turn, clips, prompt_key)
        row = self._rows[row_index]
        for of_turn in clips:
            if of_turn.key not in row.first_chunks:
                row.first_chunks[of_turn.key] = row.chunks
                row.chunks += of_turn.num_chunks
        if prompt_key not in row.prompts:
            row.segments += 1
            row.prompts[prompt_key] = _Span(row_index, row.tokens, row.segments)
            row.tokens += len(turn.prompt_tokens) - 1
        row.segments += self._shared  # else a reply continues its prompt's segment
        reply = _Span(row_index, row.tokens, row.segments)
        row.tokens += len(turn.completion_tokens)
        start = sum(len(earlier.completion_tokens) for earlier in rollout.turns[:turn_index])
        tokens = slice(start, start + len(turn.completion_tokens))
        return _Sequence(number, turn, clips, row.prompts[prompt_key], reply, tokens)

    def _check_fits(self, rollout: Rollout, turn: PolicyTurn) -> None:
        tokens = len(turn.prompt_tokens) - 1 + len(turn.completion_tokens)
        chunks = len(turn.chunk_tokens)
        if tokens > self._data.seq_len or chunks > self._data.audio_chunks_per_seq:
            raise DataError(
                f"{rollout.record.origin}: prompt and reply take {tokens} tokens and {chunks} "
                f"audio chunks; a row holds seq_len={self._data.seq_len} and "
                f"audio_chunks_per_seq={self._data.audio_chunks_per_seq}; raise them"
            )

    def _row_with_room(
        self, turn: PolicyTurn, clips: "Sequence[_Clips]", prompt_key: tuple[int, ...]
    ) -> int:
        """Returns the first row with room for a reply, where its prompt may be already."""
        for index, row in enumerate(self._rows):
            tokens = row.tokens + len(turn.completion_tokens)
            if prompt_key not in row.prompts:
                tokens += len(turn.prompt_tokens) - 1
            chunks = row.chunks + sum(
                of_turn.num_chunks for of_turn in clips if of_turn.key not in row.first_chunks
            )
            if tokens <= self._data.seq_len and chunks <= self._data.audio_chunks_per_seq:
                return index
        self._rows.append(_Row())
        return len(self._rows) - 1

    def _audio_index(self, sequence: "_Sequence") -> NDArray[np.int32]:
        """Returns for each audio token of the prompt its index among the row's audio embeddings."""
        per_chunk = audio_embeddings_per_chunk(self._data.mel_frames_per_chunk)
        first_chunks = self._rows[sequence.reply.row].first_chunks
        indices, start = [np.zeros(0, np.int32)], 0
        for clips in sequence.clips:
            chunk_tokens = sequence.turn.chunk_tokens[start : start + clips.num_chunks]
            indices.append(audio_indices(chunk_tokens, per_chunk, first_chunks[clips.key]))
            start += clips.num_chunks
        return np.concatenate(indices)


def _clips(rollout: Rollout, number: int, turn_index: int) -> "tuple[_Clips, ...]":
    """Returns the clips that a reply hears: those of the record, then of each user's turn."""
    spoken = [len(turn.sound.chunk_tokens) for turn in rollout.user_turns[:turn_index]]
    of_record = len(rollout.turns[turn_index].chunk_tokens) - sum(spoken)
    return (
        _Clips(rollout.group, None, of_record, (rollout.group,)),
        *(
            _Clips(rollout.group, index, count, (number, index))
            for index, count in enumerate(spoken)
        ),
    )


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
class _Clips:
    """The chunks of a record, or of one user's turn, that lie in a row one after the other.

    Attributes:
        group: the prompt of the record.
        user_turn: number of the user's turn in its rollout; None for the record's chunks.
        num_chunks: how many there are.
        key: what tells them apart in a row.
    """

    group: int
    user_turn: int | None
    num_chunks: int
    key: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class _Span:
    """Where a prompt or a reply lies: its row, its first position there, and its segment id."""

    row: int
    start: int
    segment: int


@dataclasses.dataclass(frozen=True)
class _Sequence:
    """One reply and its place.

    Attributes:
        rollout: number of its rollout.
        turn: the reply.
        clips: what it hears.
        prompt, reply: where they lie.
        tokens: where its tokens are among all that the policy wrote in the rollout.
    """

    rollout: int
    turn: PolicyTurn
    clips: tuple[_Clips, ...]
    prompt: _Span
    reply: _Span
    tokens: slice

    @property
    def row_slice(self) -> tuple[int, slice]:
        """Returns its row and the positions whose targets it wrote."""
        start = self.reply.start
        return self.reply.row, slice(start, start + len(self.turn.completion_tokens))


@dataclasses.dataclass
class _Row:
    """How full a row is, and where prompts and audio begin, each by its key."""

    tokens: int = 0
    segments: int = 0
    chunks: int = 0
    prompts: dict[tuple[int, ...], _Span] = dataclasses.field(default_factory=dict)
    first_chunks: dict[tuple[int, ...], int] = dataclasses.field(default_factory=dict)
