"""The shape of a model: encoder, adaptor, decoder, and the presets of the released checkpoints."""

import dataclasses
from typing import Literal

from stepaudio_jax.config.checks import check_floats, check_positive
from stepaudio_jax.errors import ConfigError

LengthConvention = Literal["hf", "vllm"]
FloatDtype = Literal["float32", "bfloat16"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """The audio encoder, of Whisper-large-v3's form: log-mel at 100 Hz -> features at 25 Hz."""

    mel_bins: int = 128  # of the log-mel
    # Rows of the table of position embeddings, at 50 Hz; a chunk has up to twice as many mel
    # frames.
    positions: int = 1500
    hidden: int = 1280  # width of the residual stream
    heads: int = 20  # attention heads
    layers: int = 32  # transformer layers
    norm_eps: float = 1e-5  # epsilon of the layer norms

    def __post_init__(self) -> None:
        check_floats(self)
        check_positive(self, "mel_bins", "positions", "hidden", "heads", "layers")
        if self.hidden % self.heads:
            raise ConfigError(
                f"encoder hidden={self.hidden} is not a multiple of heads={self.heads}"
            )

    @property
    def head_dim(self) -> int:
        """Returns the width of an attention head."""
        return self.hidden // self.heads

    @property
    def ffn(self) -> int:
        """Returns the width of the feed-forward layers."""
        return 4 * self.hidden


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdaptorConfig:
    """The adaptor: encoder features at 25 Hz -> decoder embeddings at 12.5 Hz."""

    ffn: int = 2048  # width between its two linear layers
    kernel_size: Literal[3] = 3  # of the convolution
    stride: Literal[2] = 2  # of the convolution

    def __post_init__(self) -> None:
        check_positive(self, "ffn")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """The text decoder, of the Qwen2 family."""

    vocab_size: int = 158720  # rows of the embedding table
    hidden: int = 5120  # width of the residual stream
    ffn: int = 27648  # width of the feed-forward layers
    layers: int = 64  # transformer layers
    heads: int = 40  # query heads
    kv_heads: int = 8  # key and value heads
    head_dim: int = 128  # width of a head
    norm_eps: float = 1e-5  # epsilon of the RMS norms
    rope_theta: float = 1e6  # base of the rotary position embedding
    max_positions: int = 65536  # longest sequence
    tied_embeddings: bool = False  # the output layer uses the embedding table

    def __post_init__(self) -> None:
        check_floats(self)
        check_positive(self, "vocab_size", "hidden", "ffn", "layers", "heads", "kv_heads")
        check_positive(self, "head_dim", "max_positions")
        if self.heads % self.kv_heads:
            raise ConfigError(
                f"decoder heads={self.heads} is not a multiple of kv_heads={self.kv_heads}"
            )
        if self.head_dim % 2:
            raise ConfigError(f"decoder head_dim={self.head_dim} must be even for rotary positions")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The shape of a model; `preset` names one: r1_32b (the default), mini_8b or tiny."""

    encoder: EncoderConfig = EncoderConfig()  # audio encoder
    adaptor: AdaptorConfig = AdaptorConfig()  # from encoder to decoder
    decoder: DecoderConfig = DecoderConfig()  # text decoder
    # How the encoder's mask counts the frames of a clip: "hf" drops two (the released Hugging Face
    # code), "vllm" none.
    length_convention: LengthConvention = "hf"

    @staticmethod
    def presets() -> "dict[str, ModelConfig]":
        """Returns shapes by name: the released checkpoints, and `tiny`, which runs anywhere."""
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
