"""Evaluation: benchmarks as tasks, grading, intervals, comparisons, and results on disk."""

from stepaudio_jax.evaluation.comparison import compare, compare_results, tabulate_comparison
from stepaudio_jax.evaluation.grading import (
    Answer,
    Results,
    Table,
    TaskScore,
    as_markdown,
    as_text,
    normalize_answer,
    score,
)
from stepaudio_jax.evaluation.paired_statistics import (
    Comparison,
    compare_paired,
    minimum_detectable_difference,
)
from stepaudio_jax.evaluation.questions import (
    answer_at_temperatures,
    answer_questions,
    read_questions,
)
from stepaudio_jax.evaluation.results import BenchmarkResults, Sample, TaskResults
from stepaudio_jax.evaluation.results_files import read_results, read_samples, write_results
from stepaudio_jax.evaluation.results_table import tabulate_results
from stepaudio_jax.evaluation.statistics import (
    Interval,
    mean_interval,
    pass_at_k,
    repeated_runs,
    wilson_interval,
)
from stepaudio_jax.evaluation.table1 import tabulate_table1

__all__ = [
    "Answer",
    "BenchmarkResults",
    "Comparison",
    "Interval",
    "Results",
    "Sample",
    "Table",
    "TaskResults",
    "TaskScore",
    "answer_at_temperatures",
    "answer_questions",
    "as_markdown",
    "as_text",
    "compare",
    "compare_paired",
    "compare_results",
    "mean_interval",
    "minimum_detectable_difference",
    "normalize_answer",
    "pass_at_k",
    "read_questions",
    "read_results",
    "read_samples",
    "repeated_runs",
    "score",
    "tabulate_comparison",
    "tabulate_results",
    "tabulate_table1",
    "wilson_interval",
    "write_results",
]
