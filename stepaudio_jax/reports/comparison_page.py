"""Writes the page that compares two results: differences as pictures, the items that flipped."""

import json
from collections.abc import Mapping, Sequence

from stepaudio_jax.errors import OutputError
from stepaudio_jax.evaluation.comparison import (
    FigureComparison,
    ResultsComparison,
    TaskComparison,
    compare_results,
    tabulate_comparison,
)
from stepaudio_jax.evaluation.results import BenchmarkResults, Sample
from stepaudio_jax.evaluation.results_files import RESULTS, SAMPLES, read_results, read_samples
from stepaudio_jax.evaluation.statistics import Interval
from stepaudio_jax.evaluation.table1 import tabulate_table1
from stepaudio_jax.reports.html import Html, joined
from stepaudio_jax.reports.interval_picture import interval_picture
from stepaudio_jax.reports.page import (
    MAX_CHARS,
    folded,
    is_page,
    muted,
    render_page,
    table,
    written,
)
from stepaudio_jax.storage import (
    PathLike,
    atomic_text_writer,
    check_output_file,
    to_path,
    truncate,
    write_json,
)

_MAX_FLIPS = 40  # of a task


def write_comparison(
    results_a: PathLike,
    results_b: PathLike,
    *,
    page: PathLike | None = None,
    json_file: PathLike | None = None,
) -> ResultsComparison:
    """Compares two folders of results, and writes the comparison where files are named.

    Args:
        results_a, results_b: the folders.
        page: the HTML file; None writes none.
        json_file: the JSON file; None writes none.

    Raises:
        DataError: results cannot be read; names file, line and key.
        OutputError: a file would replace what is no page or no comparison, or cannot be written.
    """
    folders = [to_path(results) for results in (results_a, results_b)]
    inputs = [folder / name for folder in folders for name in (RESULTS, SAMPLES)]
    if page is not None:
        check_output_file(page, inputs, may_replace=is_page, option="--output")
    if json_file is not None:
        check_output_file(json_file, inputs, may_replace=lambda _: True, option="--json")
    if page is not None and json_file is not None and to_path(page) == to_path(json_file):
        raise OutputError(f"{page} cannot be both the page and the JSON; name two files")
    a, b = (read_results(folder) for folder in folders)
    samples_a, samples_b = (read_samples(folder) for folder in folders)
    compared = compare_results(a, samples_a, b, samples_b)
    if page is not None:
        html = render_page(
            "Comparison",
            f"A is {compared.a}, B is {compared.b}",
            _sections(compared, (a, b), samples_a, samples_b),
        )
        with atomic_text_writer(page) as file:
            file.write(html)
    if json_file is not None:
        write_json(json_file, compared.to_json())
    return compared


def _sections(
    compared: ResultsComparison,
    results: Sequence[BenchmarkResults],
    samples_a: Sequence[Sample],
    samples_b: Sequence[Sample],
) -> dict[str, Html | None]:
    printed = tabulate_table1(results)
    has_columns = any(
        task.table_column is not None for of_model in results for task in of_model.tasks
    )
    table1 = joined(
        table(printed.header, printed.rows, "Table 1 of the report"), muted(*printed.notes)
    )
    return {
        "Differences": _differences(compared),
        "Table 1": table1 if has_columns else None,
        "Items that differ": _flips(compared, _first_samples(samples_a), _first_samples(samples_b)),
    }


def _differences(compared: ResultsComparison) -> Html:
    printed = tabulate_comparison(compared)
    figures = [figure for task in compared.tasks for figure in task.figures]
    place = printed.header.index("95 % interval") + 1
    rows = [
        (*cells[:place], _picture(figure), *cells[place:])
        for cells, figure in zip(printed.rows, figures, strict=True)
    ]
    header = (*printed.header[:place], "B less A", *printed.header[place:])
    note = "In the picture the tick is no difference, and the line goes from -100 to 100 points."
    return joined(
        table(header, rows, "Differences of all figures", words=3),
        muted(*printed.notes, note),
    )


def _picture(figure: FigureComparison) -> Html:
    comparison, interval = figure.comparison, figure.comparison.interval
    scaled = None if interval is None else Interval(_half(interval.low), _half(interval.high))
    return interval_picture(_half(comparison.difference), scaled, ticks=(0.5,))


def _half(difference: float) -> float:
    """Maps -1..1 to 0..1."""
    return (difference + 1) / 2


def _first_samples(samples: Sequence[Sample]) -> dict[tuple[str, str], Sample]:
    first: dict[tuple[str, str], Sample] = {}
    for sample in samples:
        first.setdefault((sample.task, sample.id), sample)
    return first


def _flips(
    compared: ResultsComparison,
    samples_a: Mapping[tuple[str, str], Sample],
    samples_b: Mapping[tuple[str, str], Sample],
) -> Html | None:
    parts = [_task_flips(task, samples_a, samples_b) for task in compared.tasks]
    present = [part for part in parts if part is not None]
    return joined(*present) if present else None


def _task_flips(
    task: TaskComparison,
    samples_a: Mapping[tuple[str, str], Sample],
    samples_b: Mapping[tuple[str, str], Sample],
) -> Html | None:
    if task.headline is None or not task.headline.flips:
        return None
    flips = task.headline.flips
    rows = [
        (
            truncate(flip.id),
            f"{flip.a:g}",
            f"{flip.b:g}",
            _reply(samples_a[task.task, flip.id]),
            _reply(samples_b[task.task, flip.id]),
        )
        for flip in flips[:_MAX_FLIPS]
    ]
    more = [f"{_MAX_FLIPS} of {len(flips)} are shown; the JSON has all."]
    return folded(
        f"{task.task}: {len(flips)} items, {task.headline.comparison.better} better and"
        f" {task.headline.comparison.worse} worse in B",
        table(
            ("item", "A", "B", "reply of A", "reply of B"),
            rows,
            f"Items of {task.task} that differ",
            words=5,
            class_="texts",
        ),
        muted(*(more if len(flips) > _MAX_FLIPS else [])),
    )


def _reply(sample: Sample) -> Html:
    if sample.is_failed:
        return muted(f"no reply: {truncate(sample.error)}")
    judged = sample.scores.judged
    details = (
        muted(truncate(json.dumps(judged.details, ensure_ascii=False)))
        if judged is not None and judged.details
        else None
    )
    return joined(written(sample.reply, max_chars=MAX_CHARS), details)
