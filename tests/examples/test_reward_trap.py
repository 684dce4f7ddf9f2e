"""The report of the reward trap claims only what its intervals support."""

import dataclasses
import pathlib
import re

import numpy as np
import pytest
import scipy.stats

from examples.reward_trap.__main__ import main
from examples.reward_trap.arms import (
    ARMS,
    BOTH,
    DPO,
    JOINT,
    ONLINE_DPO,
    ORDINAL,
    RLVR,
    RUBRIC,
    START,
    THEN_PREFERENCE,
    rubric_judge_config,
)
from examples.reward_trap.claims import MODEL_NAMES, findings, rubric_default
from examples.reward_trap.metrics import ReplyMetrics, mean_of_seeds, paired_difference
from examples.reward_trap.report import page, results_table, text_report
from examples.reward_trap.reward_trap import RewardTrap
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
        tuple(map(float, kl + rng.normal(0, 0.5, N))),
    )


def metrics_of_seeds(*values, **metric):
    (name,) = metric
    return [
        metrics(**{name: metric[name] + value}, seed=number) for number, value in enumerate(values)
    ]


def by_seed(*seeds):
    return dict(enumerate(seeds))


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
        RLVR: by_seed(*metrics_of_seeds(0, 0.01, -0.01, words=1.0)),
        JOINT: by_seed(*(metrics(wins=0.9, rubric_met=0.9, seed=seed) for seed in range(3))),
        RUBRIC: by_seed(*(metrics(rubric_met=0.95, seed=seed) for seed in range(3))),
        THEN_PREFERENCE: by_seed(
            *(metrics(rubric_met=0.3 + seed / 100, wins=0.9, seed=seed) for seed in range(3))
        ),
    }
    runs[RLVR] = {
        seed: dataclasses.replace(of_seed, wins=(0.0,) * N) for seed, of_seed in runs[RLVR].items()
    }
    found = findings(metrics(), runs)
    assert len(found) == 9
    assert all(str(finding).startswith("Shown: ") for finding in found)
    assert "forgets the rubric (-6" in str(found[7])
    text = page({"drawn": metrics(), "greedy": metrics()}, {"drawn": runs, "greedy": runs}, ["A."])
    introduction, drawn, greedy = text.split("\n## ")
    assert introduction.endswith("\nA.\n")
    assert "* verifiable rewards alone: 0.8" in introduction
    assert "online DPO" not in introduction  # there is no such run
    for section in (drawn, greedy):
        assert section.count("* Shown: ") == 9
    table = as_text(results_table(metrics(), runs))
    assert re.search(r"^verifiable rewards alone +3 ", table, re.M)
    assert "Student's, over the seeds" in table


def test_effects_that_the_data_lack_are_not_shown():
    runs = {RLVR: by_seed(metrics(seed=1)), JOINT: by_seed(metrics(correct=0.85, seed=2))}
    found = findings(metrics(), runs)
    assert len(found) == 7
    assert all(str(finding).startswith("NOT shown: ") for finding in found)


def test_models_are_compared_on_the_seeds_that_both_have():
    better, worse = (
        [metrics(rubric_met=share, seed=seed) for seed in range(4)] for share in (0.9, 0.5)
    )
    runs = {JOINT: {0: better[0], 2: better[2], 3: better[3]}, DPO: {2: worse[2], 3: worse[3]}}
    ahead = [finding for finding in findings(metrics(), runs) if "DPO in" in finding.claim]
    assert [finding.seeds for finding in ahead] == [2, 2, 2]
    expected = paired_difference(better[2:], worse[2:], "rubric_met")
    assert ahead[2].difference == expected
    assert "is ahead of DPO in rubric met" in str(ahead[2])
    runs = {JOINT: {0: better[0]}, DPO: {1: better[1]}}  # none
    assert not [finding for finding in findings(metrics(), runs) if "DPO in" in finding.claim]


def seeds_of(count, **metric):
    return by_seed(*(metrics(**metric, seed=seed) for seed in range(count)))


@pytest.mark.parametrize(
    ("ordinal", "both", "conclusion"),
    [
        ({}, {}, "stays `criteria`"),
        ({"rubric_met": 0.7}, {}, "`ordinal` should"),
        ({}, {"wins": 0.8}, "`both` should"),
        ({"rubric_met": 0.7, "correct": 0.8}, {}, "stays `criteria`"),  # behind in accuracy
        ({"rubric_met": 0.4}, {}, "stays `criteria`"),
        ({"rubric_met": 0.7}, {"rubric_met": 0.8}, "`both` should"),
        ({"rubric_met": 0.8}, {"rubric_met": 0.7}, "`ordinal` should"),
        ({"rubric_met": 0.8}, {"rubric_met": 0.8}, "`ordinal` should"),
    ],
)
def test_the_default_of_the_rubric_is_what_the_intervals_support(ordinal, both, conclusion):
    runs = {JOINT: seeds_of(4), ORDINAL: seeds_of(4, **ordinal), BOTH: seeds_of(4, **both)}
    assert conclusion in rubric_default(runs)[-1]


def test_a_default_is_not_chosen_with_few_seeds():
    runs = {JOINT: seeds_of(4), ORDINAL: seeds_of(2, rubric_met=0.9)}
    sentences = rubric_default(runs)
    assert sentences[-1] == "So the default of `judge.rubric` is not decided."
    assert sentences[0].startswith("`ordinal`: not compared")


def test_the_mean_of_seeds_has_students_interval():
    seeds = metrics_of_seeds(0.0, 0.1, 0.2, wins=0.5)
    means = [np.mean(seed.wins) for seed in seeds]
    low, high = scipy.stats.t.interval(0.95, 2, np.mean(means), scipy.stats.sem(means))
    estimate = mean_of_seeds(seeds, "wins")
    assert (estimate.mean, estimate.low, estimate.high) == pytest.approx(
        (np.mean(means), low, high)
    )


