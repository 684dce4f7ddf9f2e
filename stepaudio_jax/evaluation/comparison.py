"""Compares two models' results task by task, on the items that both have."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from stepaudio_jax.config.build import to_dict
from stepaudio_jax.evaluation.grading import Table, printable_name
from stepaudio_jax.evaluation.metrics import SCORINGS, Scoring, item_value, scorings_of
from stepaudio_jax.evaluation.paired_statistics import (
    Comparison,
    adjusted_p_values,
    compare_paired,
)
from stepaudio_jax.evaluation.results import BenchmarkResults, Sample, TaskResults, scored_items
from stepaudio_jax.evaluation.results_files import read_results, read_samples
from stepaudio_jax.evaluation.table1 import row_name
from stepaudio_jax.storage import PathLike, first_few

_MAX_NAMED = 5  # items in a message


@dataclasses.dataclass(frozen=True)
class Flip:
    """Names an item whose score differs.

    Attributes:
        id: of the item.
        a, b: its share of the figure in each result.
    """

    id: str
    a: float
    b: float


@dataclasses.dataclass(frozen=True)
class FigureComparison:
    """Compares one figure of a task.

    Attributes:
        scoring: whose verdicts.
        metric: name of the figure.
        is_headline: whether it stands for the task.
        comparison: on the items that count in both.
        left_out: items of both that leave the denominator in one of them.
        flips: items whose score differs, in order.
    """

    scoring: Scoring
    metric: str
    is_headline: bool
    comparison: Comparison
    left_out: int
    flips: tuple[Flip, ...]


@dataclasses.dataclass(frozen=True)
class TaskComparison:
    """Compares two models in one task.

    Attributes:
        task: name.
        figures: the headline first, then accuracy by each scoring that both have.
        only_a, only_b: ids of the items that the other does not have.
        warnings: what else than the model differs.
        adjusted_p: of the headline, allowing for the number of tasks (Holm); None without figures.
    """

    task: str
    figures: tuple[FigureComparison, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    warnings: tuple[str, ...]
    adjusted_p: float | None = None

    @property
    def headline(self) -> FigureComparison | None:
        """Returns the comparison of the figure that stands for the task."""
        return next((figure for figure in self.figures if figure.is_headline), None)


@dataclasses.dataclass(frozen=True)
class ResultsComparison:
    """Compares two results.

    Attributes:
        a, b: what they are called.
        tasks: of both, in A's order.
        only_a, only_b: tasks that the other does not have.
        warnings: what else than the model differs in all of them.
    """

    a: str
    b: str
    tasks: tuple[TaskComparison, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Returns everything as plain values."""
        return {"kind": "stepaudio_jax benchmark comparison", "format": 1, **to_dict(self)}


def compare(results_a: PathLike, results_b: PathLike) -> ResultsComparison:
    """Compares two folders of results, on the items that both have.

    Args:
        results_a, results_b: folders that `results.write_results` wrote.

    Raises:
        DataError: one cannot be read; names file, line and key.
    """
    return compare_results(
        read_results(results_a),
        read_samples(results_a),
        read_results(results_b),
        read_samples(results_b),
    )


def compare_results(
    a: BenchmarkResults,
    samples_a: Iterable[Sample],
    b: BenchmarkResults,
    samples_b: Iterable[Sample],
) -> ResultsComparison:
    """Compares two results with their samples; see `compare`."""
    by_task_a, by_task_b = _by_task(samples_a), _by_task(samples_b)
    names_a, names_b = ([task.name for task in results.tasks] for results in (a, b))
    tasks = []
    for task_a in a.tasks:
        task_b = b.task(task_a.name)
        if task_b is not None:
            name = task_a.name
            tasks.append(
                _compare_task(task_a, by_task_a.get(name, []), task_b, by_task_b.get(name, []))
            )
    warnings = [] if a.mode == b.mode else [f"A was given the {a.mode}, and B the {b.mode}"]
    return ResultsComparison(
        a=row_name(a.model.name, a.mode),
        b=row_name(b.model.name, b.mode),
        tasks=_with_adjusted_p(tasks),
        only_a=tuple(name for name in names_a if name not in names_b),
        only_b=tuple(name for name in names_b if name not in names_a),
        warnings=tuple(warnings),
    )


