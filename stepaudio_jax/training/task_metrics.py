"""The place of benchmarks in training: what evaluates them, and how metrics name their figures."""

import pathlib
from typing import Literal, Protocol

from stepaudio_jax.training.train_state import ModelDef, TrainState


class TaskEvaluator(Protocol):
    """Evaluates a stage's model on benchmarks; `evaluation.in_training` has it."""

    def check(self) -> None:
        """Checks the benchmarks' data, before the run writes anything.

        Raises:
            DataError: they cannot be read.
        """

    def evaluate(self, state: TrainState, model_def: ModelDef) -> dict[str, float]:
        """Returns the metrics of the model that a train state holds."""
        ...


def task_name(entry: str) -> str:
    """Returns the name of the task of an entry of `evaluation.tasks`, NAME=FOLDER or NAME.

    That of a Python file is the file's, without its ending.
    """
    return pathlib.PurePath(entry.partition("=")[0]).stem


def task_metric(name: str, count: Literal["", "unparsed", "failed"] = "") -> str:
    """Returns the name of the metric of a task: a share between 0 and 1, or a count of its items.

    Args:
        name: of the task.
        count: "unparsed" for replies without a clear answer, "failed" for items without a reply.
    """
    return f"evaluation_{count}/{name}" if count else f"evaluation/{name}"
