"""Initial values of weights that a source does not have."""

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from numpy.typing import NDArray

from stepaudio_jax.config import ModelConfig
from stepaudio_jax.models.encoder import Adaptor

STDDEV = 0.02  # of Qwen2's initializer_range


def random_rows(
    seed: int, name: str, start: int, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> NDArray[Any]:
    """Normal numbers (mean 0, standard deviation 0.02) for rows `start`.. of the tensor `name`; the same on every machine."""
    digest = hashlib.sha256(f"{seed} {name} {start}".encode()).digest()
    generator = np.random.Generator(np.random.SFC64(np.frombuffer(digest, np.uint32).tolist()))
    values = generator.standard_normal(shape, np.float32)
    values *= STDDEV
    return values.astype(dtype, copy=False)


def init_adaptor(config: ModelConfig, seed: int) -> dict[str, Any]:
    """A newly initialised adaptor, as the model initialises it: the tree `{"adaptor": ..}` of fp32 arrays."""
    adaptor = Adaptor(
        config.adaptor,
        inputs=config.encoder.hidden,
        outputs=config.decoder.hidden,
        param_dtype=jnp.dtype(jnp.float32),
        rngs=nnx.Rngs(params=jax.random.key(seed)),
    )
    return {"adaptor": nnx.to_pure_dict(nnx.split(adaptor)[1])}
