"""The adaptor: encoder features at 25 Hz -> decoder embeddings at 12.5 Hz."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from stepaudio_jax.config import AdaptorConfig
from stepaudio_jax.models.encoder import gelu
from stepaudio_jax.models.layers import Conv, Projection


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
