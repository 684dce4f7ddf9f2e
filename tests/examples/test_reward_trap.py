"""The table of the demonstration of RLHF, and what it says that it shows: no more than the intervals support."""

import dataclasses

import numpy as np
import pytest
import scipy.stats

from examples.reward_trap.metrics import ReplyMetrics, paired_difference
from examples.reward_trap.report import findings, page, results_table
from examples.reward_trap.reward_trap import JOINT, RLVR, RUBRIC, START, THEN_PREFERENCE
from stepaudio_jax.evaluation import as_text

N = 200


def measured(right=0.9, words=4.0, wins=0.5, passes=0.5, kl=1.0, seed=0):
    rng = np.random.default_rng(seed)

    def flags(share):
        return tuple(map(float, rng.permutation(np.arange(N) < share * N)))

    return ReplyMetrics(
        flags(right),
        tuple(map(float, words + rng.normal(0, 0.5, N))),
        flags(wins),
        flags(passes),
        kl,
    )


def of_seeds(*values, **figure):
    (name,) = figure
    return [
        measured(**{name: figure[name] + value}, seed=number) for number, value in enumerate(values)
    ]


def test_over_seeds_the_interval_is_students():
    ones, others = of_seeds(0.0, 0.02, 0.04, words=8.0), of_seeds(0.0, 0.0, 0.0, words=4.0)
    found = paired_difference(ones, others, "num_words")
    means = [
        np.mean(one.num_words) - np.mean(other.num_words)
        for one, other in zip(ones, others, strict=True)
    ]
    low, high = scipy.stats.t.interval(0.95, 2, np.mean(means), scipy.stats.sem(means))
    assert (found.mean, found.low, found.high) == pytest.approx((np.mean(means), low, high))


def test_of_one_seed_the_interval_is_over_questions():
    one, other = measured(passes=0.6), measured(passes=0.5, seed=1)
    found = paired_difference([one], [other], "rubric_met")
    differences = np.subtract(one.rubric_met, other.rubric_met)
    low, high = scipy.stats.t.interval(
        0.95, N - 1, differences.mean(), scipy.stats.sem(differences)
    )
    assert (found.low, found.high) == pytest.approx((low, high))


def test_what_the_paper_reports_is_found_where_it_is():
    runs = {
        START: [measured()],
        RLVR: of_seeds(0, 0.01, -0.01, words=1.0),
        JOINT: [measured(wins=0.9, passes=0.9, seed=seed) for seed in range(3)],
        RUBRIC: [measured(passes=0.95, seed=seed) for seed in range(3)],
        THEN_PREFERENCE: [
            measured(passes=0.3 + seed / 100, wins=0.9, seed=seed) for seed in range(3)
        ],
    }
    runs[RLVR] = [dataclasses.replace(one, wins=(0.0,) * N) for one in runs[RLVR]]
    said = findings(runs)
    assert len(said) == 9
    assert all(one.startswith("Shown: ") for one in said)
    assert "forgets the rubric (-6" in said[7]
    text = page({"drawn": "a table", "greedy": "another"}, {"drawn": said, "greedy": []}, "a judge")
    drawn, greedy = text.split("## Replies of greedy decoding")
    assert "## Replies sampled as in training\n\na table\n* Shown: " in drawn
    assert "another" in greedy
    table = as_text(results_table(runs))
    assert "verifiable rewards alone" in table
    assert "3 seeds" in table


def test_what_is_not_there_is_said_not_to_be():
    runs = {START: [measured()], RLVR: [measured(seed=1)], JOINT: [measured(right=0.85, seed=2)]}
    assert all(one.startswith("NOT shown: ") for one in findings(runs))


def test_measures_survive_a_file(tmp_path):
    one = measured()
    one.write(tmp_path / "measured.json")
    assert ReplyMetrics.read(tmp_path / "measured.json") == one
