"""Rewards from verdicts: antisymmetric by construction, rubrics by HealthBench's arithmetic."""

import itertools
import math

import pytest

from stepaudio_jax.data import Criterion
from stepaudio_jax.judge.verdict import (
    RewardMap,
    Verdict,
    preference,
    prefers_position,
    rubric_reward,
    rubric_score,
)

SCALES = [
    RewardMap(),
    RewardMap(table=(0.2, 0.9, 1.0)),
    RewardMap(temperature=0.5),
    RewardMap(levels=3),
    RewardMap(levels=5, table=(0.3, 1.0)),
]


@pytest.mark.parametrize("scale", SCALES, ids=str)
def test_exchanging_the_replies_changes_the_sign_exactly(scale):
    highest = scale.levels // 2
    for first, second in itertools.product(range(-highest, highest + 1), repeat=2):
        one = preference(Verdict(first), Verdict(second), scale)
        assert one == -preference(Verdict(second), Verdict(first), scale)
        assert -1 <= one <= 1
    assert preference(Verdict(highest), Verdict(-highest), scale) == 1
    assert preference(Verdict(1), Verdict(1), scale) == 0, (
        "a judge that only likes the first place says nothing"
    )


def test_a_scale_rises_and_tables_are_met():
    table = RewardMap(table=(0.2, 0.9, 1.0))
    assert [table(level) for level in (0, 1, 2, 3)] == pytest.approx([0, 0.2, 0.9, 1])
    assert table(1.5) == pytest.approx(0.55)
    for scale in SCALES:
        values = [
            scale(half / 2) for half in range(-2 * (scale.levels // 2), 2 * (scale.levels // 2) + 1)
        ]
        assert values == sorted(values)
    assert RewardMap()(1.5) == 0.5


@pytest.mark.parametrize("temperature", [1e-300, 1e-3, 50.0, 1e6, 1e300])
def test_a_temperature_of_any_size_presses_between_a_sign_and_the_linear_map(temperature):
    scale = RewardMap(temperature=temperature)
    assert (scale(3), scale(-3), scale(0)) == (1, -1, 0)
    assert scale(1) == pytest.approx(1.0 if temperature < 1 else 1 / 3, rel=1e-3)


@pytest.mark.parametrize(
    "wrong",
    [
        {"levels": 1},
        {"levels": 4},
        {"table": (0.5,)},
        {"table": (0.5, 0.4, 1)},
        {"table": (0.5, 0.6, 2)},
        {"table": (0.0, 0.0, 0.0)},
        {"table": (0.5, math.nan, 1.0)},
        *({"temperature": temperature} for temperature in (0, -1.0, math.inf, -math.inf, math.nan)),
    ],
)
def test_a_scale_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        RewardMap(**wrong)


def test_flips_are_verdicts_on_places():
    assert prefers_position(Verdict(2), Verdict(1))
    assert prefers_position(Verdict(-1), Verdict(-1))
    assert not prefers_position(Verdict(2), Verdict(-2))
    assert not prefers_position(Verdict(0), Verdict(3))


WEIGHTS = (5.0, -3.0, 2.0)


@pytest.mark.parametrize("met", list(itertools.product([False, True], repeat=3)))
def test_rubrics_follow_healthbench(met):
    criteria = [Criterion(f"{weight}", weight) for weight in WEIGHTS]
    expected = sum(weight for weight, is_met in zip(WEIGHTS, met, strict=True) if is_met) / 7
    assert rubric_score(criteria, met) == pytest.approx(expected)


def test_both_met_of_plus_five_and_minus_three_is_two_fifths():
    assert rubric_score([Criterion("x", 5), Criterion("y", -3)], [True, True]) == pytest.approx(0.4)


def test_the_reward_of_a_rubric_is_the_difference_to_the_reference_and_antisymmetric():
    criteria = [Criterion("x", 1), Criterion("y", -1)]
    better, worse = (True, False), (False, True)
    assert rubric_reward(criteria, Verdict(0, better, worse), Verdict(0, worse, better)) == 1.0, (
        "2, clipped"
    )
    assert rubric_reward(criteria, Verdict(0, worse, better), Verdict(0, better, worse)) == -1.0
    half = Verdict(0, (True, True), (False, False)), Verdict(0, (False, False), (True, False))
    assert rubric_reward(criteria, *half) == 0.5
    with pytest.raises(ValueError, match="no criterion of the rubric has a positive weight"):
        rubric_score([Criterion("x", -1)], [True])
    with pytest.raises(ValueError, match="1 answers for 2 criteria"):
        rubric_score(criteria, [True])
