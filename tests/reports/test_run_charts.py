"""Which charts a run has, under which heading, and which of them are flat."""

import math

import pytest

from stepaudio_jax.reports.charts import Chart, Series
from stepaudio_jax.reports.logged_run import StageSpan, read_run
from stepaudio_jax.reports.run_charts import CHARTS, chart_groups, is_flat, metric_title
from tests.reports.run_folder import write_run

SFT = (
    *("loss", "loss/next_token", "loss/ctc", "loss/attributes", "token_accuracy", "gradient_norm"),
    *("tokens_per_second", "tokens_per_second_per_device", "audio_seconds_per_second"),
    *("audio_seconds_per_second_per_device", "steps_per_second", "data_wait_fraction"),
    *(
        "data_wait_seconds",
        "learning_rate/adamw",
        "learning_rate/muon",
        "skipped_steps",
        "zero_gradient_steps",
    ),
    *("checkpoint_wait_fraction", "compile_seconds", "goodput", "evaluation/loss"),
    *("evaluation/token_accuracy", "model_flops_utilization", "device_memory_peak_bytes"),
    *("evaluation/mmau_mini", "evaluation_unparsed/mmau_mini", "evaluation_failed/mmau_mini"),
)
RL = (
    *("loss", "policy_loss", "value_loss", "kl", "ratio", "entropy", "clip_fraction"),
    *("clamped_fraction", "gradient_norm", "skipped_updates", "zero_gradient_updates", "abstained"),
    *("abstained/talk", "reply_tokens", "reasoning_tokens", "completion_tokens", "well_formed"),
    *("truncated", "distinct_2", "reward", "reward/talk", "reward_std", "reward_std/talk"),
    *("reward_std_rubric", "reward_std_pairwise", "abstained_rubric", "abstained_pairwise"),
    *("reward_format", "reward_flips", "reward_rubric", "reward_rubric_score", "win_rate"),
    *("reward_preference", "reward_preference_beside_rubric", "reward_overlong"),
    *("reward_verifier", "sampler_mismatch", "reply_kl", "reply_kl/talk", "valid_rollouts"),
    *("kl_coef", "explained_variance", "seconds/rollout", "seconds/update", "seconds/reward"),
    *("audio_chunks_encoded", "skipped_records"),
)


def groups_of(tmp_path, *lines):
    write_run(tmp_path, [("sft", step, metrics) for step, metrics in lines])
    return {group.name: group for group in chart_groups(read_run(tmp_path))}


def rising(names):
    return [(step, dict.fromkeys(names, float(step))) for step in (1, 2)]


@pytest.mark.parametrize("names", [SFT, RL], ids=["SFT", "RL"])
def test_every_metric_has_one_chart_with_a_title_in_words(tmp_path, names):
    totals = ("records", "records/a", "skipped_bad_audio")
    groups = groups_of(tmp_path, *rising([*names, *totals]))
    assert list(groups) == ["Learning", "Speed", "Data", "Health"]
    charts = [chart for group in groups.values() for chart in group.charts]
    assert sorted(series.metric for chart in charts for series in chart.series) == sorted(names)
    for text in [chart.title for chart in charts]:
        assert "_" not in text
        assert "/" not in text
    listed = {spec.title for spec in CHARTS}
    assert {chart.title for chart in charts} <= listed


def test_metrics_that_measure_the_same_share_a_chart(tmp_path):
    groups = groups_of(tmp_path, *rising([*SFT, *RL]))
    charts = {chart.title: chart for group in groups.values() for chart in group.charts}
    curves = {
        title: [(series.metric, series.label) for series in chart.series]
        for title, chart in charts.items()
    }
    assert curves["Loss"] == [("loss/next_token", "training"), ("evaluation/loss", "held out")]
    assert curves["Auxiliary losses"] == [("loss/ctc", "ctc"), ("loss/attributes", "attributes")]
    assert curves["Reward"] == [("reward", "all sources"), ("reward/talk", "talk")]
    assert curves["Time by phase"][0] == ("seconds/rollout", "rollout")


def test_the_total_is_left_out_where_it_is_the_only_term(tmp_path):
    groups = groups_of(tmp_path, *rising(["loss", "loss/next_token"]))
    assert [chart.title for chart in groups["Learning"].charts] == ["Loss"]


def test_an_unknown_metric_gets_a_chart_of_its_own(tmp_path):
    groups = groups_of(tmp_path, *rising(["cache/hits_per_step"]))
    (chart,) = groups["Health"].charts
    assert chart.title == "Cache: hits per step"
    assert metric_title("loss") == "Loss"


def test_flat_charts_are_told_apart(tmp_path):
    groups = groups_of(
        tmp_path,
        (1, {"gradient_norm": 1.0, "skipped_steps": 0.0, "truncated": math.nan}),
        (2, {"gradient_norm": 1.5, "skipped_steps": 0.0, "truncated": math.nan}),
    )
    assert [chart.title for chart in groups["Health"].charts] == ["Gradient norm", "Truncated"]
    assert [chart.title for chart in groups["Health"].flat] == ["Steps skipped"]


@pytest.mark.parametrize(
    ("values", "flat"),
    [
        ([3.0], True),
        ([3.0, 3.0 + 1e-7], True),
        ([3e9, 3e9 + 1], True),
        ([0.0, 1e-3], False),
        ([1.0, math.inf], False),
        ([math.nan], False),
    ],
)
def test_a_flat_chart_is_constant_and_finite(values, flat):
    segment = tuple(enumerate(values))
    chart = Chart("T", "", "around", (Series("m", "m", (segment,)),), (StageSpan("s", 0, 9),))
    assert is_flat(chart) is flat
    two = Chart("T", "", "around", (*chart.series, Series("n", "n", (((0, 1.0), (1, 2.0)),))), ())
    assert not is_flat(two)


def test_no_metric_is_in_two_charts():
    metrics = [metric for spec in CHARTS for metric in spec.curves]
    assert len(set(metrics)) == len(metrics)
