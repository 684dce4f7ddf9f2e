"""The figures of a task: from the verdicts on its items to accuracies with intervals.

A task without metrics of its own gets `default_metrics`. Others build theirs from `mean_metric`,
`macro_metric` and `ratio_metric`, and `grouped` breaks any of them down.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from stepaudio_jax.errors import DataError
from stepaudio_jax.evaluation.statistics import (
    Interval,
    macro_interval,
    mean_interval,
    pass_at_k,
    ratio_interval,
)
from stepaudio_jax.storage import truncate

if TYPE_CHECKING:
    from stepaudio_jax.evaluation.task import ReplyScore, ScoredItem

Scoring = Literal["strict", "official", "judge"]
SCORINGS: tuple[Scoring, ...] = ("strict", "official", "judge")
# What becomes of an item without a reply, and of a reply without a verdict of the judge.
Failures = Literal["wrong", "left_out"]
_PASS_AT = (2, 4, 8, 16, 32, 64, 128)


@dataclasses.dataclass(frozen=True)
class Metric:
    """Holds one figure.

    Attributes:
        name: "accuracy", "APR", "pass@4", ..
        scoring: whose verdicts it counts.
        value: a share between 0 and 1, but for ratios such as a word error rate, which may exceed
            1; None where nothing is in the denominator.
        interval: 95 % interval of the value; None where none can be computed.
        numerator: what was counted; half points and means of samples make it a fraction.
        denominator: of how many.
        group: the part of the items, as "difficulty=easy"; "" for all.
        unparsed: replies without a clear answer, counted as wrong.
        dropped: replies that the published rule leaves out of the denominator.
        failed: items without a reply, and replies without a verdict of the judge.
        lower_is_better: whether it counts errors.
    """

    name: str
    scoring: Scoring
    value: float | None
    interval: Interval | None
    numerator: float
    denominator: int
    group: str = ""
    unparsed: int = 0
    dropped: int = 0
    failed: int = 0
    lower_is_better: bool = False


def default_metrics(
    items: Sequence["ScoredItem"],
    *,
    scoring: Scoring = "strict",
    failures: Failures = "wrong",
    stratify_by: str | None = None,
) -> list[Metric]:
    """Returns accuracy by each scoring that the items have, of all items and by group.

    With several samples of an item its score is their mean, and pass@k stands beside it.

    Args:
        items: of a task.
        scoring: the one that is shown where no item has a reply.
        failures: whether an item without a reply, and one without a verdict of the judge, counts as
            wrong or leaves the judge's denominator. In the strict one it is always wrong, and the
            official one has only replies that its rule counts.
        stratify_by: the group by which the items were sampled in fixed numbers, if any.
    """
    metrics = []
    for name in scorings_of(items) or (scoring,):
        metrics += grouped(
            items,
            lambda part, group, name=name: mean_metric(  # type: ignore[misc]
                "accuracy", name, part, group=group, failures=failures, stratify_by=stratify_by
            ),
        )
        most = max((len(item.replies) for item in items), default=0)
        for k in (k for k in _PASS_AT if k <= most):
            metrics.append(pass_metric(k, name, items))
    return metrics


def scorings_of(items: Sequence["ScoredItem"]) -> tuple[Scoring, ...]:
    """Returns the kinds of verdicts that at least one reply has."""
    replies = [reply for item in items for reply in item.replies]
    has: dict[Scoring, bool] = {
        "strict": any(reply.strict is not None for reply in replies),
        "official": any(reply.official is not None for reply in replies),
        "judge": any(reply.judged is not None for reply in replies),
    }
    return tuple(scoring for scoring in SCORINGS if has[scoring])


def reply_value(
    scoring: Scoring, reply: "ReplyScore | None", *, failures: Failures = "wrong"
) -> float | None:
    """Returns what a reply is worth, from 0 to 1; None where it leaves the denominator.

    Args:
        scoring: whose verdict.
        reply: None where the item has none.
        failures: see `default_metrics`.
    """
    failed = 0.0 if failures == "wrong" else None
    if scoring == "official":
        outcome = None if reply is None else reply.official
        return None if outcome in (None, "dropped") else float(outcome == "correct")
    if scoring == "strict":
        if reply is None:
            return 0.0
        return None if reply.strict is None else reply.strict.value
    if reply is None:
        return failed
    if reply.judged is None:
        return None
    return failed if reply.judged.score is None else reply.judged.score


def item_value(
    scoring: Scoring, item: "ScoredItem", *, failures: Failures = "wrong"
) -> float | None:
    """Returns the mean value of an item's replies that count; None where none does."""
    values = [
        value
        for reply in item.replies or (None,)
        if (value := reply_value(scoring, reply, failures=failures)) is not None
    ]
    return sum(values) / len(values) if values else None


def mean_metric(
    name: str,
    scoring: Scoring,
    items: Sequence["ScoredItem"],
    *,
    value: Callable[["ScoredItem"], float | None] | None = None,
    group: str = "",
    failures: Failures = "wrong",
    stratify_by: str | None = None,
) -> Metric:
    """Returns the mean over items of a value between 0 and 1.

    Args:
        name: of the metric.
        scoring: whose verdicts it counts; the default value is `item_value` of it.
        items: those of one group, or all.
        value: of an item, None where it leaves the denominator. A task of its own kind gives it.
        group: what the items have in common, as "difficulty=easy".
        failures, stratify_by: see `default_metrics`.

    Raises:
        DataError: a value is not between 0 and 1; names metric and item.
    """
    counted = _counted(name, scoring, items, value, failures)
    if not counted:
        return _with_counts(Metric(name, scoring, None, None, 0.0, 0, group), items)
    array = np.array([v for _, v in counted])
    strata = None
    if stratify_by is not None:
        strata = [item.groups.get(stratify_by, "") for item, _ in counted]
    interval = mean_interval(array, [item.cluster for item, _ in counted], strata)
    total = float(array.sum())
    metric = Metric(name, scoring, total / len(array), interval, total, len(array), group)
    return _with_counts(metric, items)


