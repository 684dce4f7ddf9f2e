"""Evaluation: questions with verifiable answers, how a model does in them, and the report of a run."""

from stepaudio_jax.evaluation.examples import choose_examples
from stepaudio_jax.evaluation.grading import Answer, TaskScore, normalised, score
from stepaudio_jax.evaluation.logged_run import ReportError
from stepaudio_jax.evaluation.questions import answer_questions, answers_at, read_questions, silence
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
    "answer_questions",
    "answers_at",
    "as_markdown",
    "as_text",
    "choose_examples",
    "normalised",
    "read_questions",
    "score",
    "silence",
    "wilson_interval",
    "write_report",
]
