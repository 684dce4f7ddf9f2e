"""The contract of an evaluation task: its items, what a reply to one is worth, and its metrics.

A task of one's own derives from `Task` and defines `items` and one way of scoring (`strict`,
`official`, or the three methods of a judge); everything else has a default.
"""

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from stepaudio_jax.data import Record
from stepaudio_jax.evaluation.metrics import Metric, Scoring, default_metrics, reply_value
from stepaudio_jax.generation import Sampling
from stepaudio_jax.judge.query import Query
from stepaudio_jax.storage import PathLike

StrictOutcome = Literal["correct", "wrong", "unparsed"]
OfficialOutcome = Literal["correct", "wrong", "dropped"]
JudgeUse = Literal["none", "optional", "required"]


@dataclasses.dataclass(frozen=True)
class Item:
    """Holds one question of a benchmark.

    Attributes:
        id: unique within the task.
        record: the prompt, which ends in a user's turn. Clips have their `transcript` where the
            benchmark has one. `record.origin` names the file and place.
        data: the benchmark's own row, JSON-ready and without sound: what the scorers read, and
            what a line of `score`'s input has as `item`.
        groups: by which results are broken down, as in {"task": "speech", "difficulty": "easy"}.
        cluster: the same for items that share their sound; intervals treat them together.
    """

    id: str
    record: Record
    data: Mapping[str, Any]
    groups: Mapping[str, str] = dataclasses.field(default_factory=dict)
    cluster: str = ""

    def __post_init__(self) -> None:
        if not self.cluster:
            object.__setattr__(self, "cluster", self.id)


@dataclasses.dataclass(frozen=True)
class Strict:
    """Holds what this project's own reading of a reply finds.

    Attributes:
        outcome: "unparsed" where no clear answer is found; it counts as wrong.
        answer: what was read as the answer; None where nothing was.
        score: between 0 and 1, for benchmarks with partial credit; None for 1 or 0 by the outcome.
    """

    outcome: StrictOutcome
    answer: str | None = None
    score: float | None = None

    @property
    def value(self) -> float:
        """Returns the score: 1 for a correct reply, 0 for any other, unless a score is set."""
        return self.score if self.score is not None else float(self.outcome == "correct")


@dataclasses.dataclass(frozen=True)
class Judged:
    """Holds what a judge's answers about one reply say.

    Attributes:
        score: between 0 and 1; None where the judge abstains (no answer, or none that can be read).
        details: what the score was computed from, JSON-ready: criteria met, field scores.
        reason: why there is no score; "" where there is one.
    """

    score: float | None
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class ReplyScore:
    """Holds every verdict on one reply. A kind of scoring that the task does not have is None."""

    strict: Strict | None = None
    official: OfficialOutcome | None = None
    judged: Judged | None = None


@dataclasses.dataclass(frozen=True)
class ScoredItem:
    """Holds the verdicts on the replies to one item, one for each sample.

    Attributes:
        id, groups, cluster: of the item.
        replies: the verdicts. Empty where the model could not be asked (a missing clip, an error of
            the endpoint), see `error`.
        error: why the item has no reply; "" where it has.
        data: the item's row, for metrics that depend on it.
    """

    id: str
    groups: Mapping[str, str]
    cluster: str
    replies: tuple[ReplyScore, ...]
    error: str = ""
    data: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Submission:
    """Holds the file that a benchmark's leaderboard reads.

    Attributes:
        name: of the file.
        rows: its content, a JSON list.
    """

    name: str
    rows: Sequence[Mapping[str, Any]]


