"""Measures the replies of a model to held-out questions, and compares models."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import scipy.stats
from numpy.typing import NDArray

from examples.reward_trap.style import REQUESTS, is_correct, style_score
from stepaudio_jax.data import read_records
from stepaudio_jax.evaluation import Answer, answer_at_temperatures
from stepaudio_jax.generation import LoadedModel, Scorer
from stepaudio_jax.storage import atomic_text_writer
from stepaudio_jax.text import Message, TextPart

TEMPERATURES: Mapping[str, float] = MappingProxyType({"drawn": 1.0, "greedy": 0.0})
"""Decoding -> its temperature. "drawn" samples as training does."""
_MAX_NEW_TOKENS = 64
_KL_EVERY = 3  # of so many replies one is scored; odd, so that both kinds of questions are


@dataclasses.dataclass(frozen=True)
class ReplyMetrics:
    """Holds the metrics of a model's replies, question by question.

    A malformed reply counts as empty: it is wrong and loses.

    Attributes:
        is_correct: for each question without a request, whether the reply names the answer.
        num_words: for each question without a request, the words of the reply.
        wins: for each question without a request, 0 if the reply is wrong, else 1, 0.5 or 0 if its
            style scores higher than, as high as or lower than the reference reply's.
        rubric_met: for each question with a request, whether the reply meets the whole rubric.
        kl: for some sampled replies, log p of the reply with its reasoning by the model less that
            by the start model, in nats: their mean estimates the KL divergence. Empty for the start
            model, and for other decodings.
    """

    is_correct: tuple[float, ...]
    num_words: tuple[float, ...]
    wins: tuple[float, ...]
    rubric_met: tuple[float, ...]
    kl: tuple[float, ...] = ()

    @classmethod
    def read(cls, path: pathlib.Path) -> "ReplyMetrics":
        """Reads a file that `write` wrote."""
        stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return cls(**{name: tuple(values) for name, values in stored.items()})

    def write(self, path: pathlib.Path) -> None:
        """Writes the metrics as JSON, atomically."""
        with atomic_text_writer(path) as file:
            file.write(json.dumps(dataclasses.asdict(self)) + "\n")


def measure_replies(
    model: LoadedModel, questions: pathlib.Path, *, start: LoadedModel | None = None
) -> dict[str, ReplyMetrics]:
    """Answers the held-out questions with each decoding of `TEMPERATURES`.

    Args:
        model: the model.
        questions: the file of questions (see `style_data`).
        start: the start model, to which the KL divergence is estimated; None for none.

    Returns:
        Decoding -> its metrics.
    """
    answers_by_decoding = answer_at_temperatures(
        tuple(TEMPERATURES.values()),
        model,
        list(read_records(questions)),
        max_new_tokens=_MAX_NEW_TOKENS,
    )
    metrics = {}
    for decoding, answers in zip(TEMPERATURES, answers_by_decoding, strict=True):
        kl: tuple[float, ...] = ()
        if start is not None and TEMPERATURES[decoding] == 1.0:
            kl = _log_ratios(answers[::_KL_EVERY], model, start)
        metrics[decoding] = _reply_metrics(answers, kl)
    return metrics


def _log_ratios(
    answers: Sequence[Answer], model: LoadedModel, start: LoadedModel
) -> tuple[float, ...]:
    """Returns log p by the model less log p by the start model of each well-formed answer."""
    scorers = [
        Scorer(scored.config, scored.parameters, scored.tokenizer, compute=scored.compute)
        for scored in (model, start)
    ]
    log_ratios = []
    for answer in answers:
        if not answer.parsed.well_formed:
            continue
        reply = Message("assistant", (TextPart(answer.parsed.reply),), answer.parsed.reasoning)
        dialogue = (*answer.question.messages, reply)
        by_model, by_start = (
            scorer.score(dialogue, read=model.read_clip)[-1].logprob for scorer in scorers
        )
        log_ratios.append(by_model - by_start)
    return tuple(log_ratios)


def _reply_metrics(answers: Sequence[Answer], kl: tuple[float, ...]) -> ReplyMetrics:
    """Computes the metrics of answers to questions with and without requests."""
    correct, num_words, wins, rubric_met = [], [], [], []
    for answer in answers:
        reply = answer.parsed.reply if answer.parsed.well_formed else ""
        record = answer.question
        answer_is_correct = is_correct(reply, answer.expected)
        if record.rubric:
            texts = [criterion.text for criterion in record.rubric]
            (request,) = (REQUESTS[text] for text in texts if text in REQUESTS)
            rubric_met.append(float(answer_is_correct and request.is_met(reply)))
            continue
        assert record.reference_reply is not None
        margin = style_score(reply) - style_score(record.reference_reply)
        correct.append(float(answer_is_correct))
        num_words.append(float(len(reply.split())))
        wins.append(float((0.5 + 0.5 * np.sign(margin)) * answer_is_correct))
    return ReplyMetrics(tuple(correct), tuple(num_words), tuple(wins), tuple(rubric_met), kl)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Holds a mean and its 95 % interval, which is Student's.

    With several seeds the interval is over the means of the seeds and predicts another seed; with
    one seed it is over the questions and predicts other questions.
    """

    mean: float
    low: float
    high: float


def mean_of_seeds(models: Sequence[ReplyMetrics], metric: str) -> Estimate:
    """Computes the mean of a metric over models of different seeds.

    Args:
        models: the metrics of one model per seed.
        metric: the name of a field of `ReplyMetrics`.
    """
    return _estimate([np.array(getattr(model, metric)) for model in models])


def paired_difference(
    models: Sequence[ReplyMetrics], baselines: Sequence[ReplyMetrics], metric: str
) -> Estimate:
    """Computes by how much models exceed baselines of the same seeds on the same questions.

    Args:
        models: the metrics of one model per seed.
        baselines: the metrics of the baseline of each seed, in the same order.
        metric: the name of a field of `ReplyMetrics`.
    """
    return _estimate(
        [
            np.subtract(getattr(model, metric), getattr(baseline, metric))
            for model, baseline in zip(models, baselines, strict=True)
        ]
    )


def _estimate(values_of_seeds: Sequence[NDArray[np.float64]]) -> Estimate:
    if len(values_of_seeds) > 1:
        values = np.array([of_seed.mean() for of_seed in values_of_seeds])
    else:
        (values,) = values_of_seeds
    mean, error = float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))
    half_width = float(scipy.stats.t.ppf(0.975, len(values) - 1)) * error
    return Estimate(mean, mean - half_width, mean + half_width)
