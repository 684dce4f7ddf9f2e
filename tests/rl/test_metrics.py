"""Metrics of a step beside its rewards."""

import numpy as np
import pytest

from stepaudio_jax.rl.advantages import Advantages, PolicyLogprobs
from stepaudio_jax.rl.metrics import explained_variance, logprob_metrics, mean_of_steps
from tests.rl.test_rewards import rollout


def random_rollouts(count, seed=0):
    """Makes rollouts of two sources and different lengths, with values and returns."""
    rng = np.random.default_rng(seed)
    rollouts = [rollout(tokens=3 + number, source="ab"[number % 2]) for number in range(count)]
    values, noise = (
        [rng.normal(size=len(item.completion_tokens)).astype(np.float32) for item in rollouts]
        for _ in range(2)
    )
    returns = [
        value + np.float32(0.5) * error + 2 for value, error in zip(values, noise, strict=True)
    ]
    return rollouts, values, returns


def metrics(rollouts, values, returns, valid):
    zeros = [np.zeros(len(item.completion_tokens), np.float32) for item in rollouts]
    return logprob_metrics(
        rollouts, PolicyLogprobs(zeros, zeros, values), Advantages(zeros, returns, np.array(valid))
    )


def test_metrics_of_several_steps_are_means_and_counts_are_sums():
    steps = [
        {"loss": 1.0, "skipped_records": 2.0},
        {"loss": 2.0, "reward": 0.5, "skipped_records": 1.0},
    ]
    assert mean_of_steps(steps) == {"loss": 1.5, "reward": 0.5, "skipped_records": 3.0}
    assert mean_of_steps(steps[:1]) == steps[0]


def test_explained_variance_is_of_all_tokens_of_the_valid_rollouts():
    """It is not a mean over rollouts or sources; rollouts without a reward have no returns."""
    rollouts, values, returns = random_rollouts(6)
    valid = [True, True, False, True, False, True]
    for index, is_valid in enumerate(valid):
        if not is_valid:
            returns[index] = np.zeros_like(returns[index])
    computed = metrics(rollouts, values, returns, valid)

    def expected(indices):
        x, y = (
            np.concatenate([of_rollout[index] for index in indices]).astype(np.float64)
            for of_rollout in (returns, values)
        )
        return 1 - (((x - y) - (x - y).mean()) ** 2).sum() / ((x - x.mean()) ** 2).sum()

    assert computed["explained_variance"] == pytest.approx(expected([0, 1, 3, 5]), rel=1e-9)
    assert computed["explained_variance/a"] == pytest.approx(expected([0]), rel=1e-9)
    assert computed["explained_variance/b"] == pytest.approx(expected([1, 3, 5]), rel=1e-9)
    assert (
        metrics(rollouts, values, returns, [True] * 6)["explained_variance"]
        < computed["explained_variance"] - 0.1
    )


def test_equal_returns_have_no_explained_variance():
    """Estimators without a value head have returns of 0; equal rewards differ by rounding only."""
    rollouts, values, returns = random_rollouts(4)
    zeros = [np.zeros_like(value) for value in values]
    assert "explained_variance" not in metrics(rollouts, values, zeros, [True] * 4)
    assert "explained_variance" not in metrics(rollouts, values, returns, [False] * 4)
    assert "explained_variance/a" not in metrics(
        rollouts, values, returns, [False, True, False, True]
    )
    rounded = np.float32(0.7) + np.random.default_rng(1).normal(size=50).astype(
        np.float32
    ) * np.float32(6e-8)
    assert explained_variance(rounded, np.zeros(50, np.float32)) is None
    assert explained_variance(np.float32([0.0, 1.0]), np.float32([0.0, 1.0])) == 1.0
    assert explained_variance(np.float32([0.0, 1.0]), np.float32([0.0, 0.0])) == 0.0
