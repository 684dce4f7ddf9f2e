"""From rewards to advantages: GAE with a value head, or baselines over the rollouts of a prompt.

Shapes: rollouts; T tokens of the longest one. `mask` is 1 where the policy wrote the token. Tokens
of others between two of its turns are no transitions; values at masked positions are never used.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num, Shaped
from numpy.typing import NDArray

from stepaudio_jax.config import PolicyGradient
from stepaudio_jax.rl.losses import token_weights
from stepaudio_jax.rl.rewards import Reward
from stepaudio_jax.rl.rollouts import Rollout

_EPSILON = 1e-8

TokenValues = list[NDArray[np.float32]]
"""For each rollout, an array [completion_tokens] with a value for each token that it wrote."""


@dataclasses.dataclass(frozen=True)
class PolicyLogprobs:
    """What models say of the rollouts' tokens, by the trainer's arithmetic.

    Attributes:
        old_logprobs: log-probabilities by the policy that generated the rollouts; None until they
            are known, where the only update of a step computes them.
        reference_logprobs: log-probabilities by the reference policy. None without one, and, as
            long as the policy still is the reference policy, where `old_logprobs` is None.
        values: the value head's output; 0 without one.
    """

    old_logprobs: TokenValues | None
    reference_logprobs: TokenValues | None
    values: TokenValues


@dataclasses.dataclass(frozen=True)
class Advantages:
    """The advantages of a step.

    Attributes:
        advantages, returns: advantage and return of every token.
        valid: [rollouts] bool, whether a rollout contributes to the update.
    """

    advantages: TokenValues
    returns: TokenValues
    valid: NDArray[np.bool_]


def compute_advantages(
    rollouts: Sequence[Rollout],
    rewards: Sequence[Reward],
    logprobs: PolicyLogprobs,
    config: PolicyGradient,
    *,
    kl_coef: float,
) -> Advantages:
    """Computes the advantages by the configured estimator.

    Rollouts are masked where the judge abstained, and where the number of correct replies to their
    prompt is outside `config.num_correct_range`: such a prompt teaches nothing yet, or nothing more
    (Step-Audio-R1, section 3.3). With `config.mask_truncated`, truncated ones are masked too, but
    their rewards stay in the baseline of their prompt; "dpo" makes no pairs of them.

    Args:
        rollouts: all rollouts of a step, those of a prompt together.
        rewards: the reward of each rollout.
        logprobs: and values, for "gae".
        config: the stage's objective.
        kl_coef: beta; with `config.kl_placement` "reward", -beta k1 is added to the reward of each
            token.
    """
    valid = _valid_rollouts(rollouts, rewards, config)
    trained = valid
    if config.mask_truncated:
        trained = valid & ~np.array([rollout.truncated for rollout in rollouts])
    scores = np.array([reward.value or 0.0 for reward in rewards], np.float32)
    mask = jnp.asarray(_pad(_ones(rollouts)))
    penalty = np.zeros(mask.shape, np.float32)
    if config.kl_placement == "reward" and logprobs.reference_logprobs is not None:
        assert logprobs.old_logprobs is not None  # a KL in the reward has them computed beforehand
        penalty = -kl_coef * (_pad(logprobs.old_logprobs) - _pad(logprobs.reference_logprobs))
    if config.advantage_estimator == "gae":
        advantages, returns = gae(
            rewards_at_last_token(jnp.asarray(scores), mask) + penalty,
            jnp.asarray(_pad(logprobs.values)),
            mask,
            gamma=config.gamma,
            gae_lambda=config.gae_lambda,
        )
        advantages = whiten(advantages, mask * trained[:, None])
    else:
        groups = jnp.asarray([rollout.group for rollout in rollouts], jnp.int32)
        # A pair needs both of its replies in the loss; other estimators also compare with the rest.
        compared = trained if config.advantage_estimator == "dpo" else valid
        arguments = jnp.asarray(scores + penalty.sum(axis=1)), groups, jnp.asarray(compared)
        if config.advantage_estimator == "rloo":
            of_rollout = rloo(*arguments)
        elif config.advantage_estimator == "dpo":
            of_rollout, in_pair = online_dpo(
                *arguments, jnp.asarray(_log_ratio_sums(logprobs)), beta=config.dpo_beta
            )
            trained = trained & np.asarray(in_pair)
        elif config.advantage_estimator == "reinforce":
            of_rollout = reinforce_with_baseline(*arguments)
        else:
            of_rollout = grpo(*arguments, scale_by_std=config.advantage_estimator == "grpo")
        advantages, returns = of_rollout[:, None] * mask, jnp.zeros(mask.shape)
    return Advantages(_unpad(advantages, rollouts), _unpad(returns, rollouts), trained)


def compute_loss_weights(
    rollouts: Sequence[Rollout], valid: NDArray[np.bool_], config: PolicyGradient
) -> TokenValues:
    """Computes the weight of every token in the loss.

    The weights add up to 1, or to 0 where no rollout is valid.
    """
    mask = jnp.asarray(_pad(_ones(rollouts)))
    weights, divisor = token_weights(mask, jnp.asarray(valid), config.aggregation)
    return _unpad(weights / jnp.maximum(divisor, 1.0), rollouts)


def gae(
    rewards: Num[Array, "rollouts T"],
    values: Float[Array, "rollouts T"],
    mask: Shaped[Array, "rollouts T"],
    *,
    gamma: float,
    gae_lambda: float,
) -> tuple[Float[Array, "rollouts T"], Float[Array, "rollouts T"]]:
    """Computes generalized advantage estimates and returns (Schulman et al. 2016, eq. 16).

    A_t = sum_l (gamma lambda)^l delta_(t+l), delta_t = r_t + gamma V_(t+1) - V_t, where t+1 is the
    next token that the policy wrote: value and advantage are carried over the tokens of others.

    Args:
        rewards: r, at their tokens.
        values: V, of the state in which each token was chosen.
        mask: 1 where the policy wrote the token, else 0.
        gamma: the discount factor.
        gae_lambda: lambda.

    Returns:
        Advantages A, and returns A + V; fp32, 0 at masked positions.
    """
    seen = mask > 0
    rewards, values = (jnp.where(seen, x, 0.0).astype(jnp.float32) for x in (rewards, values))

    def step(
        later: tuple[jax.Array, jax.Array], now: tuple[jax.Array, jax.Array, jax.Array]
    ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        next_value, next_advantage = later
        reward, value, is_seen = now
        advantage = reward + gamma * next_value - value + gamma * gae_lambda * next_advantage
        later = jnp.where(is_seen, value, next_value), jnp.where(is_seen, advantage, next_advantage)
        return later, jnp.where(is_seen, advantage, 0.0)

    zeros = jnp.zeros(mask.shape[0], jnp.float32)
    _, advantages = jax.lax.scan(step, (zeros, zeros), (rewards.T, values.T, seen.T), reverse=True)
    return advantages.T, jnp.where(seen, advantages.T + values, 0.0)


def rloo(
    rewards: Num[Array, " rollouts"],
    groups: Int[Array, " rollouts"],
    valid: Shaped[Array, " rollouts"],
) -> Float[Array, " rollouts"]:
    """Computes leave-one-out advantages (RLOO: Ahmadian et al. 2024, eq. 4).

    A_i = r_i - mean of the other rewards of its group.

    Args:
        rewards: r.
        groups: the prompt that each rollout answers, below the number of rollouts.
        valid: 0 for a rollout without a reward (the judge abstained), which is in no baseline.

    Returns:
        fp32; 0 where a rollout is alone in its group, or has no reward.
    """
    centred, count = _subtract_group_mean(rewards, groups, valid)
    return jnp.where(count > 1, centred * count / jnp.maximum(count - 1, 1), 0.0)


def grpo(
    rewards: Num[Array, " rollouts"],
    groups: Int[Array, " rollouts"],
    valid: Shaped[Array, " rollouts"],
    *,
    scale_by_std: bool = True,
) -> Float[Array, " rollouts"]:
    """Computes group-relative advantages (GRPO: Shao et al. 2024, section 4.1.2).

    A_i = (r_i - mean) / standard deviation of the rewards of its group, the unbiased one. Without
    the division they are those of Dr. GRPO (Liu et al. 2025, section 3.2).

    Args:
        rewards, groups, valid: as in `rloo`.
        scale_by_std: whether to divide.

    Returns:
        fp32; 0 where a rollout is alone in its group, or has no reward.
    """
    centred, count = _subtract_group_mean(rewards, groups, valid)
    centred = jnp.where(count > 1, centred, 0.0)
    if not scale_by_std:
        return centred
    squares = jax.ops.segment_sum(centred**2, groups, num_segments=rewards.shape[0])
    deviation = jnp.sqrt(squares[groups] / jnp.maximum(count - 1, 1))
    return jnp.where(deviation > 0, centred / (deviation + _EPSILON), 0.0)


def online_dpo(
    rewards: Num[Array, " rollouts"],
    groups: Int[Array, " rollouts"],
    valid: Shaped[Array, " rollouts"],
    log_ratios: Float[Array, " rollouts"],
    *,
    beta: float,
) -> tuple[Float[Array, " rollouts"], Bool[Array, " rollouts"]]:
    """Computes advantages whose policy gradient is that of DPO on pairs of the policy's replies.

    Of each prompt the replies with the highest and the lowest reward are a pair (Guo et al. 2024,
    online DPO); a prompt whose rewards are all equal has none. The gradient of -log sigma(h),
    h = beta (log-ratio of the better - that of the worse), is that of -A log pi summed over both,
    with A = +-beta sigma(-h). Twice that is returned: "sequence_sum" divides by the number of
    replies, which is twice that of the pairs.

    Args:
        rewards: of each rollout; of several with the same, the first one counts.
        groups: the prompt that each rollout answers, below the number of rollouts.
        valid: 0 for a rollout without a reward, which is in no pair.
        log_ratios: log-probability by the policy less that by the reference, summed over tokens.
        beta: strength of the KL to the reference policy.

    Returns:
        The advantages, 0 outside of pairs, and which rollouts are in one.
    """
    size = rewards.shape[0]
    known = jnp.asarray(valid) > 0
    index = jnp.arange(size)

    def first_with(is_extreme: jax.Array) -> jax.Array:
        """Returns for each group the first rollout that is extreme; `size` where none is."""
        marked = jnp.where(is_extreme & known, index, size)
        return jax.ops.segment_min(marked, groups, num_segments=size)

    highest, lowest = (
        extreme(jnp.where(known, rewards, filler), groups, num_segments=size)[groups]
        for extreme, filler in (
            (jax.ops.segment_max, -jnp.inf),
            (jax.ops.segment_min, jnp.inf),
        )
    )
    differs = highest > lowest
    better, worse = (
        first_with((rewards == extreme) & differs)[groups] for extreme in (highest, lowest)
    )
    has_pair = (better < size) & (worse < size)
    sums = jnp.append(log_ratios, 0.0)
    difference = beta * (sums[better] - sums[worse])
    strength = jnp.where(has_pair, 2 * beta * jax.nn.sigmoid(-difference), 0.0)
    sign = (index == better).astype(jnp.float32) - (index == worse).astype(jnp.float32)
    return strength * sign, has_pair & (sign != 0)


def reinforce_with_baseline(
    rewards: Num[Array, " rollouts"],
    groups: Int[Array, " rollouts"],
    valid: Shaped[Array, " rollouts"],
) -> Float[Array, " rollouts"]:
    """Computes advantages centred within the group, then whitened over the batch.

    REINFORCE++ with baseline (Hu et al. 2025, section 3.2); arguments and zeros as in `rloo`.
    """
    centred, count = _subtract_group_mean(rewards, groups, valid)
    known = (jnp.asarray(valid) > 0) & (count > 1)
    return whiten(jnp.where(known, centred, 0.0), known)


def whiten(x: Float[Array, "*shape"], mask: Shaped[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Returns (x - mean) / standard deviation over the positions where mask > 0; 0 elsewhere.

    The variance is the unbiased one. Where all values are equal, the result is exactly 0.
    """
    seen = jnp.asarray(mask) > 0
    count = jnp.sum(seen)
    # The maximum is subtracted first: equal values are then exactly 0, and so is their mean.
    shifted = jnp.where(
        seen, x - jnp.max(jnp.where(seen, x, -jnp.inf), initial=-jnp.inf), 0.0
    ).astype(jnp.float32)
    centred = jnp.where(seen, shifted - jnp.sum(shifted) / jnp.maximum(count, 1), 0.0)
    variance = jnp.sum(centred**2) / jnp.maximum(count - 1, 1)
    return jnp.where(variance > 0, centred * jax.lax.rsqrt(variance + _EPSILON), 0.0)


