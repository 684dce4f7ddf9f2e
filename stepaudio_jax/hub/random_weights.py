"""A valid Hugging Face folder with random weights, to try everything without a download."""

import pathlib
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from stepaudio_jax.config import ModelConfig
from stepaudio_jax.hub.checkpoint import check_vocab_size
from stepaudio_jax.hub.convert import write_config_files
from stepaudio_jax.hub.hf_config import HFConfigForm
from stepaudio_jax.hub.init_weights import random_rows
from stepaudio_jax.hub.io import ProgressCallback, ordered_parallel_map
from stepaudio_jax.hub.safetensors import MAX_SHARD_BYTES, ShardWriter, TensorSpec
from stepaudio_jax.hub.tensor_map import STEP_AUDIO, Block, Tensor, tensors
from stepaudio_jax.storage import PathLike, atomic_directory, check_output_directory
from stepaudio_jax.text import Tokenizer


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

    Matrices and biases are normal with standard deviation 0.02 (biases too, so that a conversion
    that loses one shows), norm scales one plus that. The values do not depend on the dtype but for
    its rounding, nor on the sharding.

    Args:
        config: the shape.
        output: the folder to create.
        tokenizer: whose files are written.
        seed: of the weights.
        dtype: of the weights; bfloat16 if None.
        max_shard_bytes: of the tensors in one shard.
        form: of `config.json`.
        progress: called as bytes are written.

    Raises:
        CheckpointError: the output exists.
    """
    dtype = np.dtype(ml_dtypes.bfloat16) if dtype is None else dtype
    check_vocab_size(tokenizer, config.decoder.vocab_size)
    expected = tensors(config, STEP_AUDIO)
    planned = [TensorSpec(tensor.name, tensor.shape, dtype) for tensor in expected]

    def values(item: tuple[Tensor, Block]) -> NDArray[Any]:
        tensor, block = item
        shape = (block.rows.stop - block.rows.start, *tensor.shape[1:])
        drawn = random_rows(seed, tensor.name, block.rows.start, shape, np.dtype(np.float32))
        if tensor.path[-1] == "scale":
            drawn += 1
        return drawn.astype(dtype, copy=False)

    total = sum(tensor.bytes for tensor in planned)
    done = 0
    check_output_directory(pathlib.Path(output))
    with atomic_directory(pathlib.Path(output), total) as folder:
        tokenizer.save(folder)
        write_config_files(folder, config, tokenizer, dtype=str(dtype), form=form)
        with ShardWriter(folder, planned, max_shard_bytes) as writer:
            for rows in ordered_parallel_map(
                values, ((tensor, block) for tensor in expected for block in tensor.blocks())
            ):
                writer.append(rows)
                done += rows.nbytes
                progress(done, total)
