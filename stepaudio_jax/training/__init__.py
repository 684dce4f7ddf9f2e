"""Training: objective, optimizer, train step, loop, checkpoints, metrics."""

from stepaudio_jax.training.checkpoints import export_checkpoint
from stepaudio_jax.training.flops import part_flops, step_flops
from stepaudio_jax.training.stage_context import StageContext
from stepaudio_jax.training.stage_step import make_stage_step
from stepaudio_jax.training.train_state import abstract_train_state
from stepaudio_jax.training.train_step import make_train_step
from stepaudio_jax.training.trainer import StageTrainer, SupervisedTrainer, run

__all__ = [
    "StageContext",
    "StageTrainer",
    "SupervisedTrainer",
    "abstract_train_state",
    "export_checkpoint",
    "make_stage_step",
    "make_train_step",
    "part_flops",
    "run",
    "step_flops",
]
