"""Shows how much of a score needs hearing: the same items with silence, or with transcripts."""

from collections.abc import Sequence

from stepaudio_jax.evaluation.comparison import ResultsComparison, TaskComparison
from stepaudio_jax.evaluation.results import BenchmarkResults
from stepaudio_jax.reports.html import Html, element, joined
from stepaudio_jax.reports.interval_picture import interval_picture
from stepaudio_jax.reports.page import muted, table


def hearing_section(
    controls: Sequence[tuple[BenchmarkResults, ResultsComparison]],
) -> Html | None:
    """Returns a table for each control; None without one.

    Args:
        controls: results of a control, and their comparison (A) with those of the sound (B).
    """
    parts = [_control(results, compared) for results, compared in controls]
    return joined(*parts) if parts else None


def _control(results: BenchmarkResults, compared: ResultsComparison) -> Html:
    given = results.mode
    rows = [row for task in compared.tasks if (row := _row(task)) is not None]
    header = (
        "task",
        "metric",
        "sound",
        f"{given} only",
        "needs hearing",
        "95 % interval",
        "p",
        "n",
        "0 to 100",
    )
    if not rows:
        return muted(f"With {given} in place of the sound: no item counts in both results.")
    sentences = [_sentence(task, given) for task in compared.tasks if task.headline is not None]
    notes = [f"{task.task}: {warning}." for task in compared.tasks for warning in task.warnings] + [
        f"Not measured with the {given}: {', '.join(compared.only_b)}."
    ] * bool(compared.only_b)
    return joined(
        element("h3", f"With {given} only", class_="group"),
        *(element("p", sentence) for sentence in sentences),
        table(header, rows, f"With {given} in place of the sound", words=2),
        muted(
            f"The dot is with the sound, the ring with {given} only. What needs hearing is their"
            " difference in points, on the items that both have.",
            *notes,
        ),
    )


def _row(task: TaskComparison) -> tuple[str | Html, ...] | None:
    if task.headline is None:
        return None
    figure = task.headline
    compared = figure.comparison
    interval = compared.interval
    return (
        task.task,
        figure.metric,
        f"{100 * compared.mean_b:.2f}",
        f"{100 * compared.mean_a:.2f}",
        f"{100 * compared.difference:+.2f}",
        "-" if interval is None else f"{100 * interval.low:+.1f} to {100 * interval.high:+.1f}",
        f"{compared.p_value:.3f}" if compared.p_value >= 0.001 else "< 0.001",
        str(compared.n),
        interval_picture(compared.mean_b, None, ring=compared.mean_a),
    )


def _sentence(task: TaskComparison, given: str) -> str:
    """Returns what the control says of a task, in words."""
    assert task.headline is not None
    compared = task.headline.comparison
    name = f"{task.task}: {100 * compared.mean_b:.2f} with the sound"
    kept = f"{100 * compared.mean_a:.2f} with {given} only"
    if compared.p_value >= 0.05:
        return f"{name}, {kept}: no part of the score is shown to need hearing."
    return f"{name}, {kept}: {100 * compared.difference:.2f} points need hearing."
