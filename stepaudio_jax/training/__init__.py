"""Training: objective, optimizer, train step, loop, checkpoints, metrics."""

from stepaudio_jax.training.flops import part_flops, step_flops
from stepaudio_jax.training.loop import train
from stepaudio_jax.training.saved_model import save_model_of
from stepaudio_jax.training.start import describe_stage
from stepaudio_jax.training.step import make_train_step

__all__ = ["describe_stage", "make_train_step", "part_flops", "save_model_of", "step_flops", "train"]
