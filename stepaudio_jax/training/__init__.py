"""Training: objective, optimizer, train step, loop, checkpoints, metrics."""

from stepaudio_jax.training.flops import part_flops, step_flops
from stepaudio_jax.training.loop import train
from stepaudio_jax.training.saved_model import export_checkpoint
from stepaudio_jax.training.start import abstract_train_state
from stepaudio_jax.training.step import make_train_step

__all__ = [
    "abstract_train_state",
    "export_checkpoint",
    "make_train_step",
    "part_flops",
    "step_flops",
    "train",
]
