"""The functions of `import stepaudio_jax as sa` that join rooms which may not import each other."""

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence

import ml_dtypes
import numpy as np

from stepaudio_jax import hub
from stepaudio_jax.config import Config, FloatDtype
from stepaudio_jax.data.checking import CheckedData
from stepaudio_jax.evaluation.evaluate import JudgeSettings, run_tasks, save_results
from stepaudio_jax.evaluation.grading import as_text
from stepaudio_jax.evaluation.in_training import StageTaskEvaluator
from stepaudio_jax.evaluation.model_under_test import FolderModel, ModelUnderTest
from stepaudio_jax.evaluation.results import BenchmarkResults
from stepaudio_jax.evaluation.results_table import tabulate_results
from stepaudio_jax.evaluation.runner import RunSettings
from stepaudio_jax.reports.benchmark_page import write_benchmark_page
from stepaudio_jax.rl import PolicyTrainer
from stepaudio_jax.storage import Path, PathLike, expand_home, to_path
from stepaudio_jax.training import trainer
from stepaudio_jax.training.stage_context import StageContext


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
    return trainer.run(config, _stage_trainer, StageTaskEvaluator)


def check_data(config: Config) -> Iterator[CheckedData]:
    """Checks what a run would read, as `train` does before it begins, and writes nothing.

    Yields:
        What was found in each stage's data, and in that of its evaluation.

    Raises:
        ConfigError, DataError, CheckpointError: the run could not begin; names the key or the file.
    """
    return trainer.check_data(config, _stage_trainer)


def _stage_trainer(context: StageContext) -> trainer.StageTrainer:
    """Returns the trainer that a stage's objective asks for."""
    if context.stage.has_rollouts:
        return PolicyTrainer(context)
    return trainer.SupervisedTrainer(context)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Holds what `evaluate` found.

    Attributes:
        folder: with `results.json`, `samples.jsonl` and `report.html`.
        results: every task's figures.
    """

    folder: str
    results: BenchmarkResults

    @property
    def errors(self) -> dict[str, str]:
        """Returns {"TASK ID": why the item has no reply}."""
        return {
            f"{task.name} {error.id}": error.message
            for task in self.results.tasks
            for error in task.errors
        }

    def __str__(self) -> str:
        return as_text(tabulate_results(self.results))


def evaluate(
    model: PathLike | ModelUnderTest,
    tasks: Mapping[str, PathLike],
    output: PathLike,
    *,
    settings: RunSettings | None = None,
    judge: JudgeSettings | None = None,
    prompts: Mapping[str, PathLike] | None = None,
    controls: Sequence[PathLike] = (),
) -> Evaluation:
    """Evaluates a model on benchmarks; the same call goes on from an interrupted one.

    Args:
        model: a folder of ours or of Hugging Face, or an `EndpointModel`.
        tasks: {name of a task, or a Python file that defines one: its folder of data}.
        output: the folder of the results.
        settings: how the tasks are run; None for each task's own protocol.
        judge: of tasks that a judge scores.
        prompts: {task: folder of its official prompts}, where the data do not have them.
        controls: results of the same model in silence or with transcripts, which the page shows
            beside these.

    Raises:
        ConfigError, DataError, CheckpointError, OutputError: it cannot begin; names the key or
            file.
        JudgeError, EndpointError: the judge or the model does not answer; what is done is kept.
    """
    under_test = FolderModel(model) if isinstance(model, str | os.PathLike) else model
    runs = run_tasks(
        under_test, tasks, output, settings or RunSettings(), judge=judge, prompts=prompts or {}
    )
    results = save_results(output, under_test.identity, runs, list(tasks.values()))
    write_benchmark_page(output, controls=controls)
    return Evaluation(os.fspath(output), results)


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
