"""Asking a generative judge: at once for many pairs, each in both orders, never twice for the same question.

A judge is anything that turns questions into answers (`Generate`): a server that speaks OpenAI's
protocol (`rl.endpoint`), or one of our own models. What it cannot answer becomes an abstention. Of
several processes the first asks, and tells the others.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Container, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax

from stepaudio_jax.data import Criterion
from stepaudio_jax.errors import ConfigError, JudgeError
from stepaudio_jax.judge.cache import AnswerCache, JudgeAnswer
from stepaudio_jax.judge.prompt import JudgePrompt, JudgeQuestion
from stepaudio_jax.judge.verdict import Abstention, Verdict, parse_verdict
from stepaudio_jax.parallel import broadcast_json
from stepaudio_jax.text import Message

Generate = Callable[[str], JudgeAnswer]
"""One question to the judge, from any thread; raises JudgeError where there is no answer."""

BatchGenerate = Callable[[Sequence[str]], Iterator[tuple[int, JudgeAnswer | JudgeError]]]
"""All questions at once; yields (index, answer or why there is none) as each is ready."""


@dataclasses.dataclass(frozen=True)
class ReplyPair:
    """Two replies to one dialogue, the policy's and the reference, and the rubric that they are judged by, if any."""

    dialogue: tuple[Message, ...]
    reply: str
    reference: str
    rubric: tuple[Criterion, ...] = ()


@dataclasses.dataclass(frozen=True)
class Judgement:
    """Of a pair: what the judge says of (policy, reference) and of (reference, policy)."""

    original: Verdict | Abstention
    swapped: Verdict | Abstention

    @property
    def verdicts(self) -> tuple[Verdict, Verdict] | None:
        """Both, where there are both."""
        if isinstance(self.original, Verdict) and isinstance(self.swapped, Verdict):
            return self.original, self.swapped
        return None


