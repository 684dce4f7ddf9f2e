"""Packed rows of examples -> a Batch of padded, static-shape arrays."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from stepaudio_jax.data.batch import AuxiliaryLabels, Batch
from stepaudio_jax.data.example import Example


def outputs_per_chunk(frames: int) -> int:
    """Adaptor outputs of a chunk padded to `frames` mel frames: the encoder makes ceil(F/2) // 2, the adaptor half, rounded up.

    A chunk's own tokens are at most as many (fewer under the "hf" length convention, which does not count its last frames).
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
        label_words, label_attributes: S and A of `AuxiliaryLabels`; None where the batch has no auxiliary labels.
    """

    tokens: int
    chunks: int
    frames: int
    mel_bins: int
    pad_token: int
    label_words: int | None = None
    label_attributes: int | None = None


def assemble(rows: Sequence[Sequence[Example]], shape: BatchShape) -> Batch:
    """Lays the examples of each row end to end.

    Positions are those of the examples. Segment ids count a row's dialogues from 1. The audio slots, given within an example,
    are shifted to the row's chunks.

    Args:
        rows: for each row its examples, which must fit; a row may be empty.
        shape: the sizes.

    Returns:
        A Batch of numpy arrays with B = len(rows).
    """
    B, T, C = len(rows), shape.tokens, shape.chunks  # noqa: N806
    tokens = np.full((B, T), shape.pad_token, np.int32)
    targets = np.full((B, T), shape.pad_token, np.int32)
    loss_weights = np.zeros((B, T), np.float32)
    positions = np.zeros((B, T), np.int32)
    segment_ids = np.zeros((B, T), np.int32)
    audio_slot = np.full((B, T), -1, np.int32)
    mel = np.zeros((B, C, shape.mel_bins, shape.frames), np.float32)
    mel_lengths = np.zeros((B, C), np.int32)
    labels = _empty_labels(B, C, shape)
    outputs = outputs_per_chunk(shape.frames)
    for row, examples in enumerate(rows):
        token, chunk, segment = 0, 0, 1
        for example in examples:
            place = np.s_[row, token : token + example.tokens.size]
            tokens[place] = example.tokens
            targets[place] = example.targets
            loss_weights[place] = example.loss_weights
            positions[place] = example.positions
            segment_ids[place] = example.segments + segment
            audio_slot[place] = np.where(example.audio_slot < 0, -1, example.audio_slot + chunk * outputs)
            for heard in example.chunks:
                frames = heard.mel.shape[1]
                mel[row, chunk, :, :frames] = heard.mel
                mel_lengths[row, chunk] = frames
                if labels is not None and heard.labels is not None:
                    if heard.labels.words is not None:
                        labels.ctc_words[row, chunk, : len(heard.labels.words)] = heard.labels.words
                        labels.ctc_weight[row, chunk] = 1
                    labels.attributes[row, chunk] = heard.labels.attributes
                chunk += 1
            token += example.tokens.size
            segment += example.views
    return Batch(tokens, targets, loss_weights, positions, segment_ids, mel, mel_lengths, audio_slot, labels)


def _empty_labels(rows: int, chunks: int, shape: BatchShape) -> AuxiliaryLabels | None:
    if shape.label_words is None or shape.label_attributes is None:
        return None
    return AuxiliaryLabels(
        ctc_words=np.zeros((rows, chunks, shape.label_words), np.int32),
        ctc_weight=np.zeros((rows, chunks), np.float32),
        attributes=np.full((rows, chunks, shape.label_attributes), -1, np.int32),
    )