def tabulate_comparison(compared: ResultsComparison) -> Table:
    """Returns a row for each figure, in percent and percentage points, with notes.

    `grading.as_text` and `as_markdown` format it.
    """
    rows = [_row(task, figure) for task in compared.tasks for figure in task.figures]
    notes = [
        f"A is {printable_name(compared.a)}, B is {printable_name(compared.b)}; a difference is B"
        " less A, in percentage points."
    ]
    notes += [f"{warning}." for warning in compared.warnings]
    for label, names in (("A", compared.only_a), ("B", compared.only_b)):
        if names:
            notes.append(f"only in {label}: {', '.join(map(printable_name, names))}.")
    notes += [note for task in compared.tasks for note in _notes(task)]
    notes.append(
        "detectable: the smallest difference that 80 % of comparisons of this size would find at"
        " 5 %."
    )
    headlines = [task for task in compared.tasks if task.adjusted_p is not None]
    if len(headlines) > 1:
        adjusted = ", ".join(f"{task.task} {_p(task.adjusted_p or 0.0)}" for task in headlines)
        notes.append(f"p of the headlines, allowing for their number (Holm): {adjusted}.")
    header = ("task", "scoring", "metric", "A", "B", "difference", "95 % interval", "p", "n")
    return Table((*header, "better", "worse", "detectable"), tuple(rows), tuple(notes), words=3)


def _by_task(samples: Iterable[Sample]) -> dict[str, list[Sample]]:
    by_task: dict[str, list[Sample]] = {}
    for sample in samples:
        by_task.setdefault(sample.task, []).append(sample)
    return by_task


def _compare_task(
    a: TaskResults, samples_a: Sequence[Sample], b: TaskResults, samples_b: Sequence[Sample]
) -> TaskComparison:
    parts_a, parts_b = _headline_parts(samples_a), _headline_parts(samples_b)
    both = [item for item in parts_a if item in parts_b]
    clusters = {sample.id: sample.cluster for sample in samples_a}
    figures = []
    if both and a.headline is not None:
        figures.append(_figure(a.headline, {i: parts_a[i] for i in both}, parts_b, clusters, True))
    items_a = {item.id: item for item in scored_items(samples_a).get(a.name, [])}
    items_b = {item.id: item for item in scored_items(samples_b).get(b.name, [])}
    shared = set(scorings_of([*items_a.values()])) & set(scorings_of([*items_b.values()]))
    for scoring in SCORINGS:
        if scoring in shared and (scoring, "accuracy") != a.headline:
            values_a, values_b = (
                {i: _part(item_value(scoring, items[i])) for i in both}
                for items in (items_a, items_b)
            )
            figures.append(_figure((scoring, "accuracy"), values_a, values_b, clusters, False))
    return TaskComparison(
        task=a.name,
        figures=tuple(figure for figure in figures if figure is not None),
        only_a=tuple(item for item in parts_a if item not in parts_b),
        only_b=tuple(item for item in parts_b if item not in parts_a),
        warnings=tuple(_differences(a, b)),
    )


Part = tuple[float, float] | None


def _part(value: float | None) -> Part:
    return None if value is None else (value, 1.0)


def _headline_parts(samples: Iterable[Sample]) -> dict[str, Part]:
    """Returns what each item adds to the headline: the mean of its replies that count."""
    by_item: dict[str, list[tuple[float, float]]] = {}
    for sample in samples:
        parts = by_item.setdefault(sample.id, [])
        if sample.headline is not None:
            parts.append(sample.headline)
    return {
        item: (sum(p[0] for p in parts) / len(parts), sum(p[1] for p in parts) / len(parts))
        if parts
        else None
        for item, parts in by_item.items()
    }


