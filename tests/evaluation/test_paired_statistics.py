"""Paired comparisons: exact tests against their definitions, intervals and levels by simulation."""

import itertools
import math

import numpy as np
import pytest
from scipy import optimize, stats

from stepaudio_jax.evaluation.paired_statistics import (
    adjusted_p_values,
    compare_paired,
    minimum_detectable_difference,
)

DRAWS = 1000


def verdicts(both, only_a, only_b, neither):
    a = [1] * both + [1] * only_a + [0] * only_b + [0] * neither
    b = [1] * both + [0] * only_a + [1] * only_b + [0] * neither
    return a, b


def outcome_shares(mean, difference, agreement):
    """Returns the chances of (both, only A, only B, neither right)."""
    other = mean + difference
    both = agreement * min(mean, other) + (1 - agreement) * mean * other
    return np.array([both, mean - both, other - both, 1 - mean - other + both])


def drawn_pairs(rng, shares):
    """Draws an outcome for each row of chances; returns the verdicts of A and of B."""
    outcome = (rng.random(shares.shape[:-1])[..., None] > shares.cumsum(-1)).sum(-1)
    return np.isin(outcome, (0, 1)).astype(float), np.isin(outcome, (0, 2)).astype(float)


def clustered_pairs(rng, clusters, size, shares, correlation):
    """Pairs whose chances vary between clusters (Dirichlet), and the clusters' numbers."""
    scale = (1 - correlation) / correlation
    gamma = rng.gamma(shares * scale, size=(DRAWS, clusters, 4))
    chances = np.repeat(gamma / gamma.sum(-1, keepdims=True), size, axis=1)
    return *drawn_pairs(rng, chances), np.repeat(np.arange(clusters), size)


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (1, 7), (7, 1), (5, 5), (0, 6), (30, 52)])
def test_independent_verdicts_get_mcnemars_exact_test(only_a, only_b):
    a, b = verdicts(40, only_a, only_b, 10)
    compared = compare_paired(a, b)
    n = only_a + only_b
    tail = sum(math.comb(n, k) for k in range(min(only_a, only_b) + 1)) / 2**n
    assert compared.p_value == pytest.approx(min(1, 2 * tail))
    assert compared.test == "exact McNemar"
    assert (compared.better, compared.worse) == (only_b, only_a)
    assert compared.difference == pytest.approx((only_b - only_a) / len(a))
    assert compared.mean_b - compared.mean_a == pytest.approx(compared.difference)


def score_statistic(better, worse, n, difference):
    """The score statistic of a difference, its nuisance found by numerical maximization."""

    def loss(share):
        counts = (better, share + difference), (worse, share), (n - better - worse, None)
        rest = 1 - 2 * share - difference
        terms = [(k, rest if p is None else p) for k, p in counts]
        return -sum(k * math.log(max(p, 1e-300)) for k, p in terms if k)

    low, high = max(0.0, -difference), (1 - difference) / 2
    share = optimize.minimize_scalar(
        loss, bounds=(low, high), method="bounded", options={"xatol": 1e-12}
    ).x
    variance = n * (2 * share + difference * (1 - difference))
    return (better - worse - n * difference) / math.sqrt(variance)


@pytest.mark.parametrize(
    ("better", "worse", "n"), [(7, 1, 21), (1, 7, 21), (0, 5, 60), (3, 3, 40), (40, 90, 1000)]
)
def test_the_ends_solve_the_score_equation(better, worse, n):
    a, b = verdicts(n - better - worse, worse, better, 0)
    interval = compare_paired(a, b).interval
    for end, sign in ((interval.low, 1), (interval.high, -1)):
        statistic = score_statistic(better, worse, n, end)
        assert statistic == pytest.approx(sign * stats.norm.ppf(0.975), abs=2e-3)


def test_a_published_interval():
    """Airway responsiveness of 21 children: 1, 1, 7, 12 (Fagerland, Lydersen and Laake 2014)."""
    a, b = verdicts(both=1, only_a=7, only_b=1, neither=12)
    interval = compare_paired(a, b).interval
    assert (interval.low, interval.high) == pytest.approx((-0.517, -0.026), abs=1e-3)


