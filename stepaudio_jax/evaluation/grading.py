"""Grades replies against verifiable answers, and tabulates accuracy by task."""

import collections
import dataclasses
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

from stepaudio_jax.data import Record
from stepaudio_jax.evaluation.statistics import Interval, wilson_interval
from stepaudio_jax.text import ParsedReply

_FULL_STOPS = (".", "。")


@dataclasses.dataclass(frozen=True)
class Answer:
    """A model's answer to a question.

    Attributes:
        question: the record; its `source` is the task.
        expected: the right answer.
        parsed: the model's reasoning and reply.
    """

    question: Record
    expected: str
    parsed: ParsedReply

    @property
    def correct(self) -> bool:
        """Returns whether the reply is the right answer; a malformed reply is wrong."""
        return self.parsed.well_formed and normalize_answer(self.parsed.reply) == normalize_answer(
            self.expected
        )


@dataclasses.dataclass(frozen=True)
class TaskScore:
    """A model's results in a task.

    Attributes:
        task: name.
        n: number of questions.
        correct: number of right answers.
        well_formed: number of replies in the format; the others count as wrong.
        chance: accuracy of the best constant reply, see `score`.
    """

    task: str
    n: int
    correct: int
    well_formed: int
    chance: float

    @property
    def accuracy(self) -> float:
        """Returns the fraction of right answers."""
        return self.correct / self.n

    @property
    def interval(self) -> Interval:
        """Returns the 95 % interval of the accuracy."""
        return wilson_interval(self.correct, self.n)

    @property
    def interval_contains_chance(self) -> bool:
        """Returns whether chance lies within the interval."""
        return self.interval.contains(self.chance)


def normalize_answer(reply: str) -> str:
    """Drops what does not count: case, surrounding white space, one full stop at the end."""
    text = reply.strip().casefold()
    for full_stop in _FULL_STOPS:
        if text.endswith(full_stop):
            return text.removesuffix(full_stop).rstrip()
    return text


def score(answers: Iterable[Answer]) -> dict[str, TaskScore]:
    """Scores each task, in the order of their first answers.

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


Scores = Mapping[str, TaskScore]
OUTSIDE_CHANCE_MARK = "*"


@dataclasses.dataclass(frozen=True)
class Results:
    """Scores by task: after training and, where measured, before it and with the audio silenced.

    `before` has the same tasks as `after`; `silenced` those of them that have audio.

    Raises:
        ValueError: the scores are not of the same questions.
    """

    after: Scores
    before: Scores | None = None
    silenced: Scores | None = None

    def __post_init__(self) -> None:
        if not self.after:
            raise ValueError("there are no scores: answer at least one question")
        if self.before is not None and self.before.keys() != self.after.keys():
            raise ValueError(
                f"before has the tasks {', '.join(self.before)}, and after {', '.join(self.after)}"
            )
        for label, scores in (("before", self.before or {}), ("silenced", self.silenced or {})):
            for task, score in scores.items():
                if task not in self.after or (score.n, score.chance) != (
                    self.after[task].n,
                    self.after[task].chance,
                ):
                    raise ValueError(
                        f"task {task!r} of {label!r} was not measured with the questions of 'after'"
                    )


@dataclasses.dataclass(frozen=True)
class Table:
    """The cells of a table as text, and notes below it.

    Attributes:
        header, rows: the cells.
        notes: sentences.
        words: the number of columns, from the first, that hold words; the others hold numbers.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]
    words: int = 1


def tabulate(results: Results) -> Table:
    """Returns the table: task, chance, before, after, silenced, n, 95 % interval of "after".

    What was not measured has no column. Notes say which tasks are answered above or below chance in
    silence, and how many replies were malformed.
    """
    header = ["task", "chance"]
    header += ["before"] * (results.before is not None)
    header += ["after"]
    header += ["silenced"] * (results.silenced is not None)
    header += ["n", "95 % interval"]
    rows = tuple(_row(results, score) for score in results.after.values())
    return Table(tuple(header), rows, (*_silence_notes(results), *_malformed_notes(results)))


