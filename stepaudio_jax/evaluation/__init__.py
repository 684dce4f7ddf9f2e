"""Evaluation: questions with verifiable answers, how a model does in them, and the report of a run."""

from stepaudio_jax.evaluation.examples import select_examples
from stepaudio_jax.evaluation.grading import Answer, TaskScore, normalize_answer, score
from stepaudio_jax.evaluation.logged_run import ReportError
from stepaudio_jax.evaluation.questions import (
    answer_at_temperatures,
    answer_questions,
    read_questions,
    read_silence,
)
from stepaudio_jax.evaluation.report import write_report
from stepaudio_jax.evaluation.statistics import Interval, wilson_interval
from stepaudio_jax.evaluation.table import Results, Table, as_markdown, as_text

__all__ = [
    "Answer",
    "Interval",
    "ReportError",
    "Results",
    "Table",
    "TaskScore",
    "answer_at_temperatures",
    "answer_questions",
    "as_markdown",
    "as_text",
    "normalize_answer",
    "read_questions",
    "read_silence",
    "score",
    "select_examples",
    "wilson_interval",
    "write_report",
]
