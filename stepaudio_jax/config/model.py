"""The shape of a model: encoder, adaptor, decoder, and the presets of the released checkpoints."""

import dataclasses
from typing import Literal

from stepaudio_jax.config.build import check_floats
from stepaudio_jax.errors import ConfigError

LengthConvention = Literal["hf", "vllm"]
FloatDtype = Literal["float32", "bfloat16"]


def _check_positive(config: object, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if value <= 0:
            raise ConfigError(f"{name}={value} must be positive")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """The Whisper-large-v3-shaped audio encoder (log-mel frames at 100 Hz -> features at 25 Hz)."""

    mel_bins: int = 128
    positions: int = (
        1500  # rows of the positional table, at 50 Hz; a chunk has at most twice as many mel frames
    )
    hidden: int = 1280
    heads: int = 20
    layers: int = 32
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        check_floats(self)
        _check_positive(self, "mel_bins", "positions", "hidden", "heads", "layers")
        if self.hidden % self.heads:
            raise ConfigError(
                f"encoder hidden={self.hidden} is not a multiple of heads={self.heads}"
            )

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    @property
    def ffn(self) -> int:
        return 4 * self.hidden


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdaptorConfig:
    """The adaptor (encoder features at 25 Hz -> decoder embeddings at 12.5 Hz)."""

    ffn: int = 2048
    kernel_size: Literal[3] = 3
    stride: Literal[2] = 2

    def __post_init__(self) -> None:
        _check_positive(self, "ffn")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """The Qwen2-family decoder."""

    vocab_size: int = 158720
    hidden: int = 5120
    ffn: int = 27648
    layers: int = 64
    heads: int = 40
    kv_heads: int = 8
    head_dim: int = 128
    norm_eps: float = 1e-5
    rope_theta: float = 1e6
    max_positions: int = 65536
    tied_embeddings: bool = False

    def __post_init__(self) -> None:
        check_floats(self)
        _check_positive(
            self,
            "vocab_size",
            "hidden",
            "ffn",
            "layers",
            "heads",
            "kv_heads",
            "head_dim",
            "max_positions",
        )
        if self.heads % self.kv_heads:
            raise ConfigError(
                f"decoder heads={self.heads} is not a multiple of kv_heads={self.kv_heads}"
            )
        if self.head_dim % 2:
            raise ConfigError(f"decoder head_dim={self.head_dim} must be even for rotary positions")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A whole audio-to-text model."""

    encoder: EncoderConfig = EncoderConfig()
    adaptor: AdaptorConfig = AdaptorConfig()
    decoder: DecoderConfig = DecoderConfig()
    # How the encoder's mask counts the frames of a clip: "hf" drops two (the released Hugging Face
    # code), "vllm" none.
    length_convention: LengthConvention = "hf"

    @staticmethod
    def presets() -> "dict[str, ModelConfig]":
        """Named shapes: the released checkpoints and `tiny`, which runs anywhere."""
        return {
            "r1_32b": ModelConfig(),
            "mini_8b": ModelConfig(
                decoder=DecoderConfig(
                    hidden=3584,
                    ffn=18944,
                    layers=28,
                    heads=28,
                    kv_heads=4,
                    norm_eps=1e-6,
                    max_positions=16384,
                )
            ),
            "tiny": ModelConfig(
                encoder=EncoderConfig(hidden=64, heads=4, layers=2),
                adaptor=AdaptorConfig(ffn=128),
                decoder=DecoderConfig(
                    vocab_size=320,
                    hidden=64,
                    ffn=160,
                    layers=2,
                    heads=4,
                    kv_heads=2,
                    head_dim=16,
                    max_positions=4096,
                ),
            ),
        }
