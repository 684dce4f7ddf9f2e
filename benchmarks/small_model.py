"""The 30 M-parameter model that the benchmarks run on a CPU."""

from stepaudio_jax.config import AdaptorConfig, DecoderConfig, EncoderConfig, ModelConfig


def small_model(max_positions: int, *, vocab_size: int = 6144) -> ModelConfig:
    """Returns the model's shape: its encoder is of Whisper tiny's size.

    Args:
        max_positions: of the decoder, in tokens.
        vocab_size: of the decoder. A smaller one makes the model smaller.
    """
    return ModelConfig(
        encoder=EncoderConfig(hidden=384, heads=6, layers=4),
        adaptor=AdaptorConfig(ffn=512),
        decoder=DecoderConfig(
            vocab_size=vocab_size,
            hidden=512,
            ffn=1536,
            layers=8,
            heads=8,
            kv_heads=2,
            head_dim=64,
            max_positions=max_positions,
        ),
        length_convention="vllm",
    )
