"""The Whisper-style audio encoder of Qwen2-Audio, exact under static shapes.

The reference runs one clip alone at its own length. Here a clip is padded to a bucket, and three
masks keep the numbers those of the clip alone: mel and the first convolution's output are zero
beyond the clip (a convolution sees its zero padding there), keys beyond the clip are masked, and
frames beyond the clip are zero after the pool (the adaptor's convolution sees its padding).
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from stepaudio_jax.audio.lengths import conv_frame_count, encoder_frame_count
from stepaudio_jax.config import AdaptorConfig, ComputeConfig, EncoderConfig, LengthConvention
from stepaudio_jax.kernels.attention import attention
from stepaudio_jax.kernels.partitioning import constrain
from stepaudio_jax.models.layers import Conv, LayerNorm, Projection, normal, parameter, scan_layers

# The adaptor: encoder features at 25 Hz -> decoder embeddings at 12.5 Hz.


class Adaptor(nnx.Module):
    """gelu(convolution of stride 2), then a two-layer ReLU MLP into the decoder's width."""

    def __init__(
        self,
        config: AdaptorConfig,
        *,
        inputs: int,
        outputs: int,
        param_dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        common: dict[str, Any] = {"param_dtype": param_dtype, "rngs": rngs}
        self.conv = Conv(inputs, inputs, stride=config.stride, letters="WIO", **common)
        self.up = Projection("BTE,EF->BTF", {"E": inputs, "F": config.ffn}, use_bias=True, **common)
        self.down = Projection(
            "BTF,FE->BTE", {"F": config.ffn, "E": outputs}, use_bias=True, **common
        )

    def __call__(self, features: jax.Array) -> jax.Array:
        """Features [B,F,H] (zero beyond each clip) -> [B, ceil(F/2), decoder's H]."""
        return self.down(jax.nn.relu(self.up(gelu(self.conv(features)))))


class EncoderAttention(nnx.Module):
    """Bidirectional attention; query, value and output have biases, the key has none."""

    def __init__(
        self,
        config: EncoderConfig,
        *,
        compute: ComputeConfig,
        param_dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.compute = compute
        sizes = {"H": config.hidden, "A": config.heads, "D": config.head_dim}
        options: dict[str, Any] = {
            "sizes": sizes,
            "stack": config.layers,
            "param_dtype": param_dtype,
            "rngs": rngs,
        }
        self.query = Projection("BTH,HAD->BTAD", use_bias=True, **options)
        self.key = Projection("BTH,HAD->BTAD", use_bias=False, **options)
        self.value = Projection("BTH,HAD->BTAD", use_bias=True, **options)
        self.output = Projection("BTAD,ADH->BTH", use_bias=True, **options)

    def __call__(self, x: jax.Array, key_segment_ids: jax.Array) -> jax.Array:
        out = attention(
            self.query(x),
            self.key(x),
            self.value(x),
            query_segment_ids=jnp.ones_like(key_segment_ids),  # queries are not masked
            key_segment_ids=key_segment_ids,
            compute=self.compute,
            letters="BSAD",  # frames are not cut: a chunk is short, and chunks are many
        )
        return self.output(out)


class EncoderMLP(nnx.Module):
    """down(gelu(up(x))), exact GELU."""

    def __init__(self, config: EncoderConfig, *, param_dtype: jnp.dtype, rngs: nnx.Rngs):
        sizes = {"E": config.hidden, "F": config.ffn}
        options: dict[str, Any] = {
            "sizes": sizes,
            "use_bias": True,
            "stack": config.layers,
            "param_dtype": param_dtype,
            "rngs": rngs,
        }
        self.up = Projection("BTE,EF->BTF", **options)
        self.down = Projection("BTF,FE->BTE", **options)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down(gelu(self.up(x)))


class EncoderLayer(nnx.Module):
    """Pre-norm block."""

    def __init__(
        self,
        config: EncoderConfig,
        *,
        compute: ComputeConfig,
        param_dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        stack: dict[str, Any] = {"stack": config.layers, "param_dtype": param_dtype, "rngs": rngs}
        self.compute = compute
        self.attention_norm = LayerNorm(config.hidden, eps=config.norm_eps, **stack)
        self.attention = EncoderAttention(
            config, compute=compute, param_dtype=param_dtype, rngs=rngs
        )
        self.mlp_norm = LayerNorm(config.hidden, eps=config.norm_eps, **stack)
        self.mlp = EncoderMLP(config, param_dtype=param_dtype, rngs=rngs)

    def __call__(self, x: jax.Array, key_segment_ids: jax.Array) -> jax.Array:
        x = x + self.attention(self.attention_norm(x), key_segment_ids)
        return constrain(x + self.mlp(self.mlp_norm(x)), "BSH", self.compute.rules)


class Encoder(nnx.Module):
    """Log-mel at 100 Hz -> features at 25 Hz."""

    def __init__(
        self,
        config: EncoderConfig,
        *,
        length_convention: LengthConvention,
        compute: ComputeConfig,
        param_dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        common: dict[str, Any] = {"param_dtype": param_dtype, "rngs": rngs}
        self.config = config
        self.compute = compute
        self.length_convention = length_convention
        self.conv1 = Conv(config.mel_bins, config.hidden, stride=1, letters="WMH", **common)
        self.conv2 = Conv(config.hidden, config.hidden, stride=2, letters="WIO", **common)
        self.positions = parameter(
            rngs, "PH", {"P": config.positions, "H": config.hidden}, normal(0.02), param_dtype
        )
        self.layers = EncoderLayer(config, compute=compute, **common)
        self.norm = LayerNorm(config.hidden, eps=config.norm_eps, **common)

    def __call__(self, mel: jax.Array, mel_lengths: jax.Array) -> jax.Array:
        """Encodes a batch of chunks.

        Args:
            mel: [B,M,F] fp32, F mel frames (the bucket).
            mel_lengths: [B] i32, frames of each chunk; 0 for an empty place.

        Returns:
            [B, ceil(F/2) // 2, H] in the compute dtype, zero beyond each chunk.

        Raises:
            ValueError: the bucket is longer than the positional table.
        """
        mel_frames = mel.shape[-1]
        frames = conv_frame_count(mel_frames)
        if frames > self.config.positions:
            raise ValueError(
                f"{mel_frames} mel frames need {frames} encoder positions, and the table has {self.config.positions}"
            )
        x = jnp.where(_length_mask(mel_lengths, mel_frames), mel.swapaxes(1, 2), 0).astype(
            self.compute.dtype
        )
        x = jnp.where(_length_mask(mel_lengths, mel_frames), gelu(self.conv1(x)), 0)
        x = gelu(self.conv2(x))
        x = x + self.positions[...][:frames].astype(x.dtype)
        visible = encoder_frame_mask(mel_lengths, frames, self.length_convention).astype(jnp.int32)

        def apply(layer: EncoderLayer, x: jax.Array, _: None) -> tuple[jax.Array, None]:
            return layer(x, visible), None

        x, _ = scan_layers(self.layers, apply, x, compute=self.compute)
        pooled = x[:, : frames // 2 * 2].reshape(x.shape[0], frames // 2, 2, -1).mean(axis=2)
        pooled_lengths = encoder_frame_count(mel_lengths)
        return jnp.where(_length_mask(pooled_lengths, frames // 2), self.norm(pooled), 0)


def encoder_frame_mask(
    mel_lengths: jax.Array, frames: int, convention: LengthConvention
) -> jax.Array:
    """Which encoder frames (50 Hz) may be attended to: [B] i32 -> [B, frames] bool.

    The released mask is `(arange(T) < L)[(T + 1) % 2 :: 2]`, with T the clip's mel frames and L = T
    - 2 ("hf") or T ("vllm").
    """
    total = mel_lengths[:, None]
    counted = total - 2 if convention == "hf" else total
    frame = jnp.arange(frames)[None, :]
    mel_frame = (total + 1) % 2 + 2 * frame
    return (mel_frame < counted) & (frame < conv_frame_count(total))


def gelu(x: jax.Array) -> jax.Array:
    """Exact GELU, x / 2 (1 + erf(x / sqrt 2)), in fp32 (Hendrycks and Gimpel 2016, eq. 1; jax.nn's, with erfc, is slower)."""
    wide = x.astype(jnp.float32)
    return (0.5 * wide * (1 + jax.lax.erf(wide * math.sqrt(0.5)))).astype(x.dtype)


def _length_mask(lengths: jax.Array, frames: int) -> jax.Array:
    """[B] -> [B, frames, 1] bool: is this frame inside the clip?"""
    return (jnp.arange(frames)[None, :] < lengths[:, None])[:, :, None]
