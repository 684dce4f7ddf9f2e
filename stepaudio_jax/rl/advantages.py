"""Rewards -> advantages: generalised advantage estimation with a critic, or group baselines without one.

Shapes: N samples (rollouts), T tokens of the longest. `mask` [N,T] is 1 where the policy wrote the
token; between two turns of its own there are tokens of others, which are no transitions. What
stands at masked places is never looked at.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from stepaudio_jax.config import PolicyGradient
from stepaudio_jax.rl.losses import token_weights
from stepaudio_jax.rl.rewards import Reward
from stepaudio_jax.rl.rollouts import Rollout

_EPSILON = 1e-8


def rewards_at_last_token(rewards: jax.Array, mask: jax.Array) -> jax.Array:
    """A reward [N] a sample -> [N,T] fp32, at the last token that the policy wrote (the end of its turn included).

    A sample of which it wrote nothing gets none.
    """
    index = jnp.arange(mask.shape[1])
    last = jnp.max(jnp.where(mask > 0, index, -1), axis=1, keepdims=True)
    return jnp.where(index == last, rewards.astype(jnp.float32)[:, None], 0.0)


def gae(
    rewards: jax.Array, values: jax.Array, mask: jax.Array, *, gamma: float, gae_lambda: float
) -> tuple[jax.Array, jax.Array]:
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16): A_t = sum_l (gamma lambda)^l delta_(t+l).

    delta_t = r_t + gamma V_(t+1) - V_t, where t+1 is the next token that the policy wrote: the
    value and the advantage are carried over what others wrote.

    Args:
        rewards: [N,T], at the tokens' own places.
        values: [N,T], of the state in which each token was chosen.
        mask: [N,T].
        gamma: gamma. gae_lambda: lambda.

    Returns:
        Advantages and returns (advantage + value), [N,T] fp32, 0 at masked places.
    """
    seen = mask > 0
    rewards, values = (jnp.where(seen, x, 0.0).astype(jnp.float32) for x in (rewards, values))

    def step(
        later: tuple[jax.Array, jax.Array], now: tuple[jax.Array, jax.Array, jax.Array]
    ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        next_value, next_advantage = later
        reward, value, written = now
        advantage = reward + gamma * next_value - value + gamma * gae_lambda * next_advantage
        later = jnp.where(written, value, next_value), jnp.where(written, advantage, next_advantage)
        return later, jnp.where(written, advantage, 0.0)

    nothing = jnp.zeros(mask.shape[0], jnp.float32)
    _, advantages = jax.lax.scan(
        step, (nothing, nothing), (rewards.T, values.T, seen.T), reverse=True
    )
    return advantages.T, jnp.where(seen, advantages.T + values, 0.0)


def rloo(rewards: jax.Array, groups: jax.Array, valid: jax.Array) -> jax.Array:
    """REINFORCE leave-one-out (Ahmadian et al. 2024, eq. 4): a reward less the mean of the others of its group.

    Args:
        rewards: [N].
        groups: [N] i32 below N, which prompt each answers.
        valid: [N], 0 where there is no reward (the judge abstained): such a sample counts in no
            baseline.

    Returns:
        [N] fp32; 0 where a sample is alone, or has no reward.
    """
    centred, count = _centred(rewards, groups, valid)
    return jnp.where(count > 1, centred * count / jnp.maximum(count - 1, 1), 0.0)


def grpo(
    rewards: jax.Array, groups: jax.Array, valid: jax.Array, *, scale_by_std: bool = True
) -> jax.Array:
    """Group-relative advantages (Shao et al. 2024, section 4.1.2): a reward less its group's mean, over its standard deviation.

    Not scale_by_std, it is that of Dr. GRPO (Liu et al. 2025, section 3.2). Arguments and zeros as
    `rloo`'s.
    """
    centred, count = _centred(rewards, groups, valid)
    centred = jnp.where(count > 1, centred, 0.0)
    if not scale_by_std:
        return centred
    size = rewards.shape[0]
    squares = jax.ops.segment_sum(centred**2, groups, num_segments=size)
    deviation = jnp.sqrt(squares[groups] / jnp.maximum(count - 1, 1))
    return jnp.where(deviation > 0, centred / (deviation + _EPSILON), 0.0)


def reinforce_with_baseline(rewards: jax.Array, groups: jax.Array, valid: jax.Array) -> jax.Array:
    """REINFORCE++ with baseline (Hu et al. 2025, section 3.2): centred within the group, then whitened over the batch."""
    centred, count = _centred(rewards, groups, valid)
    known = (jnp.asarray(valid) > 0) & (count > 1)
    return whiten(jnp.where(known, centred, 0.0), known)


def whiten(x: jax.Array, mask: jax.Array) -> jax.Array:
    """(x - mean) / standard deviation over the places where `mask` > 0, 0 elsewhere; the variance is the unbiased one.

    Where all values are equal, the result is exactly 0.
    """
    seen = jnp.asarray(mask) > 0
    count = jnp.sum(seen)
    # Less any of the values first: equal ones are then exactly 0, and so is their mean.
    shifted = jnp.where(
        seen, x - jnp.max(jnp.where(seen, x, -jnp.inf), initial=-jnp.inf), 0.0
    ).astype(jnp.float32)
    centred = jnp.where(seen, shifted - jnp.sum(shifted) / jnp.maximum(count, 1), 0.0)
    variance = jnp.sum(centred**2) / jnp.maximum(count - 1, 1)
    return jnp.where(variance > 0, centred * jax.lax.rsqrt(variance + _EPSILON), 0.0)


def _centred(
    rewards: jax.Array, groups: jax.Array, valid: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Rewards less the mean of their group, 0 for equal ones and for those without; and how many of the group have one."""
    size = rewards.shape[0]
    known = jnp.asarray(valid) > 0
    highest = jax.ops.segment_max(jnp.where(known, rewards, -jnp.inf), groups, num_segments=size)[
        groups
    ]
    shifted = jnp.where(known, rewards - highest, 0.0).astype(jnp.float32)
    count = jax.ops.segment_sum(known.astype(jnp.float32), groups, num_segments=size)[groups]
    mean = jax.ops.segment_sum(shifted, groups, num_segments=size)[groups] / jnp.maximum(count, 1)
    return jnp.where(known, shifted - mean, 0.0), jnp.where(known, count, 0)


# From rewards to what a step learns: the advantage, the return and the weight of every token that the policy wrote.

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
    config: PolicyGradient,
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
    rollouts: Sequence[Rollout], valid: NDArray[np.bool_], config: PolicyGradient
) -> TokenValues:
    """The weight of every token in the loss; all of them add up to 1, or to 0 where no rollout is valid."""
    mask = _pad([np.ones(len(rollout.completion_tokens), np.float32) for rollout in rollouts])
    weights, total = token_weights(jnp.asarray(mask), jnp.asarray(valid), config.aggregation)
    return _unpad(weights / jnp.maximum(total, 1.0), rollouts)


def _valid_rollouts(
    rollouts: Sequence[Rollout], rewards: Sequence[Reward], config: PolicyGradient
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
