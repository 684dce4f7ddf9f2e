"""Table 1: the paper's figures, and a user's row with its marks."""

import dataclasses
import json

import pytest

from stepaudio_jax.evaluation.grading import as_markdown, as_text
from stepaudio_jax.evaluation.metrics import Metric
from stepaudio_jax.evaluation.results_table import tabulate_results
from stepaudio_jax.evaluation.statistics import wilson_interval
from stepaudio_jax.evaluation.table1 import (
    COLUMNS,
    PAPER_ITEMS,
    benchmark_row,
    paper_rows,
    row_cells,
    tabulate_table1,
)
from tests.evaluation.benchmarks import (
    CORRECT,
    UNPARSED,
    WRONG,
    Tones,
    benchmark_results,
    scored,
    task_results,
)

# The k and n that fit the figures of Step-Audio-R1.5; Step-Caption is a mean of real numbers.
FITS = {
    "Audio MC": (186, 452),
    "Big Bench": (983, 1000),
    "MMSU": (3950, 4998),
    "MMAU": (779, 1000),
    "Spoken MQA": (2127, 2269),
    "Step-Caption": (0.7148 * 905, 905),
    "Step-DU": (72, 87),
    "Step-SPQA": (397, 500),
}


def column_results(column, correct, n, items_total=None, **changes):
    """A task that fills a column with `correct` of `n`, half points allowed."""
    metric = Metric(
        "accuracy", "strict", correct / n, wilson_interval(int(correct), n), correct, n, **changes
    )
    results = task_results(Tones, [scored(i, CORRECT) for i in range(2)], [metric])
    total = PAPER_ITEMS[column][0] if items_total is None else items_total
    return dataclasses.replace(
        results, name=column, table_column=column, items=total, items_total=total
    )


def all_columns():
    return [column_results(column, k, n) for column, (k, n) in FITS.items()]


def test_the_papers_averages_are_the_means_of_its_eight_columns():
    averages = [row_cells(row)[-1] for row in paper_rows()]
    assert averages == ["77.56", "79.67", "70.55", "75.77", "72.50", "77.97"]


def test_the_papers_figures_are_those_of_the_table(shared_benchmarks):
    table = json.loads((shared_benchmarks / "table1.json").read_text(encoding="utf-8"))
    assert tuple(table["columns"]) == COLUMNS
    for row, model in zip(paper_rows(), table["models"], strict=True):
        assert row.model == model["model"]
        assert {column: cell.percent for column, cell in row.cells.items()} == {
            column: score["published"] for column, score in model["scores"].items()
        }
        assert row_cells(row)[-1] == f"{model['avg']:.2f}"
    for column, facts in table["benchmarks"].items():
        items = facts["denominator"]
        assert PAPER_ITEMS[column] == (
            tuple(items.values()) if isinstance(items, dict) else (items,)
        )


def test_the_counts_behind_a_row_give_the_row_and_its_average():
    row = benchmark_row(benchmark_results(*all_columns()))
    expected = next(paper for paper in paper_rows() if paper.model == "Step-Audio-R1.5")
    assert row_cells(row)[1:] == row_cells(expected)[1:]
    assert row.notes == ()
    assert row.cells["MMAU"].interval.low == pytest.approx(100 * wilson_interval(779, 1000).low)


def test_an_average_needs_all_eight_columns():
    row = benchmark_row(benchmark_results(*all_columns()[:-1]))
    assert row.average is None
    assert row_cells(row)[-2:] == ("-", "-")
    assert row.notes == (
        "our-model: no Avg., which needs all eight columns; Step-SPQA is not measured.",
    )
    assert benchmark_row(benchmark_results()).notes == ()


def test_marks_say_what_a_score_is_of():
    part = dataclasses.replace(column_results("MMAU", 7, 10), items=10)
    other = column_results("Step-SPQA", 33, 44, items_total=44, failed=2)
    again = column_results("MMAU", 1, 2)
    text = as_text(tabulate_table1([benchmark_results(part, other, again, mode="silence")]))
    assert "our-model (silence only)" in text
    assert "70.00*" in text
    assert "75.00#!" in text
    assert "* of a part of the items: MMAU 10 of 1000." in text
    assert "# another number of items than the paper's: Step-SPQA 44 instead of 500 or 550." in text
    assert "! items without a reply or a verdict, see the results: Step-SPQA 2." in text
    assert "another task fills the column already: MMAU (MMAU)." in text


def test_several_rows_stand_below_the_papers():
    both = [benchmark_results(*all_columns(), name=name) for name in ("before|x", "after")]
    lines = as_markdown(tabulate_table1(both)).splitlines()
    assert lines[0].count("|") == lines[8].replace("\\|", "").count("|") == 11
    assert [line.split(" ")[1] for line in lines[8:10]] == ["before\\|x", "after"]


def test_the_console_table_has_denominators_and_what_was_lost():
    items = [scored(i, (CORRECT, WRONG, UNPARSED)[i % 3], level="ab"[i % 2]) for i in range(6)]
    items.append(scored(6, error="no\nclip", level="a"))
    results = benchmark_results(task_results(Tones, items, items_total=50, limit=7))
    assert as_text(tabulate_results(results)).splitlines() == [
        "task   version  scoring   metric    value  95 % interval  n  unparsed  dropped  failed",
        "-----  -------  --------  --------  -----  -------------  -  --------  -------  ------",
        "tones  1        strict    accuracy  28.57    8.2 to 64.1  7         2        -       1",
        "tones  1        official  accuracy  50.00   15.0 to 85.0  4         -        2       1",
        "tones: a part, 7 of 50 items.",
        "tones: 1 item has no reply: item-6 ('no\\nclip').",
    ]
    by_group = as_markdown(tabulate_results(results, by_group=True)).splitlines()
    assert by_group[0].startswith("| task | version | group | scoring | metric | value |")
    assert by_group[1] == "| --- | --- | --- | --- | --- |" + " ---: |" * 6
    assert sum("level=a" in line for line in by_group) == 2
