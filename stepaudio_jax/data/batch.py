"""Batch: what a train step takes. Every shape is static."""

import dataclasses
from typing import Any

import jax

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
