"""Intervals of means, macro averages and ratios: exact in known cases, with the coverage they say.

The simulations state their n and clusters in their parameters; each has 1 000 draws of a fixed
seed, so that a coverage is known to within 0.7 points (one standard error).
"""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from stepaudio_jax.evaluation.statistics import (
    Interval,
    bounded_interval,
    macro_interval,
    mean_interval,
    pass_at_k,
    ratio_interval,
    repeated_runs,
    spread,
    wilson_interval,
)

DRAWS = 1000


def coverage(truth, intervals):
    covered = [interval.contains(truth) for interval in intervals]
    assert len(covered) == DRAWS
    return sum(covered) / DRAWS


def clustered_draws(rng, sizes, mean, correlation):
    """Verdicts of 0 and 1 with this correlation within clusters, and the clusters' numbers."""
    if correlation:
        scale = (1 - correlation) / correlation
        chances = rng.beta(mean * scale, (1 - mean) * scale, (DRAWS, len(sizes)))
    else:
        chances = np.full((DRAWS, len(sizes)), mean)
    chances = np.repeat(chances, sizes, axis=1)
    draws = (rng.random(chances.shape) < chances).astype(float)
    return draws, np.repeat(np.arange(len(sizes)), sizes)


def test_independent_verdicts_get_wilsons_interval():
    values = [1.0] * 31 + [0.0] * 49
    assert mean_interval(values) == wilson_interval(31, 80)
    assert mean_interval(values, [str(i) for i in range(80)]) == wilson_interval(31, 80)
    assert mean_interval([1.0]) == wilson_interval(1, 1)


def test_the_spread_of_independent_values_is_the_sample_variance_over_n():
    values = np.random.default_rng(0).random(50)
    of_mean = spread(values)
    assert of_mean.variance == pytest.approx(values.var(ddof=1) / 50)
    assert of_mean.degrees == pytest.approx(49)
    assert of_mean.design_effect == pytest.approx(1)


def test_the_spread_of_equal_clusters_is_that_of_their_means():
    values = np.random.default_rng(0).random((20, 5))
    of_mean = spread(values.ravel(), clusters=np.repeat(np.arange(20), 5))
    assert of_mean.variance == pytest.approx(values.mean(axis=1).var(ddof=1) / 20)
    assert of_mean.degrees == pytest.approx(19)
    assert of_mean.clusters == 20


def test_the_spread_of_strata_is_the_sum_of_theirs():
    rng = np.random.default_rng(0)
    parts = [rng.random(n) + index for index, n in enumerate((10, 40, 50))]
    of_mean = spread(np.concatenate(parts), strata=np.repeat([0, 1, 2], (10, 40, 50)))
    expected = sum((len(p) / 100) ** 2 * p.var(ddof=1) / len(p) for p in parts)
    assert of_mean.variance == pytest.approx(expected)
    assert of_mean.degrees == pytest.approx(97)


def test_the_macro_average_has_the_spread_of_its_groups_means():
    rng = np.random.default_rng(0)
    parts = [rng.random(n) for n in (10, 40, 50)]
    groups = np.repeat(["a", "b", "c"], (10, 40, 50))
    variance = sum(p.var(ddof=1) / len(p) for p in parts) / 9
    mean = np.mean([p.mean() for p in parts])
    interval = macro_interval(np.concatenate(parts), groups)
    assert interval.contains(mean)
    assert interval.high - interval.low == pytest.approx(2 * 2 * math.sqrt(variance), rel=0.15)


def test_copies_of_an_item_in_its_cluster_change_nothing():
    values = np.random.default_rng(0).random(30)
    alone = mean_interval(values)
    copied = mean_interval(np.repeat(values, 4), np.repeat(np.arange(30), 4))
    assert (copied.low, copied.high) == pytest.approx((alone.low, alone.high))


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_values_that_do_not_vary_count_a_trial_a_cluster(value):
    interval = mean_interval([value] * 40, np.repeat(np.arange(10), 4))
    assert interval.contains(value)
    assert 0.2 < interval.high - interval.low < 0.65
    alone = mean_interval([value] * 40, ["one clip"] * 40)
    assert alone.high - alone.low > 0.75


