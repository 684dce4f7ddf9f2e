"""Reinforcement learning: rollouts, rewards, advantages, a clipped objective with KL penalty."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stepaudio_jax.judge.judge import Judge
    from stepaudio_jax.rl import verifiers
    from stepaudio_jax.rl.advantages import gae, grpo, rloo
    from stepaudio_jax.rl.losses import kl_loss, policy_loss, value_loss
    from stepaudio_jax.rl.rewards import compute_rewards
    from stepaudio_jax.rl.trainer import PolicyTrainer

__all__ = [
    "Judge",
    "PolicyTrainer",
    "compute_rewards",
    "gae",
    "grpo",
    "kl_loss",
    "policy_loss",
    "rloo",
    "value_loss",
    "verifiers",
]

_MODULES = {
    "Judge": "stepaudio_jax.judge.judge",
    "PolicyTrainer": "stepaudio_jax.rl.trainer",
    "compute_rewards": "stepaudio_jax.rl.rewards",
    "gae": "stepaudio_jax.rl.advantages",
    "grpo": "stepaudio_jax.rl.advantages",
    "kl_loss": "stepaudio_jax.rl.losses",
    "policy_loss": "stepaudio_jax.rl.losses",
    "rloo": "stepaudio_jax.rl.advantages",
    "value_loss": "stepaudio_jax.rl.losses",
}


def __getattr__(name: str) -> Any:
    """Imports a name on first use: a loss alone needs neither the engine nor the trainer."""
    if name == "verifiers":
        return importlib.import_module("stepaudio_jax.rl.verifiers")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
