"""From rewards to what a step learns: the advantage, the return and the weight of every token that the policy wrote."""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from stepaudio_jax.config import PolicyConfig
from stepaudio_jax.rl.advantages import (
    gae,
    grpo,
    reinforce_with_baseline,
    rewards_at_last_token,
    rloo,
    whiten,
)
from stepaudio_jax.rl.aggregation import token_weights
from stepaudio_jax.rl.rewards import Reward
from stepaudio_jax.rl.rollouts import Rollout

TokenValues = list[NDArray[np.float32]]
"""Of each rollout, a value [R] for each token that it wrote."""


@dataclasses.dataclass(frozen=True)
class PolicyLogprobs:
    """What the passes over the rollouts found: the policy's own log-probabilities, the reference's, the value head's values."""

    old_logprobs: TokenValues
    reference_logprobs: TokenValues
    values: TokenValues


@dataclasses.dataclass(frozen=True)
class Advantages:
    """Of each rollout's tokens the advantage and the return; valid [N] bool, whether a rollout is learnt from."""

    advantages: TokenValues
    returns: TokenValues
    valid: NDArray[np.bool_]


def compute_advantages(
    rollouts: Sequence[Rollout],
    rewards: Sequence[Reward],
    passed: PolicyLogprobs,
    config: PolicyConfig,
    *,
    beta: float,
) -> Advantages:
    """Advantages by the configured baseline.

    A rollout is not learnt from where the judge abstained, nor where too few or too many replies to
    its prompt are right by the verifier (`config.num_correct_range`): such a prompt teaches nothing
    yet, or nothing more (Step-Audio-R1, section 3.3).

    Args:
        rollouts: those of a prompt together.
        rewards: of each.
        passed: log-probabilities and, for "gae", values.
        config: of the stage.
        beta: of the KL, which is part of the reward where `config.kl_placement` says so: -beta k1
            for each token.
    """
    valid = _valid_rollouts(rollouts, rewards, config)
    scores = np.array([reward.value or 0.0 for reward in rewards], np.float32)
    mask = jnp.asarray(
        _pad([np.ones(len(rollout.completion_tokens), np.float32) for rollout in rollouts])
    )
    penalty = np.zeros(mask.shape, np.float32)
    if config.kl_placement == "reward":
        penalty = -beta * (_pad(passed.old_logprobs) - _pad(passed.reference_logprobs))
    if config.advantage_estimator == "gae":
        given = rewards_at_last_token(jnp.asarray(scores), mask) + penalty
        found, returns = gae(
            given,
            jnp.asarray(_pad(passed.values)),
            mask,
            gamma=config.gamma,
            gae_lambda=config.gae_lambda,
        )
        found = whiten(found, mask * valid[:, None])
    else:
        groups = jnp.asarray([rollout.group for rollout in rollouts], jnp.int32)
        arrays = jnp.asarray(scores + penalty.sum(axis=1)), groups, jnp.asarray(valid)
        if config.advantage_estimator == "rloo":
            of_rollout = rloo(*arrays)
        elif config.advantage_estimator == "reinforce":
            of_rollout = reinforce_with_baseline(*arrays)
        else:
            of_rollout = grpo(*arrays, scale_by_std=config.advantage_estimator == "grpo")
        found, returns = of_rollout[:, None] * mask, jnp.zeros(mask.shape)
    return Advantages(_unpad(found, rollouts), _unpad(returns, rollouts), valid)


def compute_loss_weights(
    rollouts: Sequence[Rollout], valid: NDArray[np.bool_], config: PolicyConfig
) -> TokenValues:
    """The weight of every token in the loss; all of them add up to 1, or to 0 where no rollout is valid."""
    mask = _pad([np.ones(len(rollout.completion_tokens), np.float32) for rollout in rollouts])
    weights, total = token_weights(jnp.asarray(mask), jnp.asarray(valid), config.aggregation)
    return _unpad(weights / jnp.maximum(total, 1.0), rollouts)


def _valid_rollouts(
    rollouts: Sequence[Rollout], rewards: Sequence[Reward], config: PolicyConfig
) -> NDArray[np.bool_]:
    valid = np.array([reward.value is not None for reward in rewards])
    if config.num_correct_range is not None:
        least, most = config.num_correct_range
        groups = np.array([rollout.group for rollout in rollouts])
        right = np.bincount(groups, [float(reward.is_correct is True) for reward in rewards])
        unverified = np.array([reward.is_correct is None for reward in rewards])
        valid &= unverified | ((least <= right) & (right <= most))[groups]
    return valid


def _pad(values: TokenValues) -> NDArray[np.float32]:
    padded = np.zeros((len(values), max(map(len, values))), np.float32)
    for row, own in zip(padded, values, strict=True):
        row[: len(own)] = own
    return padded


def _unpad(values: object, rollouts: Sequence[Rollout]) -> TokenValues:
    return [
        row[: len(rollout.completion_tokens)]
        for row, rollout in zip(np.asarray(values, np.float32), rollouts, strict=True)
    ]