def test_a_stratum_of_one_cluster_is_joined_with_others():
    values, strata = [0.1, 0.9, 0.4, 0.7, 0.2], ["a", "a", "a", "b", "c"]
    joined = ["a", "a", "a", "b", "b"]
    assert mean_interval(values, strata=strata) == mean_interval(values, strata=joined)
    alone = mean_interval(values[:4], strata=strata[:4])
    assert alone == mean_interval(values[:4], strata=["a"] * 4)


def test_a_cluster_may_lie_in_several_strata():
    """With each cluster in both strata the strata cancel, and the clusters' sums are left."""
    values = np.random.default_rng(1).random((30, 2))
    crossed = spread(
        values.ravel(), clusters=np.repeat(np.arange(30), 2), strata=np.tile([0, 1], 30)
    )
    means = values.mean(axis=1)
    assert crossed.variance == pytest.approx(means.var(ddof=1) / 30)


@pytest.mark.parametrize("values", [[], [0.5, math.nan], [1.5], [-0.1]])
def test_values_beyond_a_share_are_refused(values):
    with pytest.raises(ValueError, match=r"give at least one value|between 0 and 1"):
        mean_interval(values)


def test_missing_labels_are_refused():
    with pytest.raises(ValueError, match="3 values need a cluster each, not 2"):
        mean_interval([0, 1, 1], ["a", "b"])
    with pytest.raises(ValueError, match="3 values need a stratum each, not 1"):
        mean_interval([0, 1, 1], strata=["a"])


def test_a_ratio_of_equal_denominators_is_a_mean_on_a_logarithm():
    errors = np.array([0, 1, 2, 0, 3, 1, 0, 2.0])
    interval = ratio_interval(errors, [10] * 8)
    assert interval is not None
    mean = errors.mean() / 10
    assert math.sqrt(interval.low * interval.high) == pytest.approx(mean)
    half = stats.t.ppf(0.975, 7) * errors.std(ddof=1) / 10 / math.sqrt(8)
    assert interval.high == pytest.approx(mean * math.exp(half / mean))
    assert ratio_interval([30, 2], [10, 10]).high > 1
    assert ratio_interval([3, 4], [10, 10], ["a", "a"]) is None
    assert ratio_interval([0, 0], [50, 50]) == Interval(0.0, pytest.approx(0.0369, rel=1e-2))
    share = ratio_interval([3, 1, 2], [3, 4, 2], is_share=True)
    assert 0 < share.low < 6 / 9 < share.high < 1


@pytest.mark.parametrize(("n", "mean"), [(200, 0.8), (1000, 0.97)])
def test_plain_intervals_cover(n, mean):
    rng = np.random.default_rng(n)
    counts = rng.binomial(n, mean, DRAWS)
    assert 0.93 <= coverage(mean, (wilson_interval(int(k), n) for k in counts)) <= 0.97


@pytest.mark.parametrize(
    ("clusters", "size", "mean", "correlation"),
    [
        (50, 4, 0.8, 0.3),
        pytest.param(20, 4, 0.7, 0.3, marks=pytest.mark.slow),
        pytest.param(100, 10, 0.5, 0.1, marks=pytest.mark.slow),
        pytest.param(200, 3, 0.95, 0.5, marks=pytest.mark.slow),
        pytest.param(200, 5, 0.9, 0.0, marks=pytest.mark.slow),
        pytest.param(40, 25, 0.6, 0.6, marks=pytest.mark.slow),
    ],
)
def test_clustered_intervals_cover(clusters, size, mean, correlation):
    rng = np.random.default_rng(clusters)
    draws, labels = clustered_draws(rng, [size] * clusters, mean, correlation)
    assert 0.93 <= coverage(mean, (mean_interval(x, labels) for x in draws)) <= 0.97
    if correlation >= 0.3:  # without the clusters it would not
        naive = [wilson_interval(int(x.sum()), len(x)) for x in draws]
        assert coverage(mean, naive) < 0.9


@pytest.mark.slow
@pytest.mark.parametrize("correlation", [0.0, 0.3])
def test_intervals_of_unequal_clusters_cover(correlation):
    """80 clusters of 1 to 12 items."""
    rng = np.random.default_rng(3)
    sizes = rng.integers(1, 13, 80)
    draws, labels = clustered_draws(rng, sizes, 0.75, correlation)
    assert 0.93 <= coverage(0.75, (mean_interval(x, labels) for x in draws)) <= 0.97


