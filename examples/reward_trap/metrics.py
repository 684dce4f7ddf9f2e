"""How a model of the demonstration does on held-out questions, by the rule; and what differs between models, how surely."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import scipy.stats

from examples.reward_trap.style import REQUESTS, is_correct, style_score
from stepaudio_jax.data import read_jsonl
from stepaudio_jax.evaluation import Answer, answer_at_temperatures
from stepaudio_jax.generation import LoadedModel

TEMPERATURES: Mapping[str, float] = MappingProxyType({"drawn": 1.0, "greedy": 0.0})
"""How replies are measured -> at which temperature they are written: as in training, and the most probable ones."""
_MAX_NEW_TOKENS = 64


@dataclasses.dataclass(frozen=True)
class ReplyMetrics:
    """What a model's replies are, question by question (a malformed one is wrong and loses).

    Attributes:
        is_correct: of each question without a request, whether the reply names the answer.
        num_words: of the same, in the reply.
        wins: of the same, 1 where the rule likes the reply's manners better than the reference's
            and it is right, 0.5 where as well, else 0.
        rubric_met: of each question with a request, whether all of the rubric is met.
        kl: nats a reply, to what the last stage began with, at the end of training; 0 where nothing
            was learnt.
    """

    is_correct: tuple[float, ...]
    num_words: tuple[float, ...]
    wins: tuple[float, ...]
    rubric_met: tuple[float, ...]
    kl: float

    @classmethod
    def read(cls, path: pathlib.Path) -> "ReplyMetrics":
        """From a file that `write` made."""
        stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return cls(kl=stored.pop("kl"), **{name: tuple(values) for name, values in stored.items()})

    def write(self, path: pathlib.Path) -> None:
        """As JSON."""
        partial = path.with_name(f"{path.name}.partial")
        partial.write_text(json.dumps(dataclasses.asdict(self)) + "\n", encoding="utf-8")
        partial.rename(path)


def measure(model: LoadedModel, questions: pathlib.Path, *, kl: float) -> dict[str, ReplyMetrics]:
    """Puts the held-out questions to a model, in each of the ways."""
    answered = answer_at_temperatures(
        tuple(TEMPERATURES.values()),
        model,
        list(read_jsonl(questions)),
        max_new_tokens=_MAX_NEW_TOKENS,
    )
    return {
        way: _of_answers(answers, kl) for way, answers in zip(TEMPERATURES, answered, strict=True)
    }


def _of_answers(answers: Sequence[Answer], kl: float) -> ReplyMetrics:
    right, words, wins, passes = [], [], [], []
    for answer in answers:
        reply, record = answer.parsed.reply if answer.parsed.well_formed else "", answer.question
        correct = is_correct(reply, answer.expected)
        if record.rubric:
            (request,) = (
                REQUESTS[criterion.text]
                for criterion in record.rubric
                if criterion.text in REQUESTS
            )
            passes.append(float(correct and request.is_met(reply)))
            continue
        assert record.reference_reply is not None
        better = style_score(reply) - style_score(record.reference_reply)
        right.append(float(correct))
        words.append(float(len(reply.split())))
        wins.append((0.5 + 0.5 * np.sign(better)) * correct)
    return ReplyMetrics(tuple(right), tuple(words), tuple(map(float, wins)), tuple(passes), kl)


@dataclasses.dataclass(frozen=True)
class PairedDifference:
    """By how much a figure of one model exceeds that of another, with its 95 % interval."""

    mean: float
    low: float
    high: float


def paired_difference(
    ones: Sequence[ReplyMetrics], others: Sequence[ReplyMetrics], figure: str
) -> PairedDifference:
    """Of models with the same seeds, in order, on the same questions.

    With several seeds the interval is Student's over the seeds' differences, and says what another
    seed may give; with one, it is over the questions' differences, and says what other questions
    may give.
    """
    pairs = [
        np.subtract(getattr(one, figure), getattr(other, figure))
        for one, other in zip(ones, others, strict=True)
    ]
    values = np.array([pair.mean() for pair in pairs]) if len(pairs) > 1 else pairs[0]
    mean, error = float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))
    half = float(scipy.stats.t.ppf(0.975, len(values) - 1)) * error
    return PairedDifference(mean, mean - half, mean + half)
