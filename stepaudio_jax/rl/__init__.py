"""Reinforcement learning: rollouts, rewards and the judge, advantages, the clipped objective with KL to a reference."""

from stepaudio_jax.rl.judge import JudgeError
from stepaudio_jax.rl.loop import POLICY_STAGE

__all__ = ["POLICY_STAGE", "JudgeError"]
