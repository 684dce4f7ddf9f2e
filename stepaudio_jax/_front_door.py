"""The functions of `import stepaudio_jax as sa` that join rooms which may not import each other."""

import os
from collections.abc import Iterator

import ml_dtypes
import numpy as np

from stepaudio_jax import hub
from stepaudio_jax.config import Config, FloatDtype
from stepaudio_jax.data.checking import CheckedData
from stepaudio_jax.rl import PolicyTrainer
from stepaudio_jax.storage import Path, PathLike, expand_home, to_path
from stepaudio_jax.training import trainer


def train(config: Config) -> Path:
    """Trains a model, stage by stage; the same call goes on from an interrupted run.

    Args:
        config: stages of supervised learning and of reinforcement learning alike.

    Returns:
        The folder of the finished model.

    Raises:
        ConfigError, DataError, CheckpointError: the run cannot start; names the key or the file.
        InterruptedRunError: SIGTERM or Ctrl-C came; everything is saved.
        DivergedError: too many steps in a row were not finite.
        JudgeError: the judge abstained too often.
    """
    return trainer.run(config, _stage_trainer)


def check_data(config: Config) -> Iterator[CheckedData]:
    """Checks what a run would read, as `train` does before it begins, and writes nothing.

    Yields:
        What was found in each stage's data, and in that of its evaluation.

    Raises:
        ConfigError, DataError, CheckpointError: the run could not begin; names the key or the file.
    """
    return trainer.check_data(config, _stage_trainer)


def _stage_trainer(context: trainer.StageContext) -> trainer.StageTrainer:
    """Returns the trainer that a stage's objective asks for."""
    if context.stage.has_rollouts:
        return PolicyTrainer(context)
    return trainer.SupervisedTrainer(context)


def convert(
    source: PathLike,
    output: PathLike,
    *,
    dtype: FloatDtype | None = None,
) -> Path:
    """Converts a Hugging Face folder to a checkpoint of this project, or the other way.

    `tools.convert_weights` has further options: adapters, an encoder of another model, shard sizes.

    Args:
        source: a Hugging Face folder, or a checkpoint of this project.
        output: the folder to create.
        dtype: dtype of the written weights; None leaves them as they are.

    Returns:
        The created folder.

    Raises:
        CheckpointError: the source cannot be read, or the output exists.
    """
    paths = [to_path(expand_home(os.fspath(path))) for path in (source, output)]
    numpy_dtype = None
    if dtype is not None:
        numpy_dtype = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    if hub.is_checkpoint(paths[0]):
        hub.export_weights(*paths, dtype=numpy_dtype)
    else:
        hub.import_weights(*paths, dtype=numpy_dtype)
    return paths[1]
