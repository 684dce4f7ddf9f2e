"""Reinforcement learning: advantages, the clipped objective with KL to a reference, verdicts and rubrics."""
