"""The figures of a task: from the verdicts on its items to accuracies with intervals."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from stepaudio_jax.evaluation.statistics import Interval

if TYPE_CHECKING:
    from stepaudio_jax.evaluation.task import ScoredItem

Scoring = Literal["strict", "official", "judge"]


@dataclasses.dataclass(frozen=True)
class Metric:
    """Holds one figure.

    Attributes:
        name: "accuracy", "APR", "pass@4", ..
        scoring: whose verdicts it counts.
        value: a share between 0 and 1; None where nothing is in the denominator.
        interval: 95 % interval of the value; None where none can be computed.
        numerator: what was counted; half points and means of samples make it a fraction.
        denominator: of how many.
        group: the part of the items, as "difficulty=easy"; "" for all.
        unparsed: replies without a clear answer, counted as wrong.
        dropped: replies that the published rule leaves out of the denominator.
        failed: items without a reply, or without a verdict of the judge.
    """

    name: str
    scoring: Scoring
    value: float | None
    interval: Interval | None
    numerator: float
    denominator: int
    group: str = ""
    unparsed: int = 0
    dropped: int = 0
    failed: int = 0


def default_metrics(items: Sequence["ScoredItem"]) -> list[Metric]:
    """Returns accuracy by each scoring that the items have, of all items and by group."""
    raise NotImplementedError
