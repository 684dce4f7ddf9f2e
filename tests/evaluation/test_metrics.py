"""Metrics from verdicts made by hand: what counts, what is left out, and what is counted beside."""

import pytest

from stepaudio_jax.errors import DataError
from stepaudio_jax.evaluation.metrics import (
    default_metrics,
    groups_of,
    item_value,
    macro_metric,
    mean_metric,
    ratio_metric,
    scorings_of,
)
from stepaudio_jax.evaluation.statistics import macro_interval, mean_interval, wilson_interval
from stepaudio_jax.evaluation.task import ReplyScore, Strict
from tests.evaluation.benchmarks import CORRECT, UNPARSED, WRONG, judged, scored

ITEMS = [
    scored(0, CORRECT, level="easy"),
    scored(1, CORRECT, level="hard"),
    scored(2, WRONG, level="easy"),
    scored(3, UNPARSED, level="hard"),
    scored(4, error="the clip is missing", level="hard"),
]


def by_name(metrics):
    return {(m.scoring, m.name, m.group): m for m in metrics}


def test_unparsed_and_failed_items_are_wrong_under_strict_and_leave_the_official_denominator():
    metrics = by_name(default_metrics(ITEMS))
    strict, official = (metrics[s, "accuracy", ""] for s in ("strict", "official"))
    assert (strict.value, strict.numerator, strict.denominator) == (0.4, 2, 5)
    assert (strict.unparsed, strict.dropped, strict.failed) == (1, 0, 1)
    assert strict.interval == wilson_interval(2, 5)
    assert (official.value, official.denominator) == (pytest.approx(2 / 3), 3)
    assert (official.unparsed, official.dropped, official.failed) == (0, 1, 1)
    assert ("judge", "accuracy", "") not in metrics


def test_groups_have_figures_of_their_own():
    metrics = by_name(default_metrics(ITEMS))
    assert metrics["strict", "accuracy", "level=easy"].value == 0.5
    hard = metrics["strict", "accuracy", "level=hard"]
    assert (hard.denominator, hard.unparsed, hard.failed) == (3, 1, 1)
    assert metrics["official", "accuracy", "level=hard"].denominator == 1
    assert [group for group, _ in groups_of(ITEMS)] == ["", "level=easy", "level=hard"]
    sparse = [scored(0, CORRECT, axis="a"), scored(1, CORRECT, level="easy")]
    assert [(group, len(part)) for group, part in groups_of(sparse)] == [
        ("", 2),
        ("axis=a", 1),
        ("level=easy", 1),
    ]


def test_a_judges_abstention_counts_as_wrong_unless_the_protocol_leaves_it_out():
    items = [scored(0, judged(1.0)), scored(1, judged(0.5)), scored(2, judged(None, "no answer"))]
    items.append(scored(3, error="no reply"))
    (wrong,) = default_metrics(items)
    assert (wrong.scoring, wrong.value, wrong.denominator, wrong.failed) == ("judge", 0.375, 4, 2)
    (left_out,) = default_metrics(items, failures="left_out")
    assert (left_out.value, left_out.denominator, left_out.failed) == (0.75, 2, 2)


def test_a_reply_that_the_judge_was_not_asked_about_leaves_its_denominator():
    items = [scored(0, judged(1.0)), scored(1, ReplyScore(strict=Strict("wrong")))]
    metrics = by_name(default_metrics(items))
    assert metrics["judge", "accuracy", ""].denominator == 1
    assert metrics["strict", "accuracy", ""].denominator == 1


def test_several_samples_are_averaged_and_pass_at_k_stands_beside():
    items = [
        scored(0, CORRECT, WRONG, CORRECT, WRONG),
        scored(1, WRONG, WRONG, UNPARSED, CORRECT),
        scored(2, error="no reply"),
    ]
    metrics = by_name(default_metrics(items))
    assert metrics["strict", "accuracy", ""].value == pytest.approx((0.5 + 0.25 + 0) / 3)
    assert metrics["strict", "accuracy", ""].denominator == 3
    assert metrics["strict", "accuracy", ""].unparsed == 1
    # Of the 6 pairs of samples 5 and 3 have a right one.
    assert metrics["strict", "pass@2", ""].value == pytest.approx((5 / 6 + 3 / 6 + 0) / 3)
    assert metrics["strict", "pass@4", ""].value == pytest.approx(2 / 3)
    assert metrics["official", "accuracy", ""].value == pytest.approx((0.5 + 1 / 3) / 2)
    assert ("strict", "pass@8", "") not in metrics