def rewards_at_last_token(
    rewards: Num[Array, " rollouts"], mask: Shaped[Array, "rollouts T"]
) -> Float[Array, "rollouts T"]:
    """Places each reward at the last token that the policy wrote, which is the end of its turn.

    A rollout without such a token gets none. Returns fp32.
    """
    index = jnp.arange(mask.shape[1])
    last = jnp.max(jnp.where(mask > 0, index, -1), axis=1, keepdims=True)
    return jnp.where(index == last, rewards.astype(jnp.float32)[:, None], 0.0)


def _subtract_group_mean(
    rewards: jax.Array, groups: jax.Array, valid: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns rewards less the mean of their group, and the number of rewards in the group.

    The first is exactly 0 where all rewards of the group are equal; both are 0 without a reward.
    """
    num_segments = rewards.shape[0]
    known = jnp.asarray(valid) > 0
    highest = jax.ops.segment_max(
        jnp.where(known, rewards, -jnp.inf), groups, num_segments=num_segments
    )[groups]
    shifted = jnp.where(known, rewards - highest, 0.0).astype(jnp.float32)
    count = jax.ops.segment_sum(known.astype(jnp.float32), groups, num_segments=num_segments)[
        groups
    ]
    total = jax.ops.segment_sum(shifted, groups, num_segments=num_segments)[groups]
    mean = total / jnp.maximum(count, 1)
    return jnp.where(known, shifted - mean, 0.0), jnp.where(known, count, 0)


def prompts_in_range(
    rollouts: Sequence[Rollout], rewards: Sequence[Reward], config: PolicyGradient
) -> NDArray[np.bool_]:
    """Returns for each prompt, by `Rollout.group`, whether its rollouts are trained on.

    Prompts without a verifier always are.
    """
    groups = np.array([rollout.group for rollout in rollouts])
    if config.num_correct_range is None:
        return np.ones(groups.max(initial=-1) + 1, bool)
    low, high = config.num_correct_range
    num_correct = np.bincount(groups, [float(reward.is_correct is True) for reward in rewards])
    num_verified = np.bincount(groups, [float(reward.is_correct is not None) for reward in rewards])
    return (num_verified == 0) | ((low <= num_correct) & (num_correct <= high))


def _valid_rollouts(
    rollouts: Sequence[Rollout], rewards: Sequence[Reward], config: PolicyGradient
) -> NDArray[np.bool_]:
    """Returns for each rollout whether it has a reward, and its prompt is in the range."""
    groups = np.array([rollout.group for rollout in rollouts])
    has_reward = np.array([reward.value is not None for reward in rewards])
    return has_reward & prompts_in_range(rollouts, rewards, config)[groups]


def _log_ratio_sums(logprobs: PolicyLogprobs) -> NDArray[np.float32]:
    """Returns for each rollout the log-probability by the policy less that by the reference."""
    old, reference = logprobs.old_logprobs, logprobs.reference_logprobs
    assert old is not None  # computed beforehand, as the reference's
    assert reference is not None
    sums = [np.sum(ours - theirs) for ours, theirs in zip(old, reference, strict=True)]
    return np.array(sums, np.float32)


def _ones(rollouts: Sequence[Rollout]) -> TokenValues:
    return [np.ones(len(rollout.completion_tokens), np.float32) for rollout in rollouts]


def _pad(values: TokenValues) -> NDArray[np.float32]:
    padded = np.zeros((len(values), max(map(len, values))), np.float32)
    for row, of_rollout in zip(padded, values, strict=True):
        row[: len(of_rollout)] = of_rollout
    return padded


def _unpad(values: Array, rollouts: Sequence[Rollout]) -> TokenValues:
    return [
        row[: len(rollout.completion_tokens)]
        for row, rollout in zip(np.asarray(values, np.float32), rollouts, strict=True)
    ]
