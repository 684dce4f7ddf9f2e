"""Training: objective, optimizer, train step, loop, checkpoints, metrics."""

from stepaudio_jax.training.loop import train

__all__ = ["train"]
