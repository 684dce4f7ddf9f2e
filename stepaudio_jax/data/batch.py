"""Batch: what a train step takes. Every shape is static."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from stepaudio_jax.audio import MEL_BINS
from stepaudio_jax.audio.lengths import audio_embeddings_per_chunk
from stepaudio_jax.config import AuxiliaryConfig, DataConfig
from stepaudio_jax.data.record import Example, label_sizes

Array = Any  # a numpy array on the host, a jax.Array within a step


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AuxiliaryLabels:
    """Labels of the audio chunks for auxiliary losses (S words at most in a chunk's transcript, A attributes).

    ctc_words [B,C,S] i32: indices into the word vocabulary plus one; 0 pads (it is also CTC's
    blank).
    ctc_weight [B,C] f32: 1 where the chunk has a transcript, else 0.
    attributes [B,C,A] i32: the value's index; -1 where unknown.
    """

    ctc_words: Array
    ctc_weight: Array
    attributes: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """Packed, padded dialogues (B rows, T tokens, C audio chunks a row, F mel frames a chunk).

    tokens, targets [B,T] i32; `targets` is the token that follows, within the same dialogue.
    loss_weights [B,T] f32: 1 where the target is learnt. positions [B,T] i32: from 0 in each
    dialogue. segment_ids [B,T] i32: 1, 2, .. for the dialogues of a row; 0 is padding. mel
    [B,C,128,F] f32; mel_lengths [B,C] i32: frames of the chunk, 0 where there is none. audio_index
    [B,T] i32: which of the row's adaptor outputs (chunk * outputs per chunk + offset) replaces this
    token's
        embedding; -1 for text. A row's audio stays in its row.
    auxiliary: labels for auxiliary losses, or None.
    """

    tokens: Array
    targets: Array
    loss_weights: Array
    positions: Array
    segment_ids: Array
    mel: Array
    mel_lengths: Array
    audio_index: Array
    auxiliary: AuxiliaryLabels | None = None


# Packed rows of examples -> a Batch of padded, static-shape arrays.


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchShape:
    """The static sizes of a batch, beside its rows.

    Attributes:
        tokens: T.
        chunks: C, audio chunks a row.
        frames: F, mel frames a chunk is padded to.
        mel_bins: M.
        pad_token: what stands where no token is.
        label_words, label_attributes: S and A of `AuxiliaryLabels`; None where the batch has no
            auxiliary labels.
    """

    tokens: int
    chunks: int
    frames: int
    mel_bins: int
    pad_token: int
    label_words: int | None = None
    label_attributes: int | None = None


def batch_shape(
    config: DataConfig, auxiliary: AuxiliaryConfig | None, *, pad_token: int
) -> BatchShape:
    """The sizes that a configuration asks for."""
    words, attributes = None, None
    if auxiliary is not None and auxiliary.enabled:
        words, attributes = label_sizes(
            auxiliary, audio_embeddings_per_chunk(config.mel_frames_per_chunk)
        )
    return BatchShape(
        tokens=config.seq_len,
        chunks=config.audio_chunks_per_seq,
        frames=config.mel_frames_per_chunk,
        mel_bins=MEL_BINS,
        pad_token=pad_token,
        label_words=words,
        label_attributes=attributes,
    )


def abstract_batch(rows: int, shape: BatchShape) -> Batch:
    """The shapes and dtypes of a batch, as `jax.ShapeDtypeStruct`s."""

    def array(dtype: type, *sizes: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((rows, *sizes), dtype)

    tokens, chunks = shape.tokens, shape.chunks
    labels = None
    if shape.label_words is not None and shape.label_attributes is not None:
        labels = AuxiliaryLabels(
            ctc_words=array(np.int32, chunks, shape.label_words),
            ctc_weight=array(np.float32, chunks),
            attributes=array(np.int32, chunks, shape.label_attributes),
        )
    return Batch(
        tokens=array(np.int32, tokens),
        targets=array(np.int32, tokens),
        loss_weights=array(np.float32, tokens),
        positions=array(np.int32, tokens),
        segment_ids=array(np.int32, tokens),
        mel=array(np.float32, chunks, shape.mel_bins, shape.frames),
        mel_lengths=array(np.int32, chunks),
        audio_index=array(np.int32, tokens),
        auxiliary=labels,
    )


def collate(rows: Sequence[Sequence[Example]], shape: BatchShape) -> Batch:
    """Lays the examples of each row end to end.

    Positions are those of the examples. Segment ids count a row's dialogues from 1. The audio
    slots, given within an example, are shifted to the row's chunks.

    Args:
        rows: for each row its examples, which must fit; a row may be empty.
        shape: the sizes.

    Returns:
        A Batch of numpy arrays with B = len(rows).
    """
    batch = jax.tree.map(
        lambda leaf: np.zeros(leaf.shape, leaf.dtype), abstract_batch(len(rows), shape)
    )
    batch.tokens[:] = batch.targets[:] = shape.pad_token
    batch.audio_index[:] = -1
    labels = batch.auxiliary
    if labels is not None:
        labels.attributes[:] = -1
    outputs = audio_embeddings_per_chunk(shape.frames)
    for row, examples in enumerate(rows):
        token, chunk, segment = 0, 0, 1
        for example in examples:
            place = np.s_[row, token : token + example.tokens.size]
            batch.tokens[place] = example.tokens
            batch.targets[place] = example.targets
            batch.loss_weights[place] = example.loss_weights
            batch.positions[place] = example.positions
            batch.segment_ids[place] = example.segment_ids + segment
            batch.audio_index[place] = np.where(
                example.audio_index < 0, -1, example.audio_index + chunk * outputs
            )
            for heard in example.chunks:
                frames = heard.mel.shape[1]
                batch.mel[row, chunk, :, :frames] = heard.mel
                batch.mel_lengths[row, chunk] = frames
                if labels is not None and heard.labels is not None:
                    if heard.labels.words is not None:
                        labels.ctc_words[row, chunk, : len(heard.labels.words)] = heard.labels.words
                        labels.ctc_weight[row, chunk] = 1
                    labels.attributes[row, chunk] = heard.labels.attributes
                chunk += 1
            token += example.tokens.size
            segment += example.num_segments
    return batch
