"""The steps of a stage whose batches come from data: which ones its objective asks for."""

from collections.abc import Callable, Mapping
from typing import Any

import optax

from stepaudio_jax.config import Distillation, Preference, StageConfig
from stepaudio_jax.training.distillation_step import (
    distillation_means,
    make_distillation_eval_step,
    make_distillation_step,
)
from stepaudio_jax.training.preference_step import (
    make_preference_eval_step,
    make_preference_step,
    preference_means,
)
from stepaudio_jax.training.teacher import TeacherDef
from stepaudio_jax.training.train_state import ModelDef, TrainState
from stepaudio_jax.training.train_step import Metrics, make_eval_step, make_train_step

# (state, batch), and the teacher's parameters where the stage has a teacher.
StageStep = Callable[..., tuple[TrainState, Metrics]]
StageEvalStep = Callable[..., Metrics]


def make_stage_step(
    model_def: ModelDef,
    stage: StageConfig,
    optimizer: optax.GradientTransformation,
    teacher: TeacherDef | None = None,
) -> StageStep:
    """Returns the train step that the stage's objective asks for, not yet jitted."""
    if isinstance(stage.objective, Preference):
        return make_preference_step(model_def, stage, optimizer)
    if teacher is not None:
        return make_distillation_step(model_def, stage, optimizer, teacher)
    return make_train_step(model_def, stage, optimizer)


def make_stage_eval_step(
    model_def: ModelDef,
    stage: StageConfig,
    num_microbatches: int,
    teacher: TeacherDef | None = None,
) -> StageEvalStep:
    """Returns the stage's evaluation step: sums over a batch, of which `evaluation_means` are made.

    Args:
        model_def: of the model.
        stage: its objective decides.
        num_microbatches: parts into which rows are split.
        teacher: of the stage, if it has one.
    """
    if isinstance(stage.objective, Preference):
        return make_preference_eval_step(model_def, stage.objective, num_microbatches)
    if teacher is not None:
        return make_distillation_eval_step(model_def, stage, num_microbatches, teacher)
    return make_eval_step(model_def, num_microbatches)


def evaluation_means(sums: Mapping[str, float], stage: StageConfig) -> dict[str, float] | None:
    """Returns the loss and the other metrics of held-out data from the sums over its batches.

    Returns None where the batches hold nothing that the loss counts.
    """
    means: Mapping[str, Any]
    if isinstance(stage.objective, Preference):
        if not sums["pairs"]:
            return None
        means = preference_means(sums, stage.objective) | {"pairs": sums["pairs"]}
        return {name: float(mean) for name, mean in means.items()}
    if not sums["loss_tokens"]:
        return None
    if isinstance(stage.objective, Distillation):
        means = distillation_means(sums, stage.objective)
        return {name: float(mean) for name, mean in means.items()}
    return {
        "loss": sums["loss_sum"] / sums["loss_tokens"],
        "token_accuracy": sums["correct_tokens"] / sums["loss_tokens"],
    }
