"""Wilson's interval: its ends solve the equation that defines it."""

import math
from statistics import NormalDist

import pytest

from stepaudio_jax.evaluation import Interval, wilson_interval


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.999])
@pytest.mark.parametrize(
    ("successes", "trials"),
    [(0, 1), (1, 1), (0, 200), (200, 200), (7, 13), (196, 200), (1, 100_000)],
)
def test_the_ends_solve_the_score_equation(successes, trials, confidence):
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    interval = wilson_interval(successes, trials, confidence)
    assert 0 <= interval.low < interval.high <= 1
    for end in (interval.low, interval.high):
        distance = abs(successes / trials - end)
        assert distance == pytest.approx(z * math.sqrt(end * (1 - end) / trials), abs=1e-12)


def test_the_default_is_a_95_percent_interval():
    assert wilson_interval(31, 80) == wilson_interval(31, 80, 0.95)


@pytest.mark.parametrize("trials", [1, 3, 7, 200, 12_345])
def test_no_success_includes_zero_and_success_throughout_includes_one(trials):
    assert wilson_interval(0, trials).contains(0)
    assert wilson_interval(trials, trials).contains(1)


def test_chance_is_within_or_outside():
    assert wilson_interval(100, 200).contains(0.5)
    assert wilson_interval(113, 200).contains(
        0.5
    )  # .565 measured, and the interval starts at .4957
    assert not wilson_interval(115, 200).contains(0.5)  # .5057
    assert not wilson_interval(85, 200).contains(0.5)
    assert Interval(0.25, 0.5).contains(0.25)
    assert Interval(0.25, 0.5).contains(0.5)


@pytest.mark.parametrize(("successes", "trials"), [(0, 0), (-1, 10), (11, 10)])
def test_impossible_counts_are_refused(successes, trials):
    with pytest.raises(ValueError, match=f"{successes} successes of {trials} trials"):
        wilson_interval(successes, trials)


@pytest.mark.parametrize("confidence", [0, 1, 95, -0.5, float("nan")])
def test_impossible_confidence_is_refused(confidence):
    with pytest.raises(ValueError, match="confidence"):
        wilson_interval(1, 2, confidence)
