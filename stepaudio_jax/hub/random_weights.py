"""Writes Hugging Face folders with random weights, to try programs without a download."""

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax import nnx
from numpy.typing import NDArray

from stepaudio_jax.config import ModelConfig
from stepaudio_jax.errors import CheckpointError
from stepaudio_jax.hub.checkpoint import check_vocab_size
from stepaudio_jax.hub.hf_config import HFConfigForm, write_config_files
from stepaudio_jax.hub.io import ProgressCallback, ordered_parallel_map
from stepaudio_jax.hub.safetensors import MAX_SHARD_BYTES, ShardWriter, TensorSpec
from stepaudio_jax.hub.tensor_map import STEP_AUDIO, Block, Tensor, tensors
from stepaudio_jax.models.encoder import Adaptor
from stepaudio_jax.storage import (
    PathLike,
    atomic_directory,
    check_output_directory,
    read_json,
    read_json_or_none,
    to_path,
    write_json,
)
from stepaudio_jax.text import Tokenizer

_STDDEV = 0.02  # Qwen2's initializer_range


# The key of config.json that says so; other readers ignore it, and no trained model has it.
_MARK = "stepaudio_jax_random_weights"
_CONFIG = "config.json"


def has_random_weights(folder: PathLike) -> bool:
    """Returns whether `write_random_weights` wrote a folder, so that its model says nothing."""
    config = read_json_or_none(to_path(folder) / _CONFIG)
    return isinstance(config, dict) and config.get(_MARK) is True


def write_random_weights(
    config: ModelConfig,
    output: PathLike,
    *,
    tokenizer: Tokenizer,
    seed: int = 0,
    dtype: np.dtype[Any] | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    form: HFConfigForm = "nested",
    progress: ProgressCallback = lambda done, total: None,
) -> None:
    """Writes a Step-Audio folder with random weights, seeded tensor by tensor.

    Matrices and biases are normal with standard deviation 0.02 (biases too, to show a conversion
    that loses one), norm scales are one plus that. The values depend neither on the sharding nor,
    apart from rounding, on the dtype.

    Args:
        config: the shape.
        output: the folder to create.
        tokenizer: whose files are written.
        seed: decides the weights.
        dtype: dtype of the weights; bfloat16 if None.
        max_shard_bytes: of the tensors in one shard.
        form: of `config.json`.
        progress: called as bytes are written.

    Raises:
        CheckpointError: the vocabulary has no row for some token.
        OutputError: the output exists, or cannot be written.
    """
    dtype = np.dtype(ml_dtypes.bfloat16) if dtype is None else dtype
    check_vocab_size(tokenizer, config.decoder.vocab_size)
    expected = tensors(config, STEP_AUDIO)
    planned = [TensorSpec(tensor.name, tensor.shape, dtype) for tensor in expected]

    def draw(item: tuple[Tensor, Block]) -> NDArray[Any]:
        tensor, block = item
        shape = (block.rows.stop - block.rows.start, *tensor.shape[1:])
        drawn = random_rows(seed, tensor.name, block.rows.start, shape, np.dtype(np.float32))
        if tensor.path[-1] == "scale":
            drawn += 1
        return drawn.astype(dtype, copy=False)

    total = sum(tensor.bytes for tensor in planned)
    written = 0
    check_output_directory(to_path(output))
    with atomic_directory(to_path(output), total) as folder:
        tokenizer.save(folder)
        write_config_files(folder, config, tokenizer, dtype=str(dtype), form=form)
        config_path = folder / _CONFIG
        write_json(config_path, {**read_json(config_path, CheckpointError), _MARK: True})
        with ShardWriter(folder, planned, max_shard_bytes) as writer:
            for rows in ordered_parallel_map(
                draw, ((tensor, block) for tensor in expected for block in tensor.blocks())
            ):
                writer.append(rows)
                written += rows.nbytes
                progress(written, total)


def random_rows(
    seed: int, name: str, start: int, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> NDArray[Any]:
    """Draws rows of a tensor from a normal distribution, the same on every machine.

    Args:
        seed: decides the model's weights.
        name: of the tensor.
        start: the first row.
        shape: of the rows.
        dtype: to which the fp32 numbers are rounded.

    Returns:
        Values of mean 0 and standard deviation 0.02.
    """
    digest = hashlib.sha256(f"{seed} {name} {start}".encode()).digest()
    generator = np.random.Generator(np.random.SFC64(np.frombuffer(digest, np.uint32).tolist()))
    values = generator.standard_normal(shape, np.float32)
    values *= _STDDEV
    return values.astype(dtype, copy=False)


def init_adaptor(config: ModelConfig, seed: int) -> dict[str, Any]:
    """Initialises an adaptor as the model does; returns `{"adaptor": ..}`, in fp32."""
    adaptor = Adaptor(
        config.adaptor,
        inputs=config.encoder.hidden,
        outputs=config.decoder.hidden,
        param_dtype=jnp.dtype(jnp.float32),
        rngs=nnx.Rngs(params=jax.random.key(seed)),
    )
    return {"adaptor": nnx.to_pure_dict(nnx.split(adaptor)[1])}