class Task(abc.ABC):
    """An evaluation task.

    Attributes:
        name: by which the command line and results call it.
        version: of the data and rules that this code follows; it stands in every result.
        title: for people.
        table_column: the column of the paper's Table 1 that it fills; None for none.
        sampling: decoding settings of the protocol; the user may override each.
        judge: whether scoring needs a judge: "required", "optional" (a rule scores without it) or
            "none".
        headline: (scoring, metric name) of the figure that stands for the task; None for a task
            whose answers are withheld, which nothing here scores (see `submission`).
        notes: what is not published about the protocol or the paper's figure, and what this task
            does instead; for the reader of its results.
        benchmark: by which a line of outputs may name the benchmark, beside `name` and `title`.
    """

    name: ClassVar[str]
    version: ClassVar[str]
    title: ClassVar[str]
    table_column: ClassVar[str | None] = None
    sampling: ClassVar[Sampling] = Sampling(temperature=0.7, top_p=1.0, max_new_tokens=32_000)
    judge: ClassVar[JudgeUse] = "none"
    headline: ClassVar[tuple[Scoring, str] | None] = ("strict", "accuracy")
    benchmark: ClassVar[str | None] = None
    notes: ClassVar[Sequence[str]] = ()

    @abc.abstractmethod
    def items(self, folder: PathLike) -> list[Item]:
        """Reads the items of a folder in the form in which users download it, in its order.

        Clips are named, and not opened: a missing one is found when the item is answered.

        Raises:
            DataError: the folder is not this benchmark's, or a row cannot be read; names the place.
        """

    def strict(self, data: Mapping[str, Any], output: str | None) -> Strict | None:
        """Reads a reply as this project does; None where the task has no rule of its own.

        Args:
            data: of the item.
            output: the model's text; it may contain reasoning where it was written elsewhere. None
                where there is none.

        Raises:
            DataError: the data lacks what the rule needs. Its place is the caller's to name.
        """
        del data, output
        return None

    def official(self, data: Mapping[str, Any], output: str | None) -> OfficialOutcome | None:
        """Scores a reply by the published program; None where there is none, or no answer.

        "dropped" means that the program leaves the item out of the denominator.

        Raises:
            DataError: see `strict`.
        """
        del data, output
        return None

    def queries(self, item: Item, reasoning: str, reply: str) -> list[Query]:
        """Returns the questions to a judge about one reply; none where the reply decides alone."""
        del item, reasoning, reply
        return []

    def retry_queries(
        self, item: Item, reasoning: str, reply: str, answers: Sequence[str | None]
    ) -> list[Query]:
        """Returns what to ask next where a protocol asks again about answers it cannot read.

        It is called again with the new answers behind the others, until it returns none.

        Args:
            answers: to `queries`, and to what this method has returned so far.
        """
        del item, reasoning, reply, answers
        return []

    def judged(
        self, item: Item, reasoning: str, reply: str, answers: Sequence[str | None]
    ) -> Judged | None:
        """Reads the judge's answers, in order; None without a judge in the protocol.

        Args:
            answers: the judge's texts to `queries` and `retry_queries`; None for a query that got
                no answer.
        """
        del item, reasoning, reply, answers
        return None

    def metrics(self, items: Sequence[ScoredItem]) -> list[Metric]:
        """Returns the task's figures, of all items and by group; see `metrics.default_metrics`."""
        return default_metrics(items, scoring=self.headline[0] if self.headline else "strict")

    def headline_part(
        self, reply: ReplyScore | None, data: Mapping[str, Any]
    ) -> tuple[float, float] | None:
        """Returns what one reply adds to numerator and denominator of the headline figure.

        Two models are compared by it, item by item. The default is the reply's value by the
        headline's scoring, and 1. A task whose headline is another figure, such as all criteria met
        or errors and words, defines its own.

        Args:
            reply: None where the item has none.
            data: of the item.

        Returns:
            Numerator and denominator; None where the reply leaves the denominator.
        """
        del data
        value = reply_value(self.headline[0], reply) if self.headline else None
        return None if value is None else (value, 1.0)

    def submission(self, replies: Sequence[tuple[Item, str | None]]) -> Submission | None:
        """Returns the file that the benchmark's leaderboard reads; None where there is none.

        Args:
            replies: every item in order with the model's text, which may contain reasoning; None
                where there is none.
        """
        del replies
        return None

    def use_prompts(self, folder: PathLike | None) -> None:
        """Reads prompt files (of the model or the judge) from a folder that the user names.

        Raises:
            DataError: the task has no prompt files, or one is missing or lacks a placeholder.
        """
        from stepaudio_jax.errors import DataError

        if folder is not None:
            raise DataError(f"the task {self.name} has no prompt files; leave them out")

    @property
    def prompt_sources(self) -> Mapping[str, str]:
        """Returns {name of a prompt: its text}, of which results keep the hashes."""
        return {}