def test_a_strict_score_may_be_a_part():
    half = ReplyScore(strict=Strict("wrong", "soft", 0.5))
    (metric,) = default_metrics([scored(0, half), scored(1, CORRECT)], scoring="strict")[:1]
    assert (metric.value, metric.numerator) == (0.75, 1.5)


def test_items_with_the_same_sound_are_a_cluster():
    replies = [CORRECT, CORRECT, WRONG, WRONG, CORRECT, CORRECT, UNPARSED, WRONG]
    items = [scored(i, reply, cluster=f"clip-{i // 2}") for i, reply in enumerate(replies)]
    metric = mean_metric("accuracy", "strict", items)
    expected = mean_interval([1, 1, 0, 0, 1, 1, 0, 0], [0, 0, 1, 1, 2, 2, 3, 3])
    assert metric.interval == expected
    assert metric.interval.high - metric.interval.low > 0.63  # as four items, not as eight


def test_strata_narrow_the_interval():
    items = [scored(i, CORRECT if i else WRONG, level="a") for i in range(90)]
    items += [scored(i, WRONG, level="b") for i in range(90, 100)]
    plain, stratified = (
        default_metrics(items, stratify_by=key)[0].interval for key in (None, "level")
    )
    assert stratified.high - stratified.low < 0.5 * (plain.high - plain.low)


def test_a_macro_average_weighs_groups_equally():
    items = [scored(i, CORRECT if i < 8 else WRONG, split="long") for i in range(10)]
    items += [scored(10, CORRECT, split="short"), scored(11, WRONG, split="short")]
    metric = macro_metric("macro", "strict", items, "split")
    assert (metric.value, metric.numerator, metric.denominator) == (0.65, 1.3, 2)
    values = [1] * 8 + [0] * 2 + [1, 0]
    assert metric.interval == macro_interval(values, ["long"] * 10 + ["short"] * 2)


def test_a_ratio_divides_sums():
    items = [scored(i, CORRECT) for i in range(3)]
    parts = {"item-0": (2, 10), "item-1": (0, 5), "item-2": None}
    metric = ratio_metric("WER", "strict", items, lambda item: parts[item.id])
    assert (metric.value, metric.numerator, metric.denominator) == (pytest.approx(2 / 15), 2, 15)
    assert metric.lower_is_better
    nothing = ratio_metric("WER", "strict", items, lambda item: None)
    assert (nothing.value, nothing.interval, nothing.denominator) == (None, None, 0)


@pytest.mark.parametrize("score", [1.5, -0.1, float("nan")])
def test_a_score_that_is_no_share_names_its_item(score):
    items = [scored(0, judged(1.0)), scored(1, judged(score))]
    with pytest.raises(DataError, match=r"metric accuracy, item 'item-1'.*not between 0 and 1"):
        default_metrics(items)


def test_a_task_whose_items_all_failed_has_a_figure_of_0():
    items = [scored(i, error="unreachable") for i in range(3)]
    (strict,) = default_metrics(items)
    assert (strict.scoring, strict.value, strict.failed) == ("strict", 0, 3)
    (judge,) = default_metrics(items, scoring="judge", failures="left_out")
    assert (judge.scoring, judge.value, judge.interval, judge.failed) == ("judge", None, None, 3)
    assert default_metrics([])[0].value is None


def test_the_kinds_of_verdicts_are_those_that_a_reply_has():
    assert scorings_of(ITEMS) == ("strict", "official")
    assert scorings_of([scored(0, judged(None))]) == ("judge",)
    assert item_value("official", scored(0, UNPARSED)) is None
    assert item_value("strict", scored(0)) == 0
