"""Rewards -> advantages: generalised advantage estimation with a critic, or group baselines without one.

Shapes: N samples (rollouts), T tokens of the longest. `mask` [N,T] is 1 where the policy wrote the
token; between two turns of its own there are tokens of others, which are no transitions. What
stands at masked places is never looked at.
"""

import jax
import jax.numpy as jnp

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
