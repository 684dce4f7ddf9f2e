"""A small model whose parameters are all random: no bias is zero, no norm scale is one."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from stepaudio_jax.config import (
    AdaptorConfig,
    ComputeConfig,
    DecoderConfig,
    EncoderConfig,
    ModelConfig,
)
from stepaudio_jax.models import StepAudio, abstract_model, abstract_parameters

SMALL = ModelConfig(
    encoder=EncoderConfig(mel_bins=128, hidden=96, heads=4, layers=2),
    adaptor=AdaptorConfig(ffn=80),
    decoder=DecoderConfig(
        vocab_size=211,
        hidden=48,
        ffn=112,
        layers=3,
        heads=6,
        kv_heads=2,
        head_dim=8,
        max_positions=4096,
    ),
)
FLOAT32 = ComputeConfig(dtype="float32", remat="none", unroll=1)


def random_parameters(config: ModelConfig, seed: int = 0, scale: float = 0.15) -> Any:
    """Normal values of a size that keeps activations of order one, in every leaf."""
    rng = np.random.default_rng(seed)

    def draw(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        return jnp.asarray(scale * rng.standard_normal(leaf.shape, np.float32))

    return jax.tree.map(draw, abstract_parameters(config))


def model_with(parameters: Any, config: ModelConfig, compute: ComputeConfig = FLOAT32) -> StepAudio:
    """The module holding these parameters."""
    return nnx.merge(abstract_model(config, compute)[0], parameters)