@pytest.mark.slow
@pytest.mark.parametrize(("smallest", "lowest"), [(100, 0.93), (20, 0.89)])
def test_stratified_and_macro_intervals_cover(smallest, lowest):
    """Strata of 20 or 100, 200 and 600 items, with 90, 60 and 30 % right."""
    sizes, means = (smallest, 200, 600), (0.9, 0.6, 0.3)
    strata = np.repeat(np.arange(3), sizes)
    rng = np.random.default_rng(4)
    draws = (rng.random((DRAWS, sum(sizes))) < np.repeat(means, sizes)).astype(float)
    truth = float(np.repeat(means, sizes).mean())
    assert 0.93 <= coverage(truth, (mean_interval(x, strata=strata) for x in draws)) <= 0.97
    # A small group near 0 or 1 dominates a macro mean, and its variance is hardly known.
    assert lowest <= coverage(0.6, (macro_interval(x, strata) for x in draws)) <= 0.97


@pytest.mark.slow
@pytest.mark.parametrize("n", [87, 300])
def test_intervals_of_half_points_cover(n):
    rng = np.random.default_rng(n)
    points = rng.binomial(2, rng.beta(4, 1, (DRAWS, n))) / 2
    assert 0.93 <= coverage(0.8, (mean_interval(x) for x in points)) <= 0.97


@pytest.mark.slow
def test_intervals_of_error_rates_cover():
    """300 sentences of 13 words on average, of which 8 % are wrong, unequally."""
    rng = np.random.default_rng(5)
    words = 1 + rng.poisson(12, (DRAWS, 300))
    errors = rng.poisson(words * rng.gamma(1.0, 0.08, words.shape))
    intervals = [ratio_interval(e, w) for e, w in zip(errors, words, strict=True)]
    assert 0.93 <= coverage(0.08, intervals) <= 0.97


@pytest.mark.parametrize(("n", "correct"), [(1, 1), (5, 0), (5, 2), (6, 6), (8, 3)])
def test_pass_at_k_is_the_share_of_the_subsets_with_a_right_sample(n, correct):
    samples = [True] * correct + [False] * (n - correct)
    for k in range(1, n + 1):
        subsets = list(itertools.combinations(samples, k))
        assert pass_at_k(n, correct, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


@pytest.mark.parametrize("arguments", [(4, 2, 0), (4, 2, 5), (4, 5, 2), (4, -1, 2)])
def test_impossible_pass_at_k_is_refused(arguments):
    with pytest.raises(ValueError, match="pass@"):
        pass_at_k(*arguments)


def test_repeated_runs_tell_the_judges_part_of_the_spread():
    runs = repeated_runs([[1, 1, 0, 0.5, None], [1, 0, 0, 0.5, 1], [1, 1, 0, 0, 1]])
    assert (runs.runs, runs.items, runs.left_out) == (3, 4, 1)
    assert runs.run_means == pytest.approx((0.625, 0.375, 0.5))
    variances = [0, np.var([1, 0, 1], ddof=1), 0, np.var([0.5, 0.5, 0], ddof=1)]
    assert runs.standard_deviation == pytest.approx(math.sqrt(sum(variances)) / 4)
    assert runs.agreement == 0.5
    assert repeated_runs([[1, 0], [1, 0]]).standard_deviation == 0
    with pytest.raises(ValueError, match="at least two runs"):
        repeated_runs([[1, 0]])
    with pytest.raises(ValueError, match="no item has a verdict"):
        repeated_runs([[1, None], [None, 0]])


def test_the_spread_of_repeated_runs_is_that_of_their_means():
    rng = np.random.default_rng(0)
    chances = rng.random(100)
    means = (rng.random((4000, 100)) < chances).mean(axis=1)
    runs = [repeated_runs((rng.random((5, 100)) < chances).astype(float)) for _ in range(50)]
    measured = np.mean([run.standard_deviation**2 for run in runs]) ** 0.5
    assert measured == pytest.approx(means.std(), rel=0.05)


def test_a_bounded_interval_stays_within_its_bounds():
    for mean in (0.0, 0.01, 0.5, 0.99, 1.0):
        interval = bounded_interval(mean, spread([0, 1, 1, 0.5]))
        assert 0 <= interval.low <= mean <= interval.high <= 1