class Judge:
    """A judge with its template, its cache and its limits.

    Args:
        name: of the judge, model and settings included: the cache tells judges apart by it.
        ask: one question to it, or all of a batch at once (`BatchGenerate`, with `together`).
        prompt: the template.
        cache: a file of answers, kept for the runs to come; None keeps them for this one only.
        together: whether `ask` takes all questions of a batch, as one of our own models does.
        concurrency: questions asked at once, where it does not.
        max_abstention_rate: share of a batch's pairs that may have none; above it, `judge` raises.
    """

    def __init__(
        self,
        name: str,
        ask: Generate | BatchGenerate,
        prompt: JudgePrompt,
        *,
        together: bool = False,
        cache: str | os.PathLike[str] | None = None,
        concurrency: int = 8,
        max_abstention_rate: float = 0.2,
    ):
        self._name = name
        self._ask: Any = ask
        self._together = together
        self._prompt = prompt
        self._answers = AnswerCache(cache, shared=together)
        self._max_abstention_rate = max_abstention_rate
        self._pool = ThreadPoolExecutor(concurrency)
        self._asking: dict[str, Future[str]] = {}
        self.num_generated = 0  # questions that the cache could not answer

    def prefetch(self, pair: ReplyPair) -> None:
        """Begins to ask about a pair that `judge` will be called with, where the judge can, and returns at once."""
        if self._together or jax.process_index() != 0:
            return
        for question in self._questions(pair):
            self._submit(question)

    def judge(self, pairs: Sequence[ReplyPair]) -> list[Judgement]:
        """Judges every pair, in order.

        Raises:
            JudgeError: more of them than allowed have no verdict. Verdicts are in the cache; what
                was none is asked again the next time, of a judge that has been mended.
        """
        questions = [question for pair in pairs for question in self._questions(pair)]
        failures = self._ask_together(questions) if self._together else self._ask_each(questions)
        verdicts = [self._verdict(question, failures) for question in questions]
        judgements = [Judgement(*both) for both in zip(verdicts[::2], verdicts[1::2], strict=True)]
        abstained = [judgement for judgement in judgements if judgement.verdicts is None]
        if len(abstained) > self._max_abstention_rate * len(judgements):
            sides = (side for one in abstained for side in (one.original, one.swapped))
            reasons = ", ".join(
                sorted({side.reason for side in sides if isinstance(side, Abstention)})
            )
            first = f"; {next(iter(failures.values()))}" if failures else ""
            for question, verdict in zip(questions, verdicts, strict=True):
                if isinstance(verdict, Abstention):
                    self._answers.discard(self._key(question))
            raise JudgeError(
                f"the judge {self._name} gave no verdict on {len(abstained)} of {len(judgements)} pairs ({reasons}), more than "
                f"{self._max_abstention_rate:.0%} of them{first}"
            )
        return judgements

    def close(self) -> None:
        """Gives up the questions that wait to be asked."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _ask_each(self, questions: Sequence[JudgeQuestion]) -> dict[str, str]:
        """Asks what the cache cannot answer, in the first process; returns what went wrong, by key.

        Raises:
            JudgeError: nothing can be asked, or the cache cannot be written; in every process, for
                all wait for the first one.
        """
        said: tuple[str, dict[str, str], dict[str, Any]] | None = None
        if jax.process_index() == 0:
            try:
                said = "", *self._answers_to(questions)
            except (OSError, ConfigError) as error:
                said = str(error), {}, {}
        problem, failures, answers = broadcast_json(said)
        if problem:
            raise JudgeError(f"the judge {self._name} cannot be asked: {problem}")
        for key, answer in answers.items():
            if key not in self._answers:
                self._answers.add(key, JudgeAnswer(**answer))
        return failures

    def _answers_to(
        self, questions: Sequence[JudgeQuestion]
    ) -> tuple[dict[str, str], dict[str, Any]]:
        """Returns what went wrong, and the answers, both by key and JSON-ready."""
        for question in questions:
            self._submit(question)
        failures = {
            key: problem for key, asking in self._asking.items() if (problem := asking.result())
        }
        self._asking.clear()
        keys = {self._key(question) for question in questions} - failures.keys()
        return failures, {key: dataclasses.asdict(self._answers[key]) for key in keys}

    def _ask_together(self, questions: Sequence[JudgeQuestion]) -> dict[str, str]:
        wanted = {self._key(question): question.text for question in questions}
        missing = {key: text for key, text in wanted.items() if key not in self._answers}
        self.num_generated += len(missing)
        keys, failures = list(missing), {}
        for index, answer in self._ask(list(missing.values())):
            if isinstance(answer, JudgeError):
                failures[keys[index]] = str(answer)
            else:
                self._answers.add(keys[index], answer)
        return failures

    def _questions(self, pair: ReplyPair) -> list[JudgeQuestion]:
        """Returns the questions about both orders."""
        orders = ((pair.reply, pair.reference), (pair.reference, pair.reply))
        return [self._prompt.question(pair.dialogue, *order, pair.rubric) for order in orders]

    def _submit(self, question: JudgeQuestion) -> None:
        key = self._key(question)
        if key not in self._answers and key not in self._asking:
            self.num_generated += 1
            self._asking[key] = self._pool.submit(self._answer, key, question.text)

    def _answer(self, key: str, question: str) -> str:
        """Asks, and keeps the answer at once; returns what went wrong, or nothing. A failure is counted as an abstention."""
        try:
            self._answers.add(key, self._ask(question))
        except JudgeError as error:
            return str(error)
        return ""

    def _verdict(self, question: JudgeQuestion, failures: Container[str]) -> Verdict | Abstention:
        key = self._key(question)
        if key in failures:
            return Abstention("failed")
        answer = self._answers[key]
        return parse_verdict(
            answer.text,
            levels=self._prompt.levels,
            criteria=question.criteria,
            truncated=answer.truncated,
            code=question.code,
            in_material=question.in_material,
        )

    def _key(self, question: JudgeQuestion) -> str:
        return hashlib.sha256(json.dumps([self._name, question.text]).encode()).hexdigest()
