"""The Whisper-style audio encoder and the adaptor of Qwen2-Audio, exact under static shapes.

The reference runs one clip alone at its own length. Here a clip is padded to a bucket, and three
masks keep the numbers those of the clip alone: mel and the first convolution's output are zero
beyond the clip (a convolution sees its zero padding there), keys beyond the clip are masked, and
frames beyond the clip are zero after the pool (the adaptor's convolution sees its padding).

Rates: mel_frames at 100 Hz -> enc_frames at 50 Hz -> audio_frames at 25 Hz (features of the
encoder) -> audio_tokens at 12.5 Hz (outputs of the adaptor).
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from stepaudio_jax.audio.lengths import conv_frame_count, encoder_frame_count
from stepaudio_jax.config import AdaptorConfig, ComputeConfig, EncoderConfig, LengthConvention
from stepaudio_jax.kernels.attention import attention
from stepaudio_jax.kernels.partitioning import constrain
from stepaudio_jax.models.layers import (
    Conv,
    LayerNorm,
    Projection,
    gelu,
    normal,
    parameter,
    scan_layers,
)


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
        hidden = config.hidden
        self.config = config
        self.compute = compute
        self.length_convention = length_convention
        self.conv1 = Conv(config.mel_bins, hidden, stride=1, axes=("mel_bins", "embed"), **common)
        self.conv2 = Conv(hidden, hidden, stride=2, axes=("conv_input", "embed"), **common)
        self.positions = parameter(
            (config.positions, hidden),
            ("positions", "embed"),
            normal(0.02),
            dtype=param_dtype,
            rngs=rngs,
        )
        self.layers = EncoderLayer(config, compute=compute, **common)
        self.norm = LayerNorm(hidden, eps=config.norm_eps, **common)

    def __call__(
        self, mel: Float[Array, "clips mel_bins mel_frames"], mel_lengths: Int[Array, " clips"]
    ) -> Float[Array, "clips audio_frames enc_hidden"]:
        """Encodes a batch of clips.

        Args:
            mel: log-mel, fp32; mel_frames is the bucket.
            mel_lengths: frames of each clip; 0 where there is none.

        Returns:
            Features in the compute dtype, zero beyond each clip. audio_frames is
            ceil(mel_frames / 2) // 2.

        Raises:
            ValueError: the bucket is longer than the positional table.
        """
        mel_frames = mel.shape[-1]
        frames = conv_frame_count(mel_frames)
        if frames > self.config.positions:
            raise ValueError(
                f"{mel_frames} mel frames need {frames} encoder positions, and the table has "
                f"{self.config.positions}"
            )
        in_clip = _length_mask(mel_lengths, mel_frames)
        x = jnp.where(in_clip, mel.swapaxes(1, 2), 0).astype(self.compute.dtype)
        x = jnp.where(in_clip, gelu(self.conv1(x)), 0)
        x = gelu(self.conv2(x))
        x = x + self.positions[...][:frames].astype(x.dtype)
        frame_mask = encoder_frame_mask(mel_lengths, frames, self.length_convention)
        key_segment_ids = frame_mask.astype(jnp.int32)

        def apply(
            layer: EncoderLayer, x: Float[Array, "clips enc_frames enc_hidden"], _: None
        ) -> tuple[jax.Array, None]:
            return layer(x, key_segment_ids), None

        x, _ = scan_layers(self.layers, apply, x, compute=self.compute)
        pooled = x[:, : frames // 2 * 2].reshape(x.shape[0], frames // 2, 2, -1).mean(axis=2)
        pooled_lengths = encoder_frame_count(mel_lengths)
        return jnp.where(_length_mask(pooled_lengths, frames // 2), self.norm(pooled), 0)


class EncoderLayer(nnx.Module):
    """A pre-norm block: attention, then an MLP."""

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

    def __call__(
        self,
        x: Float[Array, "clips enc_frames enc_hidden"],
        key_segment_ids: Int[Array, "clips enc_frames"],
    ) -> Float[Array, "clips enc_frames enc_hidden"]:
        """Applies the block; keys of segment 0 are masked."""
        x = x + self.attention(self.attention_norm(x), key_segment_ids)
        x = x + self.mlp(self.mlp_norm(x))
        return constrain(x, ("batch", None, None), self.compute.rules)


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
        options: dict[str, Any] = {
            "dim_sizes": {"H": config.hidden, "N": config.heads, "D": config.head_dim},
            "stack": config.layers,
            "param_dtype": param_dtype,
            "rngs": rngs,
        }
        to_heads = ("embed", "encoder_heads", "head_dim")
        from_heads = ("encoder_heads", "head_dim", "embed")
        self.compute = compute
        self.query = Projection("BTH,HND->BTND", axes=to_heads, use_bias=True, **options)
        self.key = Projection("BTH,HND->BTND", axes=to_heads, use_bias=False, **options)
        self.value = Projection("BTH,HND->BTND", axes=to_heads, use_bias=True, **options)
        self.output = Projection("BTND,NDH->BTH", axes=from_heads, use_bias=True, **options)

    def __call__(
        self,
        x: Float[Array, "clips enc_frames enc_hidden"],
        key_segment_ids: Int[Array, "clips enc_frames"],
    ) -> Float[Array, "clips enc_frames enc_hidden"]:
        """Attends to keys of segment 1; every frame is a query."""
        out = attention(
            self.query(x),
            self.key(x),
            self.value(x),
            query_segment_ids=jnp.ones_like(key_segment_ids),
            key_segment_ids=key_segment_ids,
            compute=self.compute,
            # Frames are not sharded over the mesh: a clip is short, and clips are many.
            query_axes=("batch", None, "encoder_heads", None),
        )
        return self.output(out)


class EncoderMLP(nnx.Module):
    """down(gelu(up(x))), with the exact GELU."""

    def __init__(self, config: EncoderConfig, *, param_dtype: jnp.dtype, rngs: nnx.Rngs):
        options: dict[str, Any] = {
            "dim_sizes": {"H": config.hidden, "F": config.ffn},
            "use_bias": True,
            "stack": config.layers,
            "param_dtype": param_dtype,
            "rngs": rngs,
        }
        self.up = Projection("BTH,HF->BTF", axes=("ffn_embed", "ffn_kernel"), **options)
        self.down = Projection("BTF,FH->BTH", axes=("ffn_kernel", "ffn_embed"), **options)

    def __call__(
        self, x: Float[Array, "clips enc_frames enc_hidden"]
    ) -> Float[Array, "clips enc_frames enc_hidden"]:
        """Applies the MLP."""
        return self.down(gelu(self.up(x)))


class Adaptor(nnx.Module):
    """Features at 25 Hz -> decoder embeddings at 12.5 Hz.

    gelu(convolution of stride 2), then a two-layer ReLU MLP into the decoder's width.
    """

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
        self.conv = Conv(
            inputs, inputs, stride=config.stride, axes=("conv_input", "embed"), **common
        )
        self.up = Projection(
            "BTI,IF->BTF",
            axes=("ffn_embed", "ffn_kernel"),
            dim_sizes={"I": inputs, "F": config.ffn},
            use_bias=True,
            **common,
        )
        self.down = Projection(
            "BTF,FH->BTH",
            axes=("ffn_kernel", "ffn_embed"),
            dim_sizes={"F": config.ffn, "H": outputs},
            use_bias=True,
            **common,
        )

    def __call__(
        self, features: Float[Array, "clips audio_frames enc_hidden"]
    ) -> Float[Array, "clips audio_tokens H"]:
        """Maps features, zero beyond each clip, to embeddings; audio_tokens is ceil(frames / 2)."""
        return self.down(jax.nn.relu(self.up(gelu(self.conv(features)))))


def encoder_frame_mask(
    mel_lengths: Int[Array, " clips"], frames: int, convention: LengthConvention
) -> Bool[Array, "clips frames"]:
    """Returns which encoder frames (50 Hz) may be attended to.

    The released mask is `(arange(T) < L)[(T + 1) % 2 :: 2]`, with T the clip's mel frames and L =
    T - 2 ("hf") or T ("vllm").
    """
    total = mel_lengths[:, None]
    counted = total - 2 if convention == "hf" else total
    frame = jnp.arange(frames)[None, :]
    mel_frame = (total + 1) % 2 + 2 * frame
    return (mel_frame < counted) & (frame < conv_frame_count(total))


def _length_mask(lengths: jax.Array, frames: int) -> jax.Array:
    """Returns whether each frame is inside its clip: lengths [clips] -> [clips, frames, 1] bool."""
    return (jnp.arange(frames)[None, :] < lengths[:, None])[:, :, None]