def as_text(table: Results | Table) -> str:
    """Formats a table in columns for a terminal."""
    table = tabulate(table) if isinstance(table, Results) else table
    lines = [table.header, *table.rows]
    widths = [max(_columns(line[column]) for line in lines) for column in range(len(table.header))]
    rule = ["-" * width for width in widths]
    padded = [
        "  ".join(_padded(line, widths, table.words)).rstrip()
        for line in (table.header, rule, *table.rows)
    ]
    return "\n".join([*padded, *table.notes]) + "\n"


def as_markdown(table: Results | Table) -> str:
    """Formats a table in Markdown."""
    table = tabulate(table) if isinstance(table, Results) else table
    rule = ["---"] * table.words + ["---:"] * (len(table.header) - table.words)
    lines = [
        f"| {' | '.join(_markdown(cell) for cell in line)} |"
        for line in (table.header, rule, *table.rows)
    ]
    notes = "".join(f"\n{_markdown(note)}\n" for note in table.notes)
    return "\n".join(lines) + "\n" + notes


def percent(share: float) -> str:
    """Formats a fraction: 0.985 -> "98.5 %"."""
    return f"{100 * share:.1f} %"


def printable_name(task: str) -> str:
    """Returns a name on one line, control characters escaped."""
    return task if task.isprintable() else ascii(task)


def _row(results: Results, score: TaskScore) -> tuple[str, ...]:
    cells = [printable_name(score.task), percent(score.chance)]
    if results.before is not None:
        cells.append(percent(results.before[score.task].accuracy))
    cells.append(percent(score.accuracy))
    if results.silenced is not None:
        silenced = results.silenced.get(score.task)
        mark = "" if silenced is None or silenced.interval_contains_chance else OUTSIDE_CHANCE_MARK
        cells.append("no audio" if silenced is None else percent(silenced.accuracy) + mark)
    return (*cells, str(score.n), _range(score.interval))


def _range(interval: Interval) -> str:
    return f"{100 * interval.low:.1f} to {percent(interval.high)}"


def _silence_notes(results: Results) -> list[str]:
    silenced = list((results.silenced or {}).values())
    if not silenced:
        return []
    outside = [score for score in silenced if not score.interval_contains_chance]
    if not outside:
        return [
            "silenced: with the audio silenced, chance lies within the 95 % interval of every task."
        ]
    intervals = ", ".join(
        f"{printable_name(score.task)} ({_range(score.interval)})" for score in outside
    )
    return [
        f"{OUTSIDE_CHANCE_MARK} with the audio silenced, chance lies outside the 95 % interval: "
        f"{intervals}."
    ]


def _malformed_notes(results: Results) -> list[str]:
    notes = []
    for label, scores in (
        ("before", results.before),
        ("after", results.after),
        ("silenced", results.silenced),
    ):
        malformed = {score.task: score.n - score.well_formed for score in (scores or {}).values()}
        if any(malformed.values()):
            total = sum(score.n for score in (scores or {}).values())
            by_task = ", ".join(
                f"{printable_name(task)} {count}" for task, count in malformed.items() if count
            )
            notes.append(
                f"{label}: {sum(malformed.values())} of {total} replies were malformed and count "
                f"as wrong: {by_task}."
            )
    return notes


def _columns(text: str) -> int:
    """Returns the width of a text on a terminal; East Asian wide characters take two columns."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def _padded(line: Sequence[str], widths: Sequence[int], words: int) -> list[str]:
    spaces = [" " * (width - _columns(cell)) for cell, width in zip(line, widths, strict=True)]
    return [
        cell + space if column < words else space + cell
        for column, (cell, space) in enumerate(zip(line, spaces, strict=True))
    ]


def _markdown(cell: str) -> str:
    """Escapes the characters of a cell that mean something in Markdown."""
    return "".join(
        f"\\{character}" if character in "\\`*_[]<>|#~&" else character for character in cell
    )