def test_equal_verdicts_differ_by_at_most_what_n_can_show():
    compared = compare_paired([1, 0, 1, 1] * 50, [1, 0, 1, 1] * 50)
    z2 = stats.norm.ppf(0.975) ** 2
    assert compared.p_value == 1
    assert compared.interval.high == pytest.approx(z2 / (200 + z2))
    assert compared.interval.low == pytest.approx(-z2 / (200 + z2))
    everything = compare_paired([0] * 30, [1] * 30)
    assert everything.difference == everything.interval.high == 1
    assert 0.75 < everything.interval.low < 1


def test_few_clusters_are_tested_by_every_flip_of_their_signs():
    rng = np.random.default_rng(0)
    a, b = rng.random(30), rng.random(30)
    clusters = np.repeat(np.arange(10), 3)
    compared = compare_paired(a, b, clusters)
    sums = (b - a).reshape(10, 3).sum(axis=1)
    flips = [abs(np.dot(signs, sums)) for signs in itertools.product((-1, 1), repeat=10)]
    assert compared.p_value == np.mean(np.array(flips) >= abs(sums.sum()) - 1e-12)
    assert compared.test == "sign flips"
    assert compared.clusters == 10


def test_many_clusters_are_tested_by_drawn_flips_with_the_same_p_each_time():
    rng = np.random.default_rng(0)
    change = rng.normal(0.1, 1, 200)
    compared = compare_paired(np.zeros(200), change)
    assert compared.p_value == compare_paired(np.zeros(200), change).p_value
    assert compared.p_value == pytest.approx(stats.ttest_1samp(change, 0).pvalue, abs=0.015)
    assert compare_paired(np.zeros(200), change + 1).p_value == pytest.approx(1e-4)


def test_the_order_of_items_and_the_names_of_clusters_do_not_matter():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 2, (2, 60)).astype(float)
    clusters = np.repeat(np.arange(20), 3)
    shuffled = rng.permutation(60)
    compared = compare_paired(a, b, clusters)
    again = compare_paired(a[shuffled], b[shuffled], [f"c{99 - c:02}" for c in clusters[shuffled]])
    assert again.interval.low == pytest.approx(compared.interval.low)
    assert again.p_value == pytest.approx(compared.p_value, abs=0.02)


def test_one_cluster_says_nothing_of_the_difference():
    compared = compare_paired([0.2, 0.4], [0.6, 0.4], ["a", "a"])
    assert compared.interval is None
    assert compared.detectable is None
    assert compared.p_value == 1


def test_unequal_items_are_refused():
    for arguments in (([], []), ([1, 0], [1])):
        with pytest.raises(ValueError, match="on the same items"):
            compare_paired(*arguments)
    with pytest.raises(ValueError, match="2 items need a cluster each, not 1"):
        compare_paired([1, 0], [1, 1], ["a"])


def test_error_rates_are_compared_by_their_words():
    errors_a, errors_b, words = [2, 0, 5], [1, 0, 2], [10, 4, 20]
    compared = compare_paired(errors_a, errors_b, weights=words)
    assert compared.difference == pytest.approx((3 - 7) / 34)
    change = np.subtract(errors_b, errors_a) - compared.difference * np.array(words)
    shares = np.array(words) / 34
    variance = (change**2 / (1 - shares)).sum() / 34**2
    half = compared.interval.high - compared.difference
    assert half > stats.t.ppf(0.975, 2) * math.sqrt(variance) * 0.999
    assert compared.interval.contains(compared.difference)


@pytest.mark.parametrize(
    ("n", "mean", "difference"),
    [
        (200, 0.7, 0.05),
        pytest.param(87, 0.7, 0.1, marks=pytest.mark.slow),
        pytest.param(1000, 0.95, 0.01, marks=pytest.mark.slow),
        pytest.param(1000, 0.7, 0.0, marks=pytest.mark.slow),
    ],
)
def test_paired_intervals_cover(n, mean, difference):
    rng = np.random.default_rng(n)
    shares = outcome_shares(mean, difference, agreement=0.5)
    pairs = drawn_pairs(rng, np.broadcast_to(shares, (DRAWS, n, 4)))
    compared = [compare_paired(a, b) for a, b in zip(*pairs, strict=True)]
    covered = np.mean([c.interval.contains(difference) for c in compared])
    assert 0.93 <= covered <= 0.97
    if not difference:
        assert np.mean([c.p_value < 0.05 for c in compared]) <= 0.05


