"""Evaluation: asking questions with verifiable answers, grading, and confidence intervals."""

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
from stepaudio_jax.evaluation.questions import (
    answer_at_temperatures,
    answer_questions,
    read_questions,
)
from stepaudio_jax.evaluation.statistics import Interval, wilson_interval

__all__ = [
    "Answer",
    "Interval",
    "Results",
    "Table",
    "TaskScore",
    "answer_at_temperatures",
    "answer_questions",
    "as_markdown",
    "as_text",
    "normalize_answer",
    "read_questions",
    "score",
    "wilson_interval",
]