def macro_metric(
    name: str,
    scoring: Scoring,
    items: Sequence["ScoredItem"],
    key: str,
    *,
    value: Callable[["ScoredItem"], float | None] | None = None,
    failures: Failures = "wrong",
) -> Metric:
    """Returns the unweighted mean of the means of the groups that a key makes.

    Its numerator is the sum of these means, and its denominator their number.

    Args:
        name, scoring, items, value, failures: see `mean_metric`.
        key: of the items' groups.

    Raises:
        DataError: as `mean_metric`.
    """
    counted = _counted(name, scoring, items, value, failures)
    if not counted:
        return _with_counts(Metric(name, scoring, None, None, 0.0, 0), items)
    by_group: dict[str, list[float]] = {}
    for item, v in counted:
        by_group.setdefault(item.groups.get(key, ""), []).append(v)
    means = [sum(of_group) / len(of_group) for of_group in by_group.values()]
    interval = macro_interval(
        [v for _, v in counted],
        [item.groups.get(key, "") for item, _ in counted],
        [item.cluster for item, _ in counted],
    )
    total = sum(means)
    metric = Metric(name, scoring, total / len(means), interval, total, len(means))
    return _with_counts(metric, items)


def ratio_metric(
    name: str,
    scoring: Scoring,
    items: Sequence["ScoredItem"],
    parts: Callable[["ScoredItem"], tuple[float, float] | None],
    *,
    group: str = "",
    lower_is_better: bool = True,
) -> Metric:
    """Returns a ratio of sums, such as the errors of all items over their words.

    Args:
        name, scoring, items, group: see `mean_metric`.
        parts: numerator and denominator of an item; None where it is left out.
        lower_is_better: whether it counts errors, which may exceed the denominator; else the
            numerator is a part of the denominator.
    """
    counted = [(item, part) for item in items if (part := parts(item)) is not None]
    above = [numerator for _, (numerator, _) in counted]
    below = [denominator for _, (_, denominator) in counted]
    metric = Metric(
        name,
        scoring,
        value=None,
        interval=None,
        numerator=sum(above),
        denominator=round(sum(below)),
        group=group,
        lower_is_better=lower_is_better,
    )
    if sum(below) > 0:
        metric = dataclasses.replace(
            metric,
            value=sum(above) / sum(below),
            interval=ratio_interval(
                above,
                below,
                [item.cluster for item, _ in counted],
                is_share=not lower_is_better,
            ),
        )
    return _with_counts(metric, items)


def pass_metric(k: int, scoring: Scoring, items: Sequence["ScoredItem"]) -> Metric:
    """Returns pass@k: the chance that at least one of k samples is right, see `pass_at_k`.

    Right is a reply of the value 1. An item without a reply counts as never right; one with fewer
    than k replies that count is left out.
    """

    def value(item: "ScoredItem") -> float | None:
        if not item.replies:
            return None if scoring == "official" else 0.0
        values = [v for r in item.replies if (v := reply_value(scoring, r)) is not None]
        return None if len(values) < k else pass_at_k(len(values), values.count(1.0), k)

    return mean_metric(f"pass@{k}", scoring, items, value=value)


def grouped(
    items: Sequence["ScoredItem"], metric: Callable[[Sequence["ScoredItem"], str], Metric]
) -> list[Metric]:
    """Returns a metric of all items, and of each group of them.

    Args:
        items: of a task.
        metric: returns the figure of some items, with the name of their group ("" for all).
    """
    return [metric(part, group) for group, part in groups_of(items)]


def groups_of(
    items: Sequence["ScoredItem"],
) -> Iterator[tuple[str, Sequence["ScoredItem"]]]:
    """Yields ("", all items), and then each group ("difficulty=easy") with its items."""
    yield "", items
    for key in dict.fromkeys(key for item in items for key in item.groups):
        by_value: dict[str, list[ScoredItem]] = {}
        for item in items:
            if key in item.groups:
                by_value.setdefault(item.groups[key], []).append(item)
        yield from ((f"{key}={value}", part) for value, part in by_value.items())


def _counted(
    name: str,
    scoring: Scoring,
    items: Sequence["ScoredItem"],
    value: Callable[["ScoredItem"], float | None] | None,
    failures: Failures,
) -> list[tuple["ScoredItem", float]]:
    """Returns the items in the denominator with their values."""
    counted = []
    for item in items:
        v = item_value(scoring, item, failures=failures) if value is None else value(item)
        if v is None:
            continue
        if not 0 <= v <= 1:
            raise DataError(
                f"metric {name}, item {truncate(item.id)!r}: its value {v!r} is not between 0 and"
                " 1; mend the task's scoring"
            )
        counted.append((item, float(v)))
    return counted


def _with_counts(metric: Metric, items: Sequence["ScoredItem"]) -> Metric:
    """Returns a metric with the numbers of replies that could not be used as others are."""
    replies = [reply for item in items for reply in item.replies]
    failed = sum(not item.replies for item in items)
    if metric.scoring == "judge":
        failed += sum(r.judged is not None and r.judged.score is None for r in replies)
    return dataclasses.replace(
        metric,
        failed=failed,
        unparsed=sum(r.strict is not None and r.strict.outcome == "unparsed" for r in replies)
        if metric.scoring == "strict"
        else 0,
        dropped=sum(r.official == "dropped" for r in replies)
        if metric.scoring == "official"
        else 0,
    )
