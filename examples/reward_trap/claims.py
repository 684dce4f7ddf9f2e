"""Compares the models of the reward trap: which effects the intervals of differences support."""

import dataclasses
from collections.abc import Iterator, Mapping

from examples.reward_trap.arms import (
    BOTH,
    DPO,
    JOINT,
    ONLINE_DPO,
    ORDINAL,
    RLVR,
    RUBRIC,
    START,
    THEN_PREFERENCE,
)
from examples.reward_trap.metrics import Estimate, ReplyMetrics, paired_difference

Runs = Mapping[str, Mapping[int, ReplyMetrics]]
"""Model -> seed -> its metrics."""

METRIC_NAMES = {
    "is_correct": "accuracy",
    "wins": "wins against the reference",
    "rubric_met": "rubric met",
}
MODEL_NAMES = {
    START: "start",
    RLVR: "verifiable rewards alone",
    JOINT: "joint, criteria",
    ORDINAL: "joint, ordinal",
    BOTH: "joint, both",
    RUBRIC: "two stages: rubric",
    THEN_PREFERENCE: "then preference",
    DPO: "DPO",
    ONLINE_DPO: "online DPO",
}
"""Model -> its name in tables, in their order."""
_MAX_ACCURACY_LOSS = 0.02  # that still counts as keeping the accuracy
_MIN_SEEDS = 3  # for a choice of a default


@dataclasses.dataclass(frozen=True)
class Finding:
    """Holds an effect and whether the 95 % interval of its difference supports it."""

    is_shown: bool
    claim: str
    difference: Estimate
    seeds: int
    unit: str = " points"

    def __str__(self) -> str:
        scale = 100 if self.unit == " points" else 1
        estimate = self.difference
        mean, low, high = (
            f"{scale * value:+.1f}" for value in (estimate.mean, estimate.low, estimate.high)
        )
        verdict = "Shown" if self.is_shown else "NOT shown"
        seeds = "1 seed" if self.seeds == 1 else f"{self.seeds} seeds"
        interval = f"{mean}{self.unit}, 95 % interval {low} to {high}, {seeds}"
        return f"{verdict}: {self.claim} ({interval})."


def findings(start: ReplyMetrics, runs: Runs) -> list[Finding]:
    """Returns each effect of the paper that the runs can show, and the comparisons of the arms.

    Two models are compared on the seeds that both have.
    """
    return [*_on_verifiable_rewards(start, runs), *_against_start(start, runs), *_ahead(runs)]


def rubric_default(runs: Runs) -> list[str]:
    """Returns which form of `judge.rubric` the runs support as the default, and why.

    Another form than "criteria" is chosen if it is ahead of it in accuracy, wins or rubric met and
    behind in none of them. Of two such forms the paper's, "ordinal", is chosen, unless the other is
    better than it by the same rule.
    """
    sentences = []
    better: list[str] = []
    is_decided = False
    for form in (ORDINAL, BOTH):
        comparison = _comparison(runs, form, JOINT)
        if comparison is None:
            sentences.append(f"`{form}`: not compared, for want of {_MIN_SEEDS} seeds of both.")
            continue
        is_decided = True
        sentences += [str(finding) for finding in comparison]
        if _is_better(comparison):
            better.append(form)
    if not is_decided:
        return [*sentences, "So the default of `judge.rubric` is not decided."]
    if better == [ORDINAL, BOTH]:
        comparison = _comparison(runs, BOTH, ORDINAL)
        better = [BOTH] if comparison is not None and _is_better(comparison) else [ORDINAL]
    if better:
        return [*sentences, f"So `{better[0]}` should be the default of `judge.rubric`."]
    return [
        *sentences,
        "So the default of `judge.rubric` stays `criteria`: no other form is ahead of it in one of "
        "these and behind in none.",
    ]


