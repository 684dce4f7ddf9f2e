"""The report of the reward trap claims only what its intervals support."""

import dataclasses
import pathlib

import numpy as np
import pytest
import scipy.stats

from examples.reward_trap.metrics import ReplyMetrics, paired_difference
from examples.reward_trap.report import findings, page, results_table
from examples.reward_trap.reward_trap import (
    ARMS,
    JOINT,
    RLVR,
    RUBRIC,
    START,
    THEN_PREFERENCE,
    RewardTrap,
)
from stepaudio_jax.evaluation import as_text
from tests.end_to_end.runs import ROOT

N = 200


def metrics(correct=0.9, words=4.0, wins=0.5, rubric_met=0.5, kl=1.0, seed=0):
    rng = np.random.default_rng(seed)

    def flags(share):
        return tuple(map(float, rng.permutation(np.arange(N) < share * N)))

    return ReplyMetrics(
        flags(correct),
        tuple(map(float, words + rng.normal(0, 0.5, N))),
        flags(wins),
        flags(rubric_met),
        kl,
    )


def metrics_of_seeds(*values, **metric):
    (name,) = metric
    return [
        metrics(**{name: metric[name] + value}, seed=number) for number, value in enumerate(values)
    ]


def test_the_interval_over_seeds_is_students():
    models, baselines = (
        metrics_of_seeds(0.0, 0.02, 0.04, words=8.0),
        metrics_of_seeds(0.0, 0.0, 0.0, words=4.0),
    )
    difference = paired_difference(models, baselines, "num_words")
    means = [
        np.mean(model.num_words) - np.mean(baseline.num_words)
        for model, baseline in zip(models, baselines, strict=True)
    ]
    low, high = scipy.stats.t.interval(0.95, 2, np.mean(means), scipy.stats.sem(means))
    assert (difference.mean, difference.low, difference.high) == pytest.approx(
        (np.mean(means), low, high)
    )


def test_the_interval_of_one_seed_is_over_questions():
    model, baseline = metrics(rubric_met=0.6), metrics(rubric_met=0.5, seed=1)
    difference = paired_difference([model], [baseline], "rubric_met")
    differences = np.subtract(model.rubric_met, baseline.rubric_met)
    low, high = scipy.stats.t.interval(
        0.95, N - 1, differences.mean(), scipy.stats.sem(differences)
    )
    assert (difference.low, difference.high) == pytest.approx((low, high))


def test_effects_that_the_data_have_are_shown():
    runs = {
        START: [metrics()],
        RLVR: metrics_of_seeds(0, 0.01, -0.01, words=1.0),
        JOINT: [metrics(wins=0.9, rubric_met=0.9, seed=seed) for seed in range(3)],
        RUBRIC: [metrics(rubric_met=0.95, seed=seed) for seed in range(3)],
        THEN_PREFERENCE: [
            metrics(rubric_met=0.3 + seed / 100, wins=0.9, seed=seed) for seed in range(3)
        ],
    }
    runs[RLVR] = [dataclasses.replace(seed, wins=(0.0,) * N) for seed in runs[RLVR]]
    sentences = findings(runs)
    assert len(sentences) == 9
    assert all(sentence.startswith("Shown: ") for sentence in sentences)
    assert "forgets the rubric (-6" in sentences[7]
    text = page(
        {"drawn": "a table", "greedy": "another"}, {"drawn": sentences, "greedy": []}, "a judge"
    )
    drawn, greedy = text.split("## Replies of greedy decoding")
    assert "## Replies sampled as in training\n\na table\n* Shown: " in drawn
    assert "another" in greedy
    table = as_text(results_table(runs))
    assert "verifiable rewards alone" in table
    assert "3 seeds" in table


def test_effects_that_the_data_lack_are_not_shown():
    runs = {START: [metrics()], RLVR: [metrics(seed=1)], JOINT: [metrics(correct=0.85, seed=2)]}
    assert all(sentence.startswith("NOT shown: ") for sentence in findings(runs))


def test_metrics_are_read_as_they_were_written(tmp_path):
    written = metrics()
    written.write(tmp_path / "metrics.json")
    assert ReplyMetrics.read(tmp_path / "metrics.json") == written


def test_each_arm_has_its_rewards_prompts_and_steps(monkeypatch):
    monkeypatch.chdir(ROOT)
    trap = RewardTrap.from_configs()
    runs = {name: config for arm in ARMS for name, config in trap._run_configs(arm, seed=1)}
    assert list(runs) == [RLVR, JOINT, RUBRIC, THEN_PREFERENCE]
    stages = {name: config.stages[0] for name, config in runs.items()}
    steps = stages[JOINT].steps
    assert [stage.steps for stage in stages.values()] == [steps, steps, steps // 2, steps // 2]
    prompts = {
        name: [pathlib.Path(source.path).stem for source in stage.data.sources]
        for name, stage in stages.items()
    }
    assert prompts == {
        RLVR: ["preference", "rubric"],
        JOINT: ["preference", "rubric"],
        RUBRIC: ["rubric"],
        THEN_PREFERENCE: ["preference"],
    }
    (reward,) = stages[RLVR].policy_gradient.rewards
    assert (reward.verifier, reward.judge_weight) == ("exact_text", 0.0)
    assert stages[RUBRIC].policy_gradient == stages[JOINT].policy_gradient
    start = f"{trap.configs['style'].run_dir}/model"
    assert {runs[name].initial.model for name in (RLVR, JOINT, RUBRIC)} == {start}
    assert runs[THEN_PREFERENCE].initial.model == f"{runs[RUBRIC].run_dir}/model"
    assert all(config.seed == 1 for config in runs.values())


def test_the_committed_report_has_the_text_of_the_template():
    committed = (ROOT / "docs" / "trap.md").read_text(encoding="utf-8")
    introduction, _ = page({}, {}, "JUDGE").split("JUDGE")
    assert committed.startswith(introduction)
