"""Counts the floating-point operations (FLOPs) of a training step by formula.

These are model FLOPs (PaLM: Chowdhery et al. 2022, appendix B): two for a multiplication and an
addition; each matrix product once forward, and once more for each of its operands that has a
gradient (a trained kernel, activations that gradients pass through). Rematerialization is not
counted, and a causal mask halves attention.
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
    Preference,
    StageConfig,
)
from stepaudio_jax.models import abstract_lora


class ForwardFlops(NamedTuple):
    """FLOPs of a forward pass.

    Attributes:
        kernels: of products of activations with kernels.
        attention: of products of activations with activations.
    """

    kernels: float
    attention: float = 0.0

    def times(self, rows: int) -> "ForwardFlops":
        """Returns the FLOPs of several rows, given those of one."""
        return ForwardFlops(rows * self.kernels, rows * self.attention)


def step_flops(model: ModelConfig, stage: StageConfig) -> float:
    """Returns the FLOPs of one step on the global batch, padding counted like tokens."""
    lora_size = 0
    if stage.lora.rank:
        leaves = jax.tree.leaves(abstract_lora(model, stage.lora).shapes)
        lora_size = sum(leaf.size for leaf in leaves)
    by_part = part_flops(model, stage.data, stage.trainable, lora_size=lora_size)
    total = sum(by_part.values())
    if isinstance(stage.objective, Preference) and stage.objective.needs_reference_params:
        total += sum(part_flops(model, stage.data, ()).values())  # the reference's forward pass
    return total


def part_flops(
    model: ModelConfig, data: DataConfig, trainable: Sequence[Part], *, lora_size: int = 0
) -> dict[Part, float]:
    """Returns the FLOPs of one step on the global batch, by part of the model.

    Args:
        model: its shape.
        data: rows, tokens and audio chunks.
        trainable: the trained parts; a part before the first of them (in the order encoder,
            adaptor, decoder) only runs forward.
        lora_size: number of trained adapter parameters beside the decoder's kernels.
    """
    forward = _forward_flops(model, data)
    flops: dict[Part, float] = {}
    is_after_trained = False
    order: tuple[Part, ...] = ("encoder", "adaptor", "decoder")
    for part in order:
        trained = part in trainable
        # Activations have gradients if anything in this part or before it is trained.
        has_gradients = trained or is_after_trained or (part == "decoder" and lora_size > 0)
        flops[part] = forward[part].kernels * (1 + has_gradients + trained)
        flops[part] += forward[part].attention * (1 + 2 * has_gradients)
        is_after_trained = is_after_trained or trained
    flops["decoder"] += 3 * 2.0 * lora_size * data.batch_size * data.seq_len
    return flops


def _forward_flops(model: ModelConfig, data: DataConfig) -> dict[Part, ForwardFlops]:
    chunks = data.batch_size * data.audio_chunks_per_seq
    encoder = adaptor = ForwardFlops(0.0)
    if chunks:
        encoder = _encoder_flops(model.encoder, data.mel_frames_per_chunk).times(chunks)
        adaptor = _adaptor_flops(model, data.mel_frames_per_chunk).times(chunks)
    return {
        "encoder": encoder,
        "adaptor": adaptor,
        "decoder": decoder_flops(model.decoder, data.seq_len).times(data.batch_size),
    }


def decoder_flops(decoder: DecoderConfig, tokens: int) -> ForwardFlops:
    """Returns the forward FLOPs of one row: projections, causal attention, MLP, LM head."""
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
