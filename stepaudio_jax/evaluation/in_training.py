"""Evaluates the model of a training stage on benchmarks, every so many steps."""

import dataclasses
import os

from stepaudio_jax.errors import ConfigError
from stepaudio_jax.evaluation.evaluate import load_task
from stepaudio_jax.evaluation.model_under_test import LoadedModelUnderTest
from stepaudio_jax.evaluation.results import ModelIdentity
from stepaudio_jax.evaluation.runner import RunSettings, answer_task
from stepaudio_jax.evaluation.scoring import score_task
from stepaudio_jax.evaluation.task import Task
from stepaudio_jax.generation import LoadedModel
from stepaudio_jax.generation.shardings import decode_mesh
from stepaudio_jax.training.stage_context import StageContext
from stepaudio_jax.training.task_metrics import task_metric, task_name
from stepaudio_jax.training.train_state import ModelDef, TrainState


class StageTaskEvaluator:
    """Evaluates a stage's model on the tasks of `evaluation.tasks` (a `TaskEvaluator`).

    Items are chosen by `evaluation.task_limit`, the same ones each time. Only what a rule can score
    is scored: a judge would make training wait for it.

    Args:
        context: the stage, and what the run gives it.

    Raises:
        ConfigError: a task is unknown, is scored by a judge alone, or has no folder; names the key.
    """

    def __init__(self, context: StageContext):
        self._context = context
        self._tasks = [_find_task(context, entry) for entry in context.stage.evaluation.tasks]

    def check(self) -> None:
        """Reads the items of every task, as `evaluate` will.

        Raises:
            DataError: a folder is not the benchmark's; names the file and place.
        """
        for _, task, folder in self._tasks:
            task.items(folder)

    def evaluate(self, state: TrainState, model_def: ModelDef) -> dict[str, float]:
        """Returns the headline figure of each task, between 0 and 1, and counts of its items.

        Their names are evaluation/TASK, evaluation_unparsed/TASK (replies without a clear answer)
        and evaluation_failed/TASK (items without a reply).

        The replies are greedy, so that two evaluations differ by the weights alone. An item that
        cannot be answered counts as wrong.

        Args:
            state: the stage's train state, which stays as it is.
            model_def: the static side of the model.
        """
        context, evaluation = self._context, self._context.stage.evaluation
        mesh = decode_mesh(context.model, slices=context.config.mesh.slices)
        model_name = f"{context.stage.name} after step {int(state.step)}"
        model = LoadedModel(
            folder=model_name,
            config=context.model,
            parameters=model_def.params_with_lora(state),
            tokenizer=context.tokenizer,
            compute=dataclasses.replace(context.config.compute, remat="none"),
            mesh=None if mesh.size == 1 else mesh,
            channel=context.stage.data.channel,
            allow_urls=context.stage.data.allow_urls,
        )
        under_test = LoadedModelUnderTest(
            model, slots=evaluation.task_slots, identity=ModelIdentity(model_name, "folder", "")
        )
        settings = RunSettings(
            sampling={"temperature": 0.0, "max_new_tokens": evaluation.task_max_new_tokens},
            limit=evaluation.task_limit or None,
        )
        metrics: dict[str, float] = {}
        for name, task, folder in self._tasks:
            run = score_task(answer_task(task, folder, under_test, None, settings), None)
            figures = [metric for metric in run.metrics if not metric.group]
            headline = next(
                (m for m in figures if (m.scoring, m.name) == task.headline),
                next(iter(figures), None),
            )
            if headline is not None and headline.value is not None:
                metrics[task_metric(name)] = headline.value
                metrics[task_metric(name, "unparsed")] = headline.unparsed
            metrics[task_metric(name, "failed")] = len(run.errors)
        return metrics


def _find_task(context: StageContext, entry: str) -> tuple[str, Task, str]:
    """Returns name, task and folder of an entry of `evaluation.tasks`."""
    evaluation = context.stage.evaluation
    name, equals, folder = entry.partition("=")
    if not equals and evaluation.tasks_folder is not None:
        folder = os.path.join(evaluation.tasks_folder, name)
    key = f"stages.{context.stage.name}.evaluation.tasks"
    if not folder:
        raise ConfigError(
            f"{key}: {entry!r} names no folder; write NAME=FOLDER, or set evaluation.tasks_folder,"
            " which has a folder of each task's name"
        )
    task = load_task(name)
    if task.judge == "required":
        raise ConfigError(
            f"{key}: {name!r} is scored by a judge; evaluate it after training, with"
            " launch.evaluate"
        )
    return task_name(entry), task, folder
