"""Packed rows of examples -> a Batch of padded, static-shape arrays."""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from stepaudio_jax.audio import MEL_BINS
from stepaudio_jax.config import AuxiliaryConfig, DataConfig
from stepaudio_jax.data.batch import AuxiliaryLabels, Batch
from stepaudio_jax.data.example import Example
from stepaudio_jax.data.labels import label_sizes


def audio_embeddings_per_chunk(frames: int) -> int:
    """Adaptor outputs of a chunk padded to `frames` mel frames: the encoder makes ceil(F/2) // 2, the adaptor half, rounded up.

    A chunk's own tokens are at most as many (fewer under the "hf" length convention, which does not
    count its last frames).
    """
    return -(-(-(-frames // 2) // 2) // 2)


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
