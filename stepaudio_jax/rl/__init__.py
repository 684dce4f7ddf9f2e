"""Reinforcement learning: rollouts, rewards and the judge, advantages, the clipped objective with KL to a reference."""

from stepaudio_jax.rl.trainer import PolicyTrainer

__all__ = ["PolicyTrainer"]