def test_metrics_are_read_as_they_were_written(tmp_path):
    written = metrics()
    written.write(tmp_path / "metrics.json")
    assert ReplyMetrics.read(tmp_path / "metrics.json") == written


def test_each_arm_has_its_rewards_prompts_and_steps(monkeypatch):
    monkeypatch.chdir(ROOT)
    trap = RewardTrap.from_configs()
    runs = {name: config for arm in ARMS for name, config in trap._run_configs(arm, seed=1)}
    assert set(runs) == MODEL_NAMES.keys() - {START}
    stages = {name: config.stages[0] for name, config in runs.items()}
    steps = stages[JOINT].steps
    halved = (RUBRIC, THEN_PREFERENCE)
    assert {name: stage.steps for name, stage in stages.items()} == {
        name: steps // 2 if name in halved else steps for name in stages
    }
    prompts = {
        name: [pathlib.Path(source.path).stem for source in stage.data.sources]
        for name, stage in stages.items()
    }
    single = {RUBRIC: ["rubric"], THEN_PREFERENCE: ["preference"], DPO: ["pairs"]}
    assert prompts == {name: single.get(name, ["preference", "rubric"]) for name in stages}
    joint = stages[JOINT].policy_gradient
    (reward,) = stages[RLVR].policy_gradient.rewards
    assert (reward.verifier, reward.judge_weight) == ("exact_text", 0.0)
    assert stages[RUBRIC].policy_gradient == joint
    for form in (ORDINAL, BOTH):
        objective = stages[form].policy_gradient
        assert objective.judge.rubric == form
        assert objective.judge.folder == str(trap.folder / "rubric_judge" / "model")
        assert dataclasses.replace(objective, judge=joint.judge) == joint
    online = stages[ONLINE_DPO].policy_gradient
    assert (online.advantage_estimator, online.judge) == ("dpo", joint.judge)
    assert stages[DPO].objective.loss == "dpo"
    assert stages[DPO].objective.beta == online.dpo_beta
    start = f"{trap.configs['style'].run_dir}/model"
    assert {runs[name].initial.model for name in runs if name != THEN_PREFERENCE} == {start}
    assert runs[THEN_PREFERENCE].initial.model == f"{runs[RUBRIC].run_dir}/model"
    assert all(config.seed == 1 for config in runs.values())
    optimizers = {stage.optimizer for stage in stages.values()}
    assert optimizers == {stages[JOINT].optimizer}


def test_the_rubric_judge_goes_on_from_the_tiny_judge(monkeypatch):
    monkeypatch.chdir(ROOT)
    trap = RewardTrap.from_configs()
    data = (pathlib.Path("ordinal.jsonl"), pathlib.Path("both.jsonl"))
    config = rubric_judge_config(
        trap.configs["tiny_judge"], "models/tiny_judge", pathlib.Path("run"), data
    )
    (stage,) = config.stages
    assert config.initial.model == "models/tiny_judge"
    assert [source.path for source in stage.data.sources] == ["ordinal.jsonl", "both.jsonl"]
    first = trap.configs["tiny_judge"].stages[0]
    assert stage.optimizer.learning_rate < first.optimizer.learning_rate


def write_run(folder, by_decoding):
    for decoding, of_decoding in by_decoding.items():
        folder.mkdir(parents=True, exist_ok=True)
        of_decoding.write(folder / f"replies_{decoding}.json")


def test_a_partial_report_is_made_without_training(tmp_path, monkeypatch, capsys):
    for name in ("configs", "models"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    arguments = ["trap", "--report", "--arms", "rlvr", "joint", "--seeds", "8"]
    monkeypatch.setattr("sys.argv", arguments)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "the start model is not measured yet" in capsys.readouterr().err
    folder = tmp_path / "runs" / "quickstart_rlhf"
    both = {"drawn": metrics(), "greedy": metrics(wins=0.4)}
    write_run(folder / "style", both)
    for name, seed in (("rlvr", 0), ("rlvr", 1), ("joint", 1)):
        write_run(folder / f"{name}-{seed}", both)
    write_run(folder / "joint-0", {"drawn": metrics()})  # interrupted before it was measured
    monkeypatch.setattr("sys.argv", [*arguments, "--output", "report.md"])
    main()
    printed = capsys.readouterr().out
    assert re.search(r"^verifiable rewards alone +2 ", printed, re.M)
    assert re.search(r"^joint, criteria +1 ", printed, re.M)
    assert "stays" not in printed  # nothing is said of forms that were not trained
    written = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "| verifiable rewards alone | 2 |" in written
    assert not (folder / "data").exists()


def test_the_report_for_a_terminal_has_all_sections():
    runs = {JOINT: seeds_of(3), ORDINAL: seeds_of(3, rubric_met=0.9)}
    text = text_report({"drawn": metrics(), "greedy": metrics()}, {"drawn": runs, "greedy": runs})
    assert text.count("joint, ordinal is ahead of joint, criteria in rubric met") == 1
    assert "Replies of greedy decoding" in text
    assert text.rstrip().endswith("So `ordinal` should be the default of `judge.rubric`.")


def test_the_committed_report_has_the_text_of_the_template():
    committed = (ROOT / "docs" / "trap.md").read_text(encoding="utf-8")
    models = {
        name: seeds_of(1)
        for name, label in MODEL_NAMES.items()
        if name != START and f"| {label} |" in committed
    }
    text = page({"drawn": metrics(), "greedy": metrics()}, {"drawn": models, "greedy": models}, [])
    introduction, _, _ = text.partition("\n## ")
    assert models
    assert committed.startswith(introduction)
