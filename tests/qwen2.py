"""transformers' Qwen2 in the shape of one of our decoders."""

from typing import Any

from transformers import Qwen2Config

from stepaudio_jax.config import DecoderConfig


def qwen2_config(decoder: DecoderConfig, **changes: Any) -> Qwen2Config:
    """The configuration transformers builds that decoder from."""
    return Qwen2Config(
        **{
            "vocab_size": decoder.vocab_size,
            "hidden_size": decoder.hidden,
            "intermediate_size": decoder.ffn,
            "num_hidden_layers": decoder.layers,
            "num_attention_heads": decoder.heads,
            "num_key_value_heads": decoder.kv_heads,
            "head_dim": decoder.head_dim,
            "rms_norm_eps": decoder.norm_eps,
            "rope_parameters": {"rope_type": "default", "rope_theta": decoder.rope_theta},
            "max_position_embeddings": decoder.max_positions,
            "tie_word_embeddings": decoder.tied_embeddings,
            **changes,
        }
    )
