"""Advantages against float64 numpy, written from the equations, with junk at masked positions."""

import jax.numpy as jnp
import numpy as np
import pytest

from stepaudio_jax.rl.advantages import (
    gae,
    grpo,
    online_dpo,
    reinforce_with_baseline,
    rewards_at_last_token,
    rloo,
    whiten,
)

N, T = 5, 24


def masks():
    """Tokens of others before, between and after two turns; one rollout is empty, one all ones."""
    mask = np.zeros((N, T), np.float32)
    mask[0, 3:9] = mask[0, 14:20] = 1
    mask[1, 5:] = 1
    mask[2, 2:7] = 1
    mask[4] = 1
    return mask


def reference_gae(rewards, values, mask, gamma, decay):
    """Loops over the tokens that the policy wrote, in float64."""
    advantages = np.zeros(mask.shape)
    for row in range(N):
        tokens = np.flatnonzero(mask[row])
        for index, token in enumerate(tokens):
            total = 0.0
            for ahead, later in enumerate(tokens[index:]):
                following = tokens[index + ahead + 1] if index + ahead + 1 < len(tokens) else None
                next_value = 0.0 if following is None else values[row, following]
                delta = rewards[row, later] + gamma * next_value - values[row, later]
                total += (gamma * decay) ** ahead * delta
            advantages[row, token] = total
    return advantages


@pytest.mark.parametrize(("gamma", "decay"), [(1.0, 1.0), (0.99, 0.95), (0.9, 0.0)])
@pytest.mark.parametrize("junk", [1e9, np.nan, np.inf])
def test_gae_across_masked_tokens_carries_value_and_advantage(gamma, decay, junk):
    rng = np.random.default_rng(0)
    mask = masks()
    rewards, values = (rng.normal(size=(N, T)).astype(np.float32) for _ in range(2))
    expected = reference_gae(
        rewards.astype(np.float64), values.astype(np.float64), mask, gamma, decay
    )
    dirty = [np.where(mask > 0, x, junk).astype(np.float32) for x in (rewards, values)]
    advantages, returns = gae(
        *map(jnp.asarray, dirty), jnp.asarray(mask), gamma=gamma, gae_lambda=decay
    )
    np.testing.assert_allclose(advantages, expected, atol=1e-5)
    np.testing.assert_allclose(returns, np.where(mask > 0, expected + values, 0), atol=1e-5)


def test_value_of_a_token_is_that_of_the_state_before_it():
    """With gamma = lambda = 1, A_t is the reward to come less V_t, at t and not at t + 1."""
    mask = jnp.ones((1, 4))
    values = jnp.array([[0.1, 0.2, 0.3, 0.4]])
    advantages, _ = gae(
        rewards_at_last_token(jnp.ones(1), mask), values, mask, gamma=1.0, gae_lambda=1.0
    )
    np.testing.assert_allclose(advantages, 1 - values, atol=1e-6)


def test_reward_placement_is_the_last_token_of_the_last_turn():
    placed = np.asarray(
        rewards_at_last_token(jnp.asarray([1.0, 2.0, 3.0, 4.0, 5.0]), jnp.asarray(masks()))
    )
    assert [np.flatnonzero(row).tolist() for row in placed] == [[19], [23], [6], [], [23]]
    assert placed.sum(axis=1).tolist() == [1, 2, 3, 0, 5]


def test_fractional_rewards_stay_fractions():
    assert float(rewards_at_last_token(jnp.asarray([0.75]), jnp.ones((1, 3)))[0, 2]) == 0.75
    assert float(rewards_at_last_token(jnp.asarray([3]), jnp.ones((1, 3))).sum()) == 3.0


REWARDS = np.array([1.0, 0.5, 0.0, 0.75, 0.75, 0.75, 9.0, 0.2, 0.3], np.float32)
GROUPS = np.array([0, 0, 0, 4, 4, 4, 6, 1, 1], np.int32)
VALID = np.array([1, 1, 1, 1, 1, 1, 1, 1, 0], np.float32)


def by_group(function):
    """Applies a function to the known rewards of each group; 0 for the others."""
    expected = np.zeros(len(REWARDS))
    for group in set(GROUPS.tolist()):
        places = np.flatnonzero((group == GROUPS) & (VALID > 0))
        if len(places) > 1:
            expected[places] = function(REWARDS[places].astype(np.float64))
    return expected


def leave_one_out(rewards):
    return [reward - np.delete(rewards, place).mean() for place, reward in enumerate(rewards)]


