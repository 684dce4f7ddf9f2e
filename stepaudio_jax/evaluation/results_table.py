"""The console table of results: each figure with its interval, its denominator, what was lost."""

from collections.abc import Iterable

from stepaudio_jax.evaluation.grading import Table, printable_name
from stepaudio_jax.evaluation.metrics import Metric
from stepaudio_jax.evaluation.results import BenchmarkResults, TaskResults
from stepaudio_jax.storage import first_few, truncate

_HEADER = ("task", "version", "scoring", "metric", "value", "95 % interval", "n")
_COUNTS = ("unparsed", "dropped", "failed")
_MAX_ERRORS = 3


def tabulate_results(results: BenchmarkResults, *, by_group: bool = False) -> Table:
    """Returns a row for each figure, in percent, with notes on parts and errors.

    `grading.as_text` and `as_markdown` format it. "n" is the denominator; "unparsed" replies count
    as wrong, "dropped" ones are those that the published rule leaves out, "failed" items have no
    reply or no verdict. A dash stands where a count has no meaning.

    Args:
        results: of a model.
        by_group: whether groups have rows too.
    """
    header = [*_HEADER, *_COUNTS]
    if by_group:
        header.insert(2, "group")
    rows = []
    for task in results.tasks:
        for metric in task.metrics:
            if by_group or not metric.group:
                rows.append(_row(task, metric, by_group=by_group))
    notes = [note for task in results.tasks for note in _notes(task)]
    return Table(tuple(header), tuple(rows), tuple(notes), words=5 if by_group else 4)


def format_value(metric: Metric) -> str:
    """Returns a figure in percent with two decimals; a dash where there is none."""
    return "-" if metric.value is None else f"{100 * metric.value:.2f}"


def format_interval(metric: Metric) -> str:
    """Returns the ends of a figure's interval in percent; a dash where there is none."""
    if metric.interval is None:
        return "-"
    return f"{100 * metric.interval.low:.1f} to {100 * metric.interval.high:.1f}"


def metric_counts(metric: Metric) -> tuple[str, str, str]:
    """Returns the unparsed, dropped and failed; a dash for what the scoring does not have."""
    return (
        str(metric.unparsed) if metric.scoring == "strict" else "-",
        str(metric.dropped) if metric.scoring == "official" else "-",
        str(metric.failed),
    )


def metric_title(metric: Metric) -> str:
    """Returns the metric's name, with an arrow where less is better."""
    return printable_name(metric.name) + (" ↓" if metric.lower_is_better else "")


def _row(task: TaskResults, metric: Metric, *, by_group: bool) -> tuple[str, ...]:
    cells = [
        printable_name(task.name),
        printable_name(task.version),
        metric.scoring,
        metric_title(metric),
        format_value(metric),
        format_interval(metric),
        str(metric.denominator),
        *metric_counts(metric),
    ]
    if by_group:
        cells.insert(2, printable_name(metric.group))
    return tuple(cells)


def _notes(task: TaskResults) -> Iterable[str]:
    name = printable_name(task.name)
    if task.is_part:
        yield f"{name}: a part, {task.items} of {task.items_total} items."
    if task.errors:
        shown = [
            f"{printable_name(truncate(error.id))} ({printable_name(truncate(error.message))})"
            for error in task.errors
        ]
        count = "1 item has" if len(shown) == 1 else f"{len(shown)} items have"
        yield f"{name}: {count} no reply: {first_few(shown, limit=_MAX_ERRORS)}."
    if task.judge_runs is not None:
        runs = task.judge_runs
        yield (
            f"{name}: judged {runs.runs} times; the figure varies by"
            f" {100 * runs.standard_deviation:.2f} points (standard deviation) from run to run, and"
            f" {100 * runs.agreement:.1f} % of the items have the same verdict in all."
        )
