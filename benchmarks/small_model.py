"""The 30 M-parameter model that the benchmarks run on a CPU."""

from stepaudio_jax.config import AdaptorConfig, DecoderConfig, EncoderConfig, ModelConfig


def small_model(max_positions: int) -> ModelConfig:
    """Returns the model's shape: its encoder is of Whisper tiny's size.

    Args:
        max_positions: of the decoder, in tokens.
    """
    return ModelConfig(
        encoder=EncoderConfig(hidden=384, heads=6, layers=4),
        adaptor=AdaptorConfig(ffn=512),
        decoder=DecoderConfig(
            vocab_size=6144,
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