def _on_verifiable_rewards(start: ReplyMetrics, runs: Runs) -> Iterator[Finding]:
    """Yields what verifiable rewards alone do."""
    if RLVR not in runs:
        return
    shorter, seeds = _from_start(start, runs, RLVR, "num_words")
    name = MODEL_NAMES[RLVR]
    yield Finding(shorter.high < 0, f"{name} shorten replies", shorter, seeds, " words")
    lost, seeds = _from_start(start, runs, RLVR, "wins")
    yield Finding(lost.high < 0, f"{name} lose preference", lost, seeds)


def _against_start(start: ReplyMetrics, runs: Runs) -> Iterator[Finding]:
    """Yields what each arm with a judge keeps, and gains or loses."""
    for model in (JOINT, ORDINAL, BOTH, DPO, ONLINE_DPO):
        if model not in runs:
            continue
        name = MODEL_NAMES[model]
        kept, seeds = _from_start(start, runs, model, "is_correct")
        claim = f"{name} keeps accuracy within {100 * _MAX_ACCURACY_LOSS:.0f} points"
        yield Finding(kept.low > -_MAX_ACCURACY_LOSS, claim, kept, seeds)
        for metric in ("wins", "rubric_met"):
            gained, seeds = _from_start(start, runs, model, metric)
            verb = "loses" if gained.high < 0 else "gains"
            claim = f"{name} {verb} in {METRIC_NAMES[metric]}"
            yield Finding(gained.low > 0 or gained.high < 0, claim, gained, seeds)


def _ahead(runs: Runs) -> Iterator[Finding]:
    """Yields how arms compare with each other."""
    yield from _differences(runs, JOINT, RLVR, ("wins", "rubric_met"))
    pair = _paired(runs, THEN_PREFERENCE, RUBRIC, "rubric_met")
    if pair is not None:
        yield Finding(pair[0].high < 0, "preference after rubric forgets the rubric", *pair)
    yield from _differences(runs, JOINT, THEN_PREFERENCE, ("rubric_met",))
    for other in (DPO, ONLINE_DPO):
        yield from _differences(runs, JOINT, other, tuple(METRIC_NAMES))
    yield from _differences(runs, ONLINE_DPO, DPO, tuple(METRIC_NAMES))


def _comparison(runs: Runs, model: str, baseline: str) -> list[Finding] | None:
    """Returns how two models compare in all metrics; None if they have too few seeds."""
    comparison = [*_differences(runs, model, baseline, tuple(METRIC_NAMES))]
    return comparison if comparison and comparison[0].seeds >= _MIN_SEEDS else None


def _is_better(comparison: list[Finding]) -> bool:
    """Returns whether a model is ahead in a metric and behind in none."""
    shown = [finding.difference.mean > 0 for finding in comparison if finding.is_shown]
    return bool(shown) and all(shown)


def _differences(
    runs: Runs, model: str, baseline: str, metrics: tuple[str, ...]
) -> Iterator[Finding]:
    """Yields of each metric whether a model is ahead of another, or behind."""
    for metric in metrics:
        pair = _paired(runs, model, baseline, metric)
        if pair is None:
            return
        difference, seeds = pair
        names = MODEL_NAMES[model], MODEL_NAMES[baseline], METRIC_NAMES[metric]
        if difference.low <= 0 <= difference.high:
            claim = "a difference of {} from {} in {}".format(*names)
            yield Finding(False, claim, difference, seeds)
        else:
            position = "ahead of" if difference.low > 0 else "behind"
            claim = f"{names[0]} is {position} {names[1]} in {names[2]}"
            yield Finding(True, claim, difference, seeds)


def _from_start(start: ReplyMetrics, runs: Runs, model: str, metric: str) -> tuple[Estimate, int]:
    seeds = list(runs[model].values())
    return paired_difference(seeds, [start] * len(seeds), metric), len(seeds)


def _paired(runs: Runs, model: str, baseline: str, metric: str) -> tuple[Estimate, int] | None:
    """Returns a difference on the seeds that both models have, and how many these are."""
    models, baselines = runs.get(model, {}), runs.get(baseline, {})
    seeds = sorted(models.keys() & baselines.keys())
    if not seeds:
        return None
    difference = paired_difference(
        [models[seed] for seed in seeds], [baselines[seed] for seed in seeds], metric
    )
    return difference, len(seeds)
