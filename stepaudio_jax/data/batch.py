"""Batch: the static-shape arrays that a train step takes, and their assembly from packed rows.

Shapes: B rows, T tokens, C audio chunks a row, mel_bins = 128.
"""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jaxtyping import Float32, Int32

from stepaudio_jax.audio import MEL_BINS
from stepaudio_jax.audio.lengths import (
    audio_embeddings_per_chunk,
    conv_frame_count,
    max_mel_frames,
)
from stepaudio_jax.config import AuxiliaryConfig, DataConfig, ModelConfig
from stepaudio_jax.data.labels import label_sizes
from stepaudio_jax.data.preference_pairs import MIN_PAIR_TOKENS, REPLIES_PER_PAIR, PairFormat
from stepaudio_jax.data.record import AudioChunk, Example, PairTargets, TeacherView
from stepaudio_jax.errors import ConfigError
from stepaudio_jax.text import Tokenizer

# NumPy on the host, jax.Array in a step, shapes alone in plans.
if TYPE_CHECKING:
    Array = Any
else:
    Array = np.ndarray | jax.Array | jax.ShapeDtypeStruct


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AuxiliaryLabels:
    """Holds the labels of the audio chunks for the auxiliary losses.

    Attributes:
        ctc_words: indices into the word vocabulary plus one; 0 pads, and is CTC's blank.
        ctc_weight: 1 if the chunk has a transcript, else 0.
        attributes: the index of each attribute's value; -1 if it is unknown.
    """

    ctc_words: Int32[Array, "B C max_words"]
    ctc_weight: Float32[Array, "B C"]
    attributes: Int32[Array, "B C num_attributes"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PairBatch:
    """Holds what the batches of a stage with preferences add; P is the most pairs of a row.

    Attributes:
        prefix_ids: the segment, earlier in the row, that a token's own continues; -1 for none.
            None where the replies of a pair do not share their prompt.
        reply_ids: the reply whose token is the target here, `REPLIES_PER_PAIR` * pair of the row +
            `CHOSEN`, `REJECTED` or `UNRELATED`; -1 for none.
        weights: 1 for a pair, 0 for an unused place.
        labels: the probability that the chosen reply is the better one.
        margins: by how many levels it is better.
        records: index of the source, and of the record in it; -1 for an unused place.
        reference_logprobs: of each reply, summed over its tokens, by the reference policy; NaN
            where there is no such reply. None where the step computes them.
    """

    prefix_ids: Int32[Array, "B T"] | None
    reply_ids: Int32[Array, "B T"]
    weights: Float32[Array, "B P"]
    labels: Float32[Array, "B P"]
    margins: Float32[Array, "B P"]
    records: Int32[Array, "B P 2"]
    reference_logprobs: Float32[Array, "B P replies"] | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TeacherBatch:
    """Holds the rows of a teacher that reads what the student hears; they have no sound.

    Attributes:
        tokens, positions, segment_ids: as of `Batch`; the same dialogues with transcripts in place
            of their clips.
        target_index: the position in the teacher's row that predicts the target here, where the
            loss counts it; else -1.
    """

    tokens: Int32[Array, "B T"]
    positions: Int32[Array, "B T"]
    segment_ids: Int32[Array, "B T"]
    target_index: Int32[Array, "B T"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """Holds packed, padded dialogues. A row's audio stays in its row.

    Attributes:
        tokens: padded with the pad token.
        targets: the token that follows, within the same dialogue.
        loss_weights: 1 where the loss counts the target, else 0.
        positions: from 0 in each dialogue.
        segment_ids: 1, 2, .. for the dialogues of a row; 0 is padding.
        mel: log-mel of each chunk, zero beyond its length.
        mel_lengths: frames of each chunk; 0 for an unused place.
        audio_index: which of the row's audio embeddings replaces this token's embedding: chunk *
            embeddings per chunk + offset; -1 for text.
        auxiliary: labels for the auxiliary losses, or None.
        pairs: of a stage with preferences; else None.
        teacher: of a stage whose teacher reads transcripts; else None.
    """

    tokens: Int32[Array, "B T"]
    targets: Int32[Array, "B T"]
    loss_weights: Float32[Array, "B T"]
    positions: Int32[Array, "B T"]
    segment_ids: Int32[Array, "B T"]
    mel: Float32[Array, "B C mel_bins mel_frames"]
    mel_lengths: Int32[Array, "B C"]
    audio_index: Int32[Array, "B T"]
    auxiliary: AuxiliaryLabels | None = None
    pairs: PairBatch | None = None
    teacher: TeacherBatch | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchShape:
    """Holds the static sizes of a batch, except its number of rows.

    Attributes:
        seq_len: T.
        audio_chunks: C, chunks a row.
        mel_frames: what each chunk is padded to.
        mel_bins: of the log-mel.
        pad_token: fills unused places of `tokens` and `targets`.
        max_words, num_attributes: sizes of `AuxiliaryLabels`; None if the batch has none.
        pairs: P, the most pairs of a row; None without preferences.
        shares_prompt, has_reference_logprobs: whether `PairBatch` has these arrays.
        teacher_reads: whether there is a `TeacherBatch`.
    """

    seq_len: int
    audio_chunks: int
    mel_frames: int
    mel_bins: int
    pad_token: int
    max_words: int | None = None
    num_attributes: int | None = None
    pairs: int | None = None
    shares_prompt: bool = False
    has_reference_logprobs: bool = False
    teacher_reads: bool = False


def batch_shape(
    config: DataConfig,
    auxiliary: AuxiliaryConfig | None,
    *,
    pad_token: int,
    pair_format: PairFormat | None = None,
    teacher_reads: bool = False,
) -> BatchShape:
    """Returns the sizes that a configuration asks for."""
    max_words, num_attributes = None, None
    if auxiliary is not None and auxiliary.enabled:
        max_words, num_attributes = label_sizes(
            auxiliary, audio_embeddings_per_chunk(config.mel_frames_per_chunk)
        )
    return BatchShape(
        seq_len=config.seq_len,
        audio_chunks=config.audio_chunks_per_seq,
        mel_frames=config.mel_frames_per_chunk,
        mel_bins=MEL_BINS,
        pad_token=pad_token,
        max_words=max_words,
        num_attributes=num_attributes,
        pairs=None if pair_format is None else max(config.seq_len // MIN_PAIR_TOKENS, 1),
        shares_prompt=pair_format is not None and pair_format.shares_prompt,
        has_reference_logprobs=(
            pair_format is not None and pair_format.reference_logprobs is not None
        ),
        teacher_reads=teacher_reads,
    )


def check_sizes(config: DataConfig, tokenizer: Tokenizer, model: ModelConfig) -> None:
    """Checks that a model can take the batches of a configuration.

    Raises:
        ConfigError: names the size that does not fit.
    """
    if tokenizer.required_vocab_size > model.decoder.vocab_size:
        raise ConfigError(
            f"the tokenizer writes {tokenizer.required_vocab_size} tokens, the model's"
            f" decoder.vocab_size={model.decoder.vocab_size};"
            " use the model's own tokenizer, or a larger vocabulary"
        )
    if not config.audio_chunks_per_seq:
        return
    encoder = model.encoder
    if encoder.mel_bins != MEL_BINS:
        raise ConfigError(
            f"encoder.mel_bins={encoder.mel_bins}, and the front end makes {MEL_BINS}"
        )
    if conv_frame_count(config.mel_frames_per_chunk) > encoder.positions:
        raise ConfigError(
            f"mel_frames_per_chunk={config.mel_frames_per_chunk} needs more than the encoder's"
            f" {encoder.positions} positions; at most {max_mel_frames(encoder.positions)}"
        )


def abstract_batch(rows: int, shape: BatchShape) -> Batch:
    """Returns a batch of `jax.ShapeDtypeStruct`s instead of arrays."""

    def array(dtype: type, *sizes: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((rows, *sizes), dtype)

    seq_len, chunks = shape.seq_len, shape.audio_chunks
    labels = None
    if shape.max_words is not None and shape.num_attributes is not None:
        labels = AuxiliaryLabels(
            ctc_words=array(np.int32, chunks, shape.max_words),
            ctc_weight=array(np.float32, chunks),
            attributes=array(np.int32, chunks, shape.num_attributes),
        )
    pairs = None
    if shape.pairs is not None:
        pairs = PairBatch(
            prefix_ids=array(np.int32, seq_len) if shape.shares_prompt else None,
            reply_ids=array(np.int32, seq_len),
            weights=array(np.float32, shape.pairs),
            labels=array(np.float32, shape.pairs),
            margins=array(np.float32, shape.pairs),
            records=array(np.int32, shape.pairs, 2),
            reference_logprobs=(
                array(np.float32, shape.pairs, REPLIES_PER_PAIR)
                if shape.has_reference_logprobs
                else None
            ),
        )
    teacher = None
    if shape.teacher_reads:
        names = [field.name for field in dataclasses.fields(TeacherBatch)]
        teacher = TeacherBatch(**{name: array(np.int32, seq_len) for name in names})
    return Batch(
        tokens=array(np.int32, seq_len),
        targets=array(np.int32, seq_len),
        loss_weights=array(np.float32, seq_len),
        positions=array(np.int32, seq_len),
        segment_ids=array(np.int32, seq_len),
        mel=array(np.float32, chunks, shape.mel_bins, shape.mel_frames),
        mel_lengths=array(np.int32, chunks),
        audio_index=array(np.int32, seq_len),
        auxiliary=labels,
        pairs=pairs,
        teacher=teacher,
    )


def collate(rows: Sequence[Sequence[Example]], shape: BatchShape) -> Batch:
    """Copies the examples of each row end to end into a batch of NumPy arrays.

    Args:
        rows: the examples of each of the B rows, which must fit; a row may be empty.
        shape: the other sizes.
    """
    batch = jax.tree.map(
        lambda leaf: np.zeros(leaf.shape, leaf.dtype), abstract_batch(len(rows), shape)
    )
    batch.tokens[:] = batch.targets[:] = shape.pad_token
    batch.audio_index[:] = -1
    if batch.auxiliary is not None:
        batch.auxiliary.attributes[:] = -1
    if batch.pairs is not None:
        batch.pairs.reply_ids[:] = batch.pairs.records[:] = -1
        if batch.pairs.prefix_ids is not None:
            batch.pairs.prefix_ids[:] = -1
        if batch.pairs.reference_logprobs is not None:
            batch.pairs.reference_logprobs[:] = np.nan
    if batch.teacher is not None:
        batch.teacher.tokens[:] = shape.pad_token
        batch.teacher.target_index[:] = -1
    embeddings_per_chunk = audio_embeddings_per_chunk(shape.mel_frames)
    for row, examples in enumerate(rows):
        start, chunk, segment = 0, 0, 1  # the first free token, chunk and segment id of the row
        teacher_start = 0  # the first free token of the teacher's row
        for number, example in enumerate(examples):
            span = np.s_[row, start : start + example.tokens.size]
            batch.tokens[span] = example.tokens
            batch.targets[span] = example.targets
            batch.loss_weights[span] = example.loss_weights
            batch.positions[span] = example.positions
            batch.segment_ids[span] = example.segment_ids + segment
            batch.audio_index[span] = np.where(
                example.audio_index < 0, -1, example.audio_index + chunk * embeddings_per_chunk
            )
            for audio_chunk in example.chunks:
                _copy_chunk(batch, row, chunk, audio_chunk)
                chunk += 1
            if batch.pairs is not None and example.pair is not None:
                _copy_pair(batch.pairs, span, number, segment, example.pair)
            if batch.teacher is not None and example.teacher is not None:
                _copy_teacher(batch.teacher, span, teacher_start, segment, example.teacher)
                teacher_start += example.teacher.tokens.size
            start += example.tokens.size
            segment += example.num_segments
    return batch


def _copy_chunk(batch: Batch, row: int, index: int, chunk: AudioChunk) -> None:
    """Copies a chunk's log-mel and labels to place `index` of a row."""
    mel_frames = chunk.mel.shape[1]
    batch.mel[row, index, :, :mel_frames] = chunk.mel
    batch.mel_lengths[row, index] = mel_frames
    if batch.auxiliary is None or chunk.labels is None:
        return
    if chunk.labels.words is not None:
        batch.auxiliary.ctc_words[row, index, : len(chunk.labels.words)] = chunk.labels.words
        batch.auxiliary.ctc_weight[row, index] = 1
    batch.auxiliary.attributes[row, index] = chunk.labels.attributes


def _copy_teacher(
    batch: TeacherBatch, span: tuple[int, slice], start: int, segment: int, view: TeacherView
) -> None:
    """Copies what a teacher reads of an example.

    Args:
        batch: to copy into.
        span: the row and the tokens of the example.
        start: the first free token of the teacher's row.
        segment: id of the example's first segment.
        view: to copy.
    """
    here = np.s_[span[0], start : start + view.tokens.size]
    batch.tokens[here] = view.tokens
    batch.positions[here] = view.positions
    batch.segment_ids[here] = view.segment_ids + segment
    batch.target_index[span] = np.where(view.target_index < 0, -1, view.target_index + start)


def _copy_pair(
    pairs: PairBatch, span: tuple[int, slice], number: int, segment: int, pair: PairTargets
) -> None:
    """Copies what a preference record adds, as pair `number` of its row.

    Args:
        pairs: to copy into.
        span: the row and the tokens of the example.
        number: of the pair in the row.
        segment: id of the example's first segment.
        pair: to copy.
    """
    row, place = span[0], (span[0], number)
    if pairs.prefix_ids is not None:
        pairs.prefix_ids[span] = np.where(pair.prefix_ids < 0, -1, pair.prefix_ids + segment)
    pairs.reply_ids[span] = np.where(
        pair.reply_ids < 0, -1, pair.reply_ids + REPLIES_PER_PAIR * number
    )
    pairs.weights[place] = 1
    pairs.labels[place], pairs.margins[place] = pair.label, pair.margin
    pairs.records[row, number] = pair.record
    if pairs.reference_logprobs is not None:
        pairs.reference_logprobs[row, number] = pair.reference_logprobs
