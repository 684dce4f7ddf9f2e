"""From rewards to what a step learns: advantages, weights, and log-probabilities laid out in rows."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from stepaudio_jax.config import PolicyConfig
from stepaudio_jax.rl.advantages import grpo, reinforce_with_baseline, rloo
from stepaudio_jax.rl.aggregation import token_weights
from stepaudio_jax.rl.rewards import Reward
from stepaudio_jax.rl.rollouts import Rollout


def advantages(rollouts: Sequence[Rollout], rewards: Sequence[Reward], config: PolicyConfig) -> tuple[NDArray, NDArray]:
    """Of every rollout its advantage [N] f32, and whether it is learnt from [N] bool.

    It is not where the judge abstained, nor where too few or too many replies to its prompt are right (`config.keep_right`):
    such a prompt teaches nothing yet, or nothing more (Step-Audio-R1, section 3.3).
    """
    groups = np.array([rollout.group for rollout in rollouts], np.int32)
    valid = np.array([reward.value is not None for reward in rewards])
    values = np.array([reward.value or 0.0 for reward in rewards], np.float32)
    if config.keep_right is not None:
        least, most = config.keep_right
        right = np.bincount(groups, [float(reward.right is True) for reward in rewards], minlength=int(groups.max()) + 1)
        valid &= ((least <= right) & (right <= most))[groups]
    arrays = jnp.asarray(values), jnp.asarray(groups), jnp.asarray(valid)
    if config.baseline == "rloo":
        found = rloo(*arrays)
    elif config.baseline == "reinforce":
        found = reinforce_with_baseline(*arrays)
    else:
        found = grpo(*arrays, scaled=config.baseline == "grpo")
    return np.asarray(found), valid


def loss_weights(rollouts: Sequence[Rollout], valid: NDArray, config: PolicyConfig) -> list[NDArray[np.float32]]:
    """Of each rollout the weight [R] of its tokens in the loss; over all of them they add up to 1, or to 0 if none is valid."""
    longest = max(len(rollout.reply) for rollout in rollouts)
    mask = np.array([np.arange(longest) < len(rollout.reply) for rollout in rollouts], np.float32)
    weights, total = token_weights(jnp.asarray(mask), jnp.asarray(valid), config.aggregation)
    shares = np.asarray(weights / jnp.maximum(total, 1.0))
    return [share[: len(rollout.reply)] for share, rollout in zip(shares, rollouts, strict=True)]
