"""From rewards to what a step learns: the advantage, the return and the weight of every token that the policy wrote."""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from stepaudio_jax.config import PolicyConfig
from stepaudio_jax.rl.advantages import gae, grpo, place_rewards, reinforce_with_baseline, rloo, whiten
from stepaudio_jax.rl.aggregation import token_weights
from stepaudio_jax.rl.rewards import Reward
from stepaudio_jax.rl.rollouts import Rollout

Tokens = list[NDArray[np.float32]]
"""Of each rollout, a value [R] for each token that it wrote."""


@dataclasses.dataclass(frozen=True)
class Passed:
    """What the passes over the rollouts found: the policy's own log-probabilities, the reference's, the value head's values."""

    old: Tokens
    reference: Tokens
    values: Tokens


@dataclasses.dataclass(frozen=True)
class Advantages:
    """Of each rollout's tokens the advantage and the return; valid [N] bool, whether a rollout is learnt from."""

    advantages: Tokens
    returns: Tokens
    valid: NDArray[np.bool_]


def token_advantages(
    rollouts: Sequence[Rollout], rewards: Sequence[Reward], passed: Passed, config: PolicyConfig, *, beta: float
) -> Advantages:
    """Advantages by the configured baseline.

    A rollout is not learnt from where the judge abstained, nor where too few or too many replies to its prompt are right by
    the verifier (`config.keep_right`): such a prompt teaches nothing yet, or nothing more (Step-Audio-R1, section 3.3).

    Args:
        rollouts: those of a prompt together.
        rewards: of each.
        passed: log-probabilities and, for "gae", values.
        config: of the stage.
        beta: of the KL, which is part of the reward where `config.kl_in` says so: -beta k1 for each token.
    """
    valid = _valid(rollouts, rewards, config)
    scores = np.array([reward.value or 0.0 for reward in rewards], np.float32)
    mask = jnp.asarray(_padded([np.ones(len(rollout.reply), np.float32) for rollout in rollouts]))
    penalty = np.zeros(mask.shape, np.float32)
    if config.kl_in == "reward":
        penalty = -beta * (_padded(passed.old) - _padded(passed.reference))
    if config.baseline == "gae":
        given = place_rewards(jnp.asarray(scores), mask) + penalty
        found, returns = gae(
            given, jnp.asarray(_padded(passed.values)), mask, discount=config.discount, trace_decay=config.trace_decay
        )
        found = whiten(found, mask * valid[:, None])
    else:
        groups = jnp.asarray([rollout.group for rollout in rollouts], jnp.int32)
        arrays = jnp.asarray(scores + penalty.sum(axis=1)), groups, jnp.asarray(valid)
        if config.baseline == "rloo":
            of_rollout = rloo(*arrays)
        elif config.baseline == "reinforce":
            of_rollout = reinforce_with_baseline(*arrays)
        else:
            of_rollout = grpo(*arrays, scaled=config.baseline == "grpo")
        found, returns = of_rollout[:, None] * mask, jnp.zeros(mask.shape)
    return Advantages(_unpadded(found, rollouts), _unpadded(returns, rollouts), valid)


def loss_weights(rollouts: Sequence[Rollout], valid: NDArray[np.bool_], config: PolicyConfig) -> Tokens:
    """The weight of every token in the loss; all of them add up to 1, or to 0 where no rollout is valid."""
    mask = _padded([np.ones(len(rollout.reply), np.float32) for rollout in rollouts])
    weights, total = token_weights(jnp.asarray(mask), jnp.asarray(valid), config.aggregation)
    return _unpadded(weights / jnp.maximum(total, 1.0), rollouts)


def _valid(rollouts: Sequence[Rollout], rewards: Sequence[Reward], config: PolicyConfig) -> NDArray[np.bool_]:
    valid = np.array([reward.value is not None for reward in rewards])
    if config.keep_right is not None:
        least, most = config.keep_right
        groups = np.array([rollout.group for rollout in rollouts])
        right = np.bincount(groups, [float(reward.right is True) for reward in rewards])
        unverified = np.array([reward.right is None for reward in rewards])
        valid &= unverified | ((least <= right) & (right <= most))[groups]
    return valid


def _padded(values: Tokens) -> NDArray[np.float32]:
    padded = np.zeros((len(values), max(map(len, values))), np.float32)
    for row, own in zip(padded, values, strict=True):
        row[: len(own)] = own
    return padded


def _unpadded(values: object, rollouts: Sequence[Rollout]) -> Tokens:
    return [row[: len(rollout.reply)] for row, rollout in zip(np.asarray(values, np.float32), rollouts, strict=True)]