def standardised(rewards):
    deviation = rewards.std(ddof=1)
    return (rewards - rewards.mean()) / (deviation + 1e-8) if deviation else np.zeros(len(rewards))


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (rloo, leave_one_out),
        (grpo, standardised),
        (
            lambda *arrays: grpo(*arrays, scale_by_std=False),
            lambda rewards: rewards - rewards.mean(),
        ),
    ],
    ids=["rloo", "grpo", "dr_grpo"],
)
def test_group_baselines_equal_their_definitions(found, expected):
    """Groups of different rewards, of equal ones, of one, and one with an abstention."""
    advantages = np.asarray(found(jnp.asarray(REWARDS), jnp.asarray(GROUPS), jnp.asarray(VALID)))
    np.testing.assert_allclose(advantages, by_group(expected), atol=1e-6)
    assert (advantages[3:] == 0).all(), (
        "exactly 0 for equal rewards, a group of one, and the only known reward of a group"
    )


def test_the_value_of_a_missing_reward_does_not_matter():
    for junk in (1e9, np.nan, -np.inf):
        dirty = np.where(VALID > 0, REWARDS, junk).astype(np.float32)
        for advantages in (rloo, grpo, reinforce_with_baseline):
            groups = jnp.asarray(GROUPS), jnp.asarray(VALID)
            np.testing.assert_array_equal(
                advantages(jnp.asarray(dirty), *groups), advantages(jnp.asarray(REWARDS), *groups)
            )


def test_reinforce_with_baseline_equals_its_definition():
    centred = by_group(lambda rewards: rewards - rewards.mean())
    known = np.array([1, 1, 1, 1, 1, 1, 0, 0, 0], bool)
    expected = np.where(known, (centred - centred[known].mean()) / centred[known].std(ddof=1), 0)
    found = reinforce_with_baseline(jnp.asarray(REWARDS), jnp.asarray(GROUPS), jnp.asarray(VALID))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_advantages_do_not_depend_on_the_order_of_rollouts():
    """Group ids may be any below N, in any order."""
    order = np.random.default_rng(3).permutation(len(REWARDS))
    straight = np.asarray(rloo(jnp.asarray(REWARDS), jnp.asarray(GROUPS), jnp.asarray(VALID)))
    mixed = rloo(jnp.asarray(REWARDS[order]), jnp.asarray(GROUPS[order]), jnp.asarray(VALID[order]))
    np.testing.assert_allclose(mixed, straight[order], atol=1e-6)


def test_online_dpo_has_the_gradient_of_dpo():
    """Of the pair with the highest and the lowest reward of each prompt, in float64."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(4), 4)
    rewards = rng.choice([0.0, 0.5, 1.0], 16).astype(np.float32)
    rewards[4:8] = 0.5  # nothing to compare
    valid = np.ones(16)
    valid[0] = 0
    rewards[0] = np.nan
    ratios = rng.normal(scale=3, size=16).astype(np.float32)
    advantages, in_pair = online_dpo(
        jnp.asarray(rewards), jnp.asarray(groups), jnp.asarray(valid), jnp.asarray(ratios), beta=0.3
    )
    expected = np.zeros(16)
    for group in range(4):
        members = [i for i in range(16) if groups[i] == group and valid[i]]
        best, worst = (
            min(members, key=key) for key in (lambda i: (-rewards[i], i), lambda i: (rewards[i], i))
        )
        if rewards[best] == rewards[worst]:
            continue
        step = 1e-6

        def loss(ratio, best=best, worst=worst):
            return np.logaddexp(0, -0.3 * (ratio - float(ratios[worst])))

        slope = (loss(float(ratios[best]) + step) - loss(float(ratios[best]) - step)) / (2 * step)
        expected[best], expected[worst] = -2 * slope, 2 * slope
    np.testing.assert_allclose(advantages, expected, atol=1e-6)
    np.testing.assert_array_equal(in_pair, expected != 0)
    assert in_pair.sum() == 6


def test_advantages_are_whitened_with_the_unbiased_variance_of_the_valid_tokens():
    rng = np.random.default_rng(5)
    x, mask = rng.normal(3, 2, (N, T)).astype(np.float32), masks()
    valid = x[mask > 0].astype(np.float64)
    expected = np.where(mask > 0, (x - valid.mean()) / valid.std(ddof=1), 0)
    for junk in (0, 1e9, np.nan, np.inf):
        dirty = np.where(mask > 0, x, junk).astype(np.float32)
        np.testing.assert_allclose(
            whiten(jnp.asarray(dirty), jnp.asarray(mask)), expected, atol=2e-6
        )


@pytest.mark.parametrize("value", [0.1, -7.3, 1e6])
def test_advantages_of_equal_values_are_exactly_0(value):
    assert (whiten(jnp.full((N, T), value, jnp.float32), jnp.asarray(masks())) == 0).all()
    assert (whiten(jnp.full((1, 1), value, jnp.float32), jnp.ones((1, 1))) == 0).all()
