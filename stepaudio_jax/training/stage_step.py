"""The steps of a stage whose batches come from data: which ones its objective asks for."""

from collections.abc import Mapping

import optax

from stepaudio_jax.config import Preference, StageConfig
from stepaudio_jax.training.preference_step import (
    make_preference_eval_step,
    make_preference_step,
    preference_means,
)
from stepaudio_jax.training.train_state import ModelDef
from stepaudio_jax.training.train_step import EvalStep, TrainStep, make_eval_step, make_train_step


def make_stage_step(
    model_def: ModelDef, stage: StageConfig, optimizer: optax.GradientTransformation
) -> TrainStep:
    """Returns the train step of a stage of next-token prediction or preferences, not yet jitted."""
    if isinstance(stage.objective, Preference):
        return make_preference_step(model_def, stage, optimizer)
    return make_train_step(model_def, stage, optimizer)


def make_stage_eval_step(
    model_def: ModelDef, stage: StageConfig, num_microbatches: int
) -> EvalStep:
    """Returns the stage's evaluation step: sums over a batch, of which `evaluation_means` are made.

    Args:
        model_def: of the model.
        stage: its objective decides.
        num_microbatches: parts into which rows are split.
    """
    if isinstance(stage.objective, Preference):
        return make_preference_eval_step(model_def, stage.objective, num_microbatches)
    return make_eval_step(model_def, num_microbatches)


def evaluation_means(sums: Mapping[str, float], stage: StageConfig) -> dict[str, float] | None:
    """Returns the loss and the other metrics of held-out data from the sums over its batches.

    Returns None where the batches hold nothing that the loss counts.
    """
    if isinstance(stage.objective, Preference):
        if not sums["pairs"]:
            return None
        means = preference_means(sums, stage.objective)
        return {name: float(mean) for name, mean in means.items()} | {"pairs": sums["pairs"]}
    if not sums["loss_tokens"]:
        return None
    return {
        "loss": sums["loss_sum"] / sums["loss_tokens"],
        "token_accuracy": sums["correct_tokens"] / sums["loss_tokens"],
    }