def test_the_exact_test_has_at_most_its_level():
    """300 items, 70 % right in both models."""
    rng = np.random.default_rng(6)
    shares = np.broadcast_to(outcome_shares(0.7, 0, agreement=0.5), (DRAWS, 300, 4))
    a, b = drawn_pairs(rng, shares)
    better, worse = (b > a).sum(1), (a > b).sum(1)
    tail = stats.binom.cdf(np.minimum(better, worse), better + worse, 0.5)
    p_values = np.minimum(1, 2 * tail)
    measured = [compare_paired(x, y).p_value for x, y in zip(a[:50], b[:50], strict=True)]
    assert measured == pytest.approx(p_values[:50])
    assert np.mean(p_values < 0.05) <= 0.05


@pytest.mark.parametrize(
    ("clusters", "size", "mean", "difference", "correlation"),
    [
        (60, 4, 0.7, 0.0, 0.3),
        pytest.param(100, 10, 0.7, 0.0, 0.1, marks=pytest.mark.slow),
        pytest.param(100, 10, 0.6, 0.1, 0.2, marks=pytest.mark.slow),
        pytest.param(200, 3, 0.8, 0.0, 0.5, marks=pytest.mark.slow),
        pytest.param(30, 8, 0.5, 0.1, 0.3, marks=pytest.mark.slow),
    ],
)
def test_clustered_paired_intervals_cover_and_tests_keep_their_level(
    clusters, size, mean, difference, correlation
):
    rng = np.random.default_rng(clusters)
    shares = outcome_shares(mean, difference, agreement=0.3)
    a, b, labels = clustered_pairs(rng, clusters, size, shares, correlation)
    compared = [compare_paired(x, y, labels) for x, y in zip(a, b, strict=True)]
    assert 0.93 <= np.mean([c.interval.contains(difference) for c in compared]) <= 0.97
    rejected = np.mean([c.p_value < 0.05 for c in compared])
    if difference:
        assert rejected > 0.1
    else:
        assert 0.03 <= rejected <= 0.07


@pytest.mark.slow
@pytest.mark.parametrize("n", [87, 400])
def test_half_points_cover_and_keep_the_level(n):
    """In 4 000 draws, whose shares are known to within 0.7 %."""
    rng = np.random.default_rng(n)
    chances = rng.beta(3, 1, (4 * DRAWS, n))
    pairs = rng.binomial(2, chances, (2, 4 * DRAWS, n)) / 2
    compared = [compare_paired(a, b) for a, b in zip(*pairs, strict=True)]
    assert 0.93 <= np.mean([c.interval.contains(0) for c in compared]) <= 0.97
    assert 0.03 <= np.mean([c.p_value < 0.05 for c in compared]) <= 0.07


def test_the_detectable_difference_is_found_in_four_of_five_comparisons():
    """2 000 comparisons of 100 items, by Student's test."""
    change = np.random.default_rng(0).normal(0, 1, (2000, 100))
    detectable = minimum_detectable_difference(0.1, degrees=99)
    found = stats.ttest_1samp(change + detectable, 0, axis=1).pvalue < 0.05
    assert found.mean() == pytest.approx(0.8, abs=0.025)
    assert minimum_detectable_difference(0.1) == pytest.approx(0.1 * (1.959964 + 0.841621))
    assert compare_paired(np.zeros(100), change[0]).detectable == pytest.approx(
        minimum_detectable_difference(change[0].std(ddof=1) / 10, degrees=99)
    )
    with pytest.raises(ValueError, match="power=1"):
        minimum_detectable_difference(0.1, power=1)


def test_p_values_are_adjusted_for_their_number():
    assert adjusted_p_values([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert adjusted_p_values([0.9, 0.8]) == [1, 1]
    assert adjusted_p_values([]) == []
