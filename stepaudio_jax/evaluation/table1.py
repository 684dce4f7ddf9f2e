"""Table 1 of the Step-Audio-R1.5 report (arXiv:2604.25719), with the user's row beside it."""

import dataclasses
from collections.abc import Mapping, Sequence

from stepaudio_jax.evaluation.grading import Table, printable_name
from stepaudio_jax.evaluation.results import BenchmarkResults, Mode
from stepaudio_jax.evaluation.statistics import Interval
from stepaudio_jax.storage import first_few

AVERAGE = "Avg."
PART_MARK, FAILED_MARK, COUNT_MARK = "*", "!", "#"

# Items of each column's full benchmark, by which the paper's figures are fractions of it. Of
# Step-SPQA the five other models fit 500, and Step-Audio-R1 fits 550.
PAPER_ITEMS: Mapping[str, tuple[int, ...]] = {
    "Audio MC": (452,),
    "Big Bench": (1000,),
    "MMSU": (5000,),
    "MMAU": (1000,),
    "Spoken MQA": (2269,),
    "Step-Caption": (905,),
    "Step-DU": (87,),
    "Step-SPQA": (500, 550),
}
COLUMNS: tuple[str, ...] = tuple(PAPER_ITEMS)

# In the order of the columns, in percent.
_PAPER_SCORES: Mapping[str, tuple[float, ...]] = {
    "Gemini 3 Flash": (56.42, 96.80, 76.64, 75.90, 95.37, 65.12, 80.46, 73.80),
    "Gemini 3 Pro": (66.37, 99.40, 83.70, 79.80, 96.56, 75.55, 72.41, 63.60),
    "qwen3.5-omni-flash": (25.44, 59.59, 72.50, 77.20, 93.39, 73.57, 83.91, 78.80),
    "qwen3.5-omni-plus": (39.38, 73.03, 82.74, 79.60, 96.03, 74.93, 85.63, 74.80),
    "Step-Audio-R1": (24.61, 98.29, 75.68, 77.00, 95.06, 70.60, 64.37, 74.36),
    "Step-Audio-R1.5": (41.15, 98.30, 79.03, 77.90, 93.74, 71.48, 82.76, 79.40),
}


@dataclasses.dataclass(frozen=True)
class TableCell:
    """Holds one score of Table 1.

    Attributes:
        percent: the score.
        interval: 95 % interval in percent; None for the paper's, which states none.
        marks: what the notes below the table explain.
    """

    percent: float
    interval: Interval | None = None
    marks: str = ""


@dataclasses.dataclass(frozen=True)
class TableRow:
    """Holds a model's row: its scores by column; a column that was not measured is absent.

    Attributes:
        model: name.
        cells: {column: score}.
        is_paper: whether the figures are the paper's.
        notes: what a reader must know of the marks.
    """

    model: str
    cells: Mapping[str, TableCell]
    is_paper: bool = False
    notes: tuple[str, ...] = ()

    @property
    def average(self) -> float | None:
        """Returns the unweighted mean of the eight columns; None unless all are there."""
        if not all(column in self.cells for column in COLUMNS):
            return None
        return sum(self.cells[column].percent for column in COLUMNS) / len(COLUMNS)


def paper_rows() -> tuple[TableRow, ...]:
    """Returns the rows that the paper printed."""
    return tuple(
        TableRow(
            model,
            {column: TableCell(v) for column, v in zip(COLUMNS, scores, strict=True)},
            is_paper=True,
        )
        for model, scores in _PAPER_SCORES.items()
    )


def benchmark_row(results: BenchmarkResults) -> TableRow:
    """Returns the row of a model, from the headline figures of the tasks that fill a column.

    Marks say where a score is of a part of the items, where items failed, and where the full
    benchmark has another number of items than the paper's.
    """
    cells: dict[str, TableCell] = {}
    parts, failures, counts, repeated = [], [], [], []
    for task in results.tasks:
        metric, column = task.headline_metric, task.table_column
        if column is None or column not in COLUMNS or metric is None or metric.value is None:
            continue
        if column in cells:
            repeated.append(f"{task.name} ({column})")
            continue
        marks = ""
        if task.is_part:
            marks += PART_MARK
            parts.append(f"{column} {task.items} of {task.items_total}")
        elif task.items_total not in PAPER_ITEMS[column]:
            marks += COUNT_MARK
            printed = " or ".join(map(str, PAPER_ITEMS[column]))
            counts.append(f"{column} {task.items_total} instead of {printed}")
        if metric.failed:
            marks += FAILED_MARK
            failures.append(f"{column} {metric.failed}")
        interval = metric.interval and Interval(
            100 * metric.interval.low, 100 * metric.interval.high
        )
        cells[column] = TableCell(100 * metric.value, interval, marks)
    name = row_name(results.model.name, results.mode)
    notes = [
        f"{printable_name(name)}: {mark} {text}: {first_few(items, limit=8)}."
        for mark, text, items in (
            (PART_MARK, "of a part of the items", parts),
            (COUNT_MARK, "another number of items than the paper's", counts),
            (FAILED_MARK, "items without a reply or a verdict, see the results", failures),
        )
        if items
    ]
    if repeated:
        notes.append(
            f"{printable_name(name)}: another task fills the column already: {', '.join(repeated)}."
        )
    missing = [column for column in COLUMNS if column not in cells]
    if missing and cells:
        notes.append(
            f"{printable_name(name)}: no {AVERAGE}, which needs all eight columns;"
            f" {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not measured."
        )
    return TableRow(name, cells, notes=tuple(notes))


def row_name(model: str, mode: Mode) -> str:
    """Returns how a row names a model, and what it was given where that was not the sound."""
    return model if mode == "sound" else f"{model} ({mode} only)"


def tabulate_table1(results: Sequence[BenchmarkResults]) -> Table:
    """Returns the paper's rows, and a row for each of the results below them.

    `grading.as_text` and `as_markdown` format it.
    """
    rows = [benchmark_row(of_model) for of_model in results]
    paper_note = (
        "The paper's rows are its own figures: its scorers and judges are not published, so that"
        " rows compare only as far as the protocols agree."
    )
    return Table(
        header=("model", *COLUMNS, AVERAGE),
        rows=tuple(map(row_cells, (*paper_rows(), *rows))),
        notes=(paper_note, *(note for row in rows for note in row.notes)),
    )


def row_cells(row: TableRow) -> tuple[str, ...]:
    """Returns a row as text, scores with two decimals; what was not measured is a dash."""
    scores = [
        f"{cell.percent:.2f}{cell.marks}" if (cell := row.cells.get(column)) else "-"
        for column in COLUMNS
    ]
    average = "-" if row.average is None else f"{row.average:.2f}"
    marks = {mark for cell in row.cells.values() for mark in cell.marks}
    shown = "".join(mark for mark in (PART_MARK, COUNT_MARK, FAILED_MARK) if mark in marks)
    return (printable_name(row.model), *scores, average + (shown if row.average else ""))
