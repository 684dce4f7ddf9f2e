"""Floating-point operations of a training step, by formula.

Counted is what the mathematics needs: two operations for a multiplication and an addition, each
matrix product once forward and
once more for each of its two sides that has a gradient: a kernel that is trained, activations that
gradients pass. What rematerialisation computes again is not counted, and a causal mask halves
attention (model FLOPs, as in PaLM: Chowdhery et al. 2022, appendix B).
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax

from stepaudio_jax.audio.lengths import audio_embeddings_per_chunk, conv_frame_count
from stepaudio_jax.config import (
    DataConfig,
    DecoderConfig,
    EncoderConfig,
    ModelConfig,
    Part,
    StageConfig,
)
from stepaudio_jax.models import abstract_lora


class ForwardFlops(NamedTuple):
    """Of a forward pass: products with kernels, and attention's products of activations, both of which have gradients."""

    kernels: float
    attention: float = 0.0

    def times(self, rows: int) -> "ForwardFlops":
        """Of so many rows."""
        return ForwardFlops(rows * self.kernels, rows * self.attention)


def step_flops(model: ModelConfig, stage: StageConfig) -> float:
    """Of one step of a stage on one (global) batch, every row full: padding is counted like tokens."""
    narrow = jax.tree.leaves(abstract_lora(model, stage.lora).shapes) if stage.lora.rank else []
    return sum(
        part_flops(
            model, stage.data, stage.trainable, narrow=sum(leaf.size for leaf in narrow)
        ).values()
    )


def part_flops(
    model: ModelConfig, data: DataConfig, trainable: Sequence[Part], *, narrow: int = 0
) -> dict[Part, float]:
    """The same by part of the model.

    Args:
        model: the shape.
        data: rows, tokens and audio chunks.
        trainable: the parts with gradients; one before the first of them (encoder, adaptor,
        decoder) runs forward alone.
        narrow: parameters of the matrices that learn beside the decoder's (LoRA), through which
            gradients pass all the same.
    """
    forward = _forward_flops(model, data)
    flops: dict[Part, float] = {}
    # whether a part before this one is trained, so that gradients must pass through this one
    behind = False
    order: tuple[Part, ...] = ("encoder", "adaptor", "decoder")
    for part in order:
        trained = part in trainable
        # A part's own matrix products need inputs' gradients where anything inside it or before it
        # is trained.
        passed = trained or behind or (part == "decoder" and narrow > 0)
        flops[part] = forward[part].kernels * (1 + passed + trained) + forward[part].attention * (
            1 + 2 * passed
        )
        behind = behind or trained
    flops["decoder"] += 3 * 2.0 * narrow * data.batch_size * data.seq_len
    return flops


def _forward_flops(model: ModelConfig, data: DataConfig) -> dict[Part, ForwardFlops]:
    chunks = data.batch_size * data.audio_chunks_per_seq
    return {
        "encoder": _encoder_flops(model.encoder, data.mel_frames_per_chunk).times(chunks)
        if chunks
        else ForwardFlops(0.0),
        "adaptor": _adaptor_flops(model, data.mel_frames_per_chunk).times(chunks)
        if chunks
        else ForwardFlops(0.0),
        "decoder": decoder_flops(model.decoder, data.seq_len).times(data.batch_size),
    }


def decoder_flops(decoder: DecoderConfig, tokens: int) -> ForwardFlops:
    """ForwardFlops, for one row of so many tokens: projections, causal attention, SwiGLU, language-model head."""
    queries, keys = decoder.heads * decoder.head_dim, decoder.kv_heads * decoder.head_dim
    weights = (
        decoder.layers
        * (decoder.hidden * (2 * queries + 2 * keys) + 3 * decoder.hidden * decoder.ffn)
        + decoder.hidden * decoder.vocab_size
    )
    attention = decoder.layers * 2 * queries * tokens / 2  # q k and weights v, halved by the mask
    return ForwardFlops(2.0 * tokens * weights, 2.0 * tokens * attention)


def _encoder_flops(encoder: EncoderConfig, mel_frames: int) -> ForwardFlops:
    frames = conv_frame_count(mel_frames)
    convolutions = 3 * encoder.hidden * (mel_frames * encoder.mel_bins + frames * encoder.hidden)
    weights = encoder.layers * (4 * encoder.hidden**2 + 2 * encoder.hidden * encoder.ffn)
    attention = encoder.layers * 2 * encoder.hidden * frames
    return ForwardFlops(2.0 * (convolutions + frames * weights), 2.0 * frames * attention)


def _adaptor_flops(model: ModelConfig, mel_frames: int) -> ForwardFlops:
    outputs = audio_embeddings_per_chunk(mel_frames)
    hidden, ffn = model.encoder.hidden, model.adaptor.ffn
    return ForwardFlops(2.0 * outputs * (3 * hidden**2 + hidden * ffn + ffn * model.decoder.hidden))