def _figure(
    figure: tuple[Scoring, str],
    parts_a: Mapping[str, Part],
    parts_b: Mapping[str, Part],
    clusters: Mapping[str, str],
    is_headline: bool,
) -> FigureComparison | None:
    pairs = {item: (part, parts_b[item]) for item, part in parts_a.items()}
    counted = {item: (x, y) for item, (x, y) in pairs.items() if x is not None and y is not None}
    if not counted:
        return None
    above_a = [x[0] for x, _ in counted.values()]
    above_b = [y[0] for _, y in counted.values()]
    weights = [x[1] for x, _ in counted.values()]
    is_mean = all(weight == 1 for weight in weights)
    if not sum(weights):
        return None
    comparison = compare_paired(
        above_a,
        above_b,
        [clusters[item] for item in counted],
        weights=None if is_mean else weights,
    )
    flips = tuple(Flip(item, x[0], y[0]) for item, (x, y) in counted.items() if x[0] != y[0])
    return FigureComparison(*figure, is_headline, comparison, len(pairs) - len(counted), flips)


def _differences(a: TaskResults, b: TaskResults) -> Iterable[str]:
    """Yields what else than the model differs between two results of a task."""
    if a.version != b.version:
        yield f"version {a.version} in A, {b.version} in B"
    if a.data_hash != b.data_hash:
        yield "the data differ (other hash): items are paired by id all the same"
    for name in dict.fromkeys((*a.prompt_hashes, *b.prompt_hashes)):
        if a.prompt_hashes.get(name) != b.prompt_hashes.get(name):
            yield f"the prompt {name} differs"
    if a.headline != b.headline:
        names = [each.headline[1] if each.headline else "none" for each in (a, b)]
        yield f"the headline is {names[0]} in A, {names[1]} in B"
    if a.judge != b.judge:
        names = ["none" if judge is None else judge.name for judge in (a.judge, b.judge)]
        yield f"another judge, or another setting of it: {names[0]} in A, {names[1]} in B"
    keys = dict.fromkeys((*a.sampling, *b.sampling))
    settings = [
        f"{key} {a.sampling.get(key)} and {b.sampling.get(key)}"
        for key in keys
        if a.sampling.get(key) != b.sampling.get(key)
    ]
    if settings:
        yield f"decoding differs: {', '.join(settings)}"
    if a.samples != b.samples:
        yield f"{a.samples} samples of an item in A, {b.samples} in B"


def _with_adjusted_p(tasks: Sequence[TaskComparison]) -> tuple[TaskComparison, ...]:
    with_headline = [task for task in tasks if task.headline is not None]
    adjusted = dict(
        zip(
            [task.task for task in with_headline],
            adjusted_p_values(
                [task.headline.comparison.p_value for task in with_headline if task.headline]
            ),
            strict=True,
        )
    )
    return tuple(dataclasses.replace(t, adjusted_p=adjusted.get(t.task)) for t in tasks)


def _row(task: TaskComparison, figure: FigureComparison) -> tuple[str, ...]:
    comparison = figure.comparison
    interval = comparison.interval
    return (
        printable_name(task.task),
        figure.scoring,
        printable_name(figure.metric),
        f"{100 * comparison.mean_a:.2f}",
        f"{100 * comparison.mean_b:.2f}",
        f"{100 * comparison.difference:+.2f}",
        "-" if interval is None else f"{100 * interval.low:+.2f} to {100 * interval.high:+.2f}",
        _p(comparison.p_value),
        str(comparison.n),
        str(comparison.better),
        str(comparison.worse),
        "-" if comparison.detectable is None else f"{100 * comparison.detectable:.2f}",
    )


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else "< 0.001"


def _notes(task: TaskComparison) -> Iterable[str]:
    name = printable_name(task.task)
    for warning in task.warnings:
        yield f"{name}: {printable_name(warning)}."
    for label, ids in (("A", task.only_a), ("B", task.only_b)):
        if ids:
            shown = first_few([printable_name(i) for i in ids], limit=_MAX_NAMED)
            yield f"{name}: {len(ids)} items are only in {label}, and left out: {shown}."
    if not task.figures:
        yield f"{name}: no item counts in both."
    for figure in task.figures:
        if figure.left_out:
            yield (
                f"{name}, {figure.scoring}: {figure.left_out} items leave the denominator in A or"
                " B, and are left out."
            )
