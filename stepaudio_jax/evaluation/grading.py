"""Replies against verifiable answers: right or wrong, and how often by task."""

import collections
import dataclasses
from collections.abc import Iterable, Sequence

from stepaudio_jax.data import Record
from stepaudio_jax.evaluation.statistics import Interval, wilson_interval
from stepaudio_jax.text import ParsedReply

_FULL_STOPS = (".", "。")


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a model made of one question.

    Attributes:
        question: the record; its `source` is the task.
        expected: the right answer.
        parsed: what the model wrote, taken apart.
    """

    question: Record
    expected: str
    parsed: ParsedReply

    @property
    def correct(self) -> bool:
        """Whether the reply is the right answer. A malformed reply is wrong, whatever it says."""
        return self.parsed.well_formed and normalize_answer(self.parsed.reply) == normalize_answer(
            self.expected
        )


@dataclasses.dataclass(frozen=True)
class TaskScore:
    """How a model did in one task.

    Attributes:
        task: its name.
        n: questions.
        correct: of them, those answered rightly.
        well_formed: of them, those answered in the format; the others count as wrong.
        chance: how often the best constant reply is right, see `score`.
    """

    task: str
    n: int
    correct: int
    well_formed: int
    chance: float

    @property
    def accuracy(self) -> float:
        """The share answered rightly."""
        return self.correct / self.n

    @property
    def interval(self) -> Interval:
        """The 95 % interval of the accuracy."""
        return wilson_interval(self.correct, self.n)

    @property
    def interval_contains_chance(self) -> bool:
        """Whether chance lies within the interval."""
        return self.interval.contains(self.chance)


def normalize_answer(reply: str) -> str:
    """A reply without what does not count: case, white space around it, and one full stop at its end."""
    text = reply.strip().casefold()
    for full_stop in _FULL_STOPS:
        if text.endswith(full_stop):
            return text.removesuffix(full_stop).rstrip()
    return text


def score(answers: Iterable[Answer]) -> dict[str, TaskScore]:
    """The score of each task, in the order in which the tasks first come.

    Chance is the accuracy of the best reply that ignores the question: the share of the most
    frequent answer among a task's questions. Where every answer is equally frequent, that is one
    over the number of answers.
    """
    tasks: dict[str, list[Answer]] = {}
    for answer in answers:
        tasks.setdefault(answer.question.source, []).append(answer)
    return {task: _score(task, of_task) for task, of_task in tasks.items()}


def _score(task: str, answers: Sequence[Answer]) -> TaskScore:
    frequencies = collections.Counter(normalize_answer(answer.expected) for answer in answers)
    return TaskScore(
        task=task,
        n=len(answers),
        correct=sum(answer.correct for answer in answers),
        well_formed=sum(answer.parsed.well_formed for answer in answers),
        chance=max(frequencies.values()) / len(answers),
    )
