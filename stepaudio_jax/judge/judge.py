"""A generative judge in two layers: asking (`AnswerSource`), and verdicts on pairs (`Judge`).

Questions are asked concurrently, and never twice: answers are cached. A question without an answer
becomes an abstention. Of several processes the first asks, and sends the answers to the others.
"""

import dataclasses
import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from typing import Any

import jax

from stepaudio_jax.config import (
    ComputeConfig,
    FloatDtype,
    JudgeConfig,
    JudgeInputs,
    ModelConfig,
)
from stepaudio_jax.errors import ConfigError, DataError, JudgeError
from stepaudio_jax.judge.backends import (
    BatchJudgeBackend,
    JudgeBackend,
    ModelBackend,
    make_backend,
)
from stepaudio_jax.judge.cache import AnswerCache
from stepaudio_jax.judge.clip_embeddings import AudioFeatures, encoder_difference
from stepaudio_jax.judge.clips import ClipReader
from stepaudio_jax.judge.pairs import Pair
from stepaudio_jax.judge.prompt import JudgePrompt, JudgeQuestion
from stepaudio_jax.judge.query import JudgeAnswer, JudgeInput, Query
from stepaudio_jax.judge.verdict import Abstention, Verdict, parse_verdict
from stepaudio_jax.models import Parameters
from stepaudio_jax.parallel import broadcast_json
from stepaudio_jax.storage import PathLike, hash_json

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Judgement:
    """What the judge says of (reply, reference), and with the order swapped.

    Attributes:
        original, swapped: the verdict in each order.
        given: what it was given of the clips, the same in both orders but for the order of clips
            that are in the continuations; listed as of `original`.
    """

    original: Verdict | Abstention
    swapped: Verdict | Abstention
    given: JudgeInput = JudgeInput()

    @property
    def verdicts(self) -> tuple[Verdict, Verdict] | None:
        """Returns both verdicts; None where either is an abstention."""
        if isinstance(self.original, Verdict) and isinstance(self.swapped, Verdict):
            return self.original, self.swapped
        return None


class Judge:
    """Compares replies, or whole dialogues: each pair is asked about in both orders.

    Args:
        backend: answers the questions.
        prompt: the template of the questions; says whether they hold the dialogues' sound.
        clips: reads the clips where they do; None reads them as `ClipReader()` does.
        cache: a file that keeps the answers across runs; None keeps them in memory.
        concurrency: questions asked at a time, of a backend that takes one at a time.
        max_abstention_rate: share of a batch's pairs that may have no verdict.
    """

    def __init__(
        self,
        backend: JudgeBackend | BatchJudgeBackend,
        prompt: JudgePrompt,
        *,
        clips: ClipReader | None = None,
        cache: PathLike | None = None,
        concurrency: int = JudgeConfig.concurrency,
        max_abstention_rate: float = JudgeConfig.max_abstention_rate,
    ):
        self._backend, self._prompt = backend, prompt
        self._clips = ClipReader() if clips is None else clips
        self._source = AnswerSource(
            backend,
            cache=cache,
            concurrency=concurrency,
            max_abstention_rate=max_abstention_rate,
        )

    @property
    def num_generated(self) -> int:
        """Returns the number of questions that the cache could not answer."""
        return self._source.num_generated

    @property
    def says_criteria(self) -> bool:
        """Returns whether verdicts with a rubric say of each criterion whether a reply meets it."""
        return self._prompt.rubric != "ordinal"

    @property
    def inputs(self) -> JudgeInputs:
        """Returns what the judge is given of a dialogue's clips."""
        return self._prompt.inputs

    def prefetch(self, pair: Pair) -> None:
        """Begins to ask about a pair that `judge` will be called with; returns at once.

        Raises:
            DataError: a clip cannot be read.
        """
        if self._source.prefetches:
            self._source.prefetch([query for _, query in self._questions(pair)])

    def judge(self, pairs: Sequence[Pair]) -> list[Judgement]:
        """Returns the judgement of every pair, in order; pairs of both kinds may be mixed.

        Raises:
            DataError: a clip cannot be read, where the judge hears; names the pair's record.
            JudgeError: more pairs than allowed have no verdict; in every process. Verdicts stay in
                the cache, abstentions do not: a judge that has been mended is asked again.
        """
        questions = [question for pair in pairs for question in self._questions(pair)]
        answers = self._source.answers([query for _, query in questions])
        verdicts = [
            self._verdict(question, answer)
            for (question, _), answer in zip(questions, answers, strict=True)
        ]
        judgements = [
            Judgement(original, swapped, query.given or JudgeInput())
            for original, swapped, (_, query) in zip(
                verdicts[::2], verdicts[1::2], questions[::2], strict=True
            )
        ]
        self._source.check_abstentions(
            {
                query: verdict.reason
                for (_, query), verdict in zip(questions, verdicts, strict=True)
                if isinstance(verdict, Abstention)
            },
            abstained=sum(judgement.verdicts is None for judgement in judgements),
            total=len(judgements),
            cause=next((answer for answer in answers if isinstance(answer, JudgeError)), None),
        )
        return judgements

    def share_audio_encoder(
        self, model: ModelConfig, compute: ComputeConfig, parameters: Parameters
    ) -> bool:
        """Returns whether the judge hears through the audio features of a policy in this process.

        It does where it hears, is a model in this process, and has the same front end and encoder;
        it is logged where a judge that hears encodes for itself.

        Args:
            model: the policy's shape.
            compute: how it is computed.
            parameters: its tree, or as much of it as the encoder.
        """
        if self.inputs == "transcripts" or not isinstance(self._backend, ModelBackend):
            return False
        difference = encoder_difference(self._backend.model, model, compute, parameters)
        if difference:
            logger.info("the judge encodes the clips for itself: %s", difference)
        return not difference

    def set_audio_features(self, features: AudioFeatures) -> None:
        """Gives a judge for which `share_audio_encoder` holds the features of a step's clips."""
        if isinstance(self._backend, ModelBackend):
            self._backend.set_audio_features(features)

    def close(self) -> None:
        """Cancels the questions that are still waiting to be asked."""
        self._source.close()

    def _questions(self, pair: Pair) -> list[tuple[JudgeQuestion, Query]]:
        """Returns the questions about both orders, and what is sent for each."""
        first, second = pair.sides
        questions = [
            self._prompt.question(pair.dialogue, *order, pair.rubric)
            for order in ((first, second), (second, first))
        ]
        read = functools.partial(self._clips, origin=pair.origin)
        return [(question, question.query(read)) for question in questions]

    def _verdict(
        self, question: JudgeQuestion, answer: JudgeAnswer | JudgeError
    ) -> Verdict | Abstention:
        if isinstance(answer, JudgeError):
            return Abstention("failed")
        return parse_verdict(
            answer.text,
            levels=self._prompt.levels,
            criteria=question.criteria,
            truncated=answer.truncated,
            code=question.code,
            in_material=question.in_material,
        )


class AnswerSource:
    """Answers questions by a backend and a cache; how an answer is read is the caller's choice.

    Args:
        backend: answers the questions that the cache cannot.
        cache: a file that keeps the answers across runs; None keeps them in memory.
        concurrency: questions asked at a time, of a backend that takes one at a time.
        max_abstention_rate: share of the items that may stay without a usable answer, see
            `check_abstentions`.
        role: what is asked, in errors.

    Attributes:
        num_generated: number of questions that the cache could not answer.
    """

    def __init__(
        self,
        backend: JudgeBackend | BatchJudgeBackend,
        *,
        cache: PathLike | None = None,
        concurrency: int = JudgeConfig.concurrency,
        max_abstention_rate: float = JudgeConfig.max_abstention_rate,
        role: str = "judge",
    ):
        self._backend, self._role = backend, role
        self._max_abstention_rate = max_abstention_rate
        # A batch backend is called by every process, with the questions that the cache lacks: all
        # caches must be alike.
        self._cache = AnswerCache(cache, replicated=isinstance(backend, BatchJudgeBackend))
        self._pool = ThreadPoolExecutor(concurrency)
        self._pending: dict[str, Future[str]] = {}
        self.num_generated = 0

    @property
    def name(self) -> str:
        """Returns the name of the judge: everything that its answers depend on."""
        return self._backend.name

    @property
    def prefetches(self) -> bool:
        """Returns whether `prefetch` asks: not with a batch backend, and in the first process."""
        return not isinstance(self._backend, BatchJudgeBackend) and jax.process_index() == 0

    def prefetch(self, questions: Sequence[Query]) -> None:
        """Begins to ask questions that `answers` will be called with; returns at once."""
        if isinstance(self._backend, BatchJudgeBackend) or not self.prefetches:
            return
        for question in questions:
            self._submit(question, self._backend)

    def answers(
        self, questions: Sequence[Query], *, on_answer: Callable[[], object] = lambda: None
    ) -> list[JudgeAnswer | JudgeError]:
        """Returns the answer to each question, or why there is none.

        Args:
            questions: equal ones are asked once.
            on_answer: is called in the first process whenever a question is done that the cache
                could not answer.

        Raises:
            JudgeError: nothing can be asked, or the cache cannot be written; in every process,
                since all wait for the first one.
        """
        if isinstance(self._backend, BatchJudgeBackend):
            failures = self._generate_batch(questions, self._backend, on_answer)
        else:
            failures = self._generate_each(questions, self._backend, on_answer)
        keys = [self._key(question) for question in questions]
        return [JudgeError(failures[key]) if key in failures else self._cache[key] for key in keys]

    def check_abstentions(
        self,
        reasons: Mapping[Query, str],
        *,
        abstained: int,
        total: int,
        cause: JudgeError | None = None,
        unit: str = "pairs",
    ) -> None:
        """Checks that not too many items have no verdict.

        Args:
            reasons: {question: why its answer is no verdict}.
            abstained: number of items, such as pairs, without a verdict.
            total: number of items.
            cause: an error of the backend, to be shown.
            unit: what the items are, in the plural.

        Raises:
            JudgeError: more than allowed; these questions' answers are removed from the cache.
        """
        if abstained <= self._max_abstention_rate * total:
            return
        self.forget(list(reasons))
        raise JudgeError(
            f"the judge {self._backend.name} gave no verdict on {abstained} of {total} {unit} "
            f"({', '.join(sorted(set(reasons.values())))}), more than "
            f"{self._max_abstention_rate:.0%} of them{f'; {cause}' if cause else ''}"
        )

    def forget(self, questions: Sequence[Query]) -> None:
        """Removes the answers to these questions from the cache: they are asked again."""
        for question in questions:
            self._cache.discard(self._key(question))

    def close(self) -> None:
        """Cancels the questions that are still waiting to be asked."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._cache.flush()

    def _generate_each(
        self, questions: Sequence[Query], backend: JudgeBackend, on_answer: Callable[[], object]
    ) -> dict[str, str]:
        """Asks in the first process, and sends the answers to all; returns {key: failure}."""
        result: tuple[str, dict[str, str], dict[str, Any]] | None = None
        if jax.process_index() == 0:
            try:
                result = "", *self._collect(questions, backend, on_answer)
            except (OSError, ConfigError, DataError) as error:
                result = str(error), {}, {}
        problem, failures, answers = broadcast_json(result)
        if problem:
            raise JudgeError(f"the {self._role} {backend.name} cannot be asked: {problem}")
        for key, answer in answers.items():
            if key not in self._cache:
                self._cache.add(key, JudgeAnswer(**answer))
        return failures

    def _collect(
        self, questions: Sequence[Query], backend: JudgeBackend, on_answer: Callable[[], object]
    ) -> tuple[dict[str, str], dict[str, Any]]:
        """Waits for all answers; returns {key: failure} and {key: answer}, both JSON-ready."""
        for question in questions:
            self._submit(question, backend)
        failures = {}
        key_of = {future: key for key, future in self._pending.items()}
        for future in as_completed(key_of):
            if problem := future.result():
                failures[key_of[future]] = problem
            on_answer()
        self._pending.clear()
        keys = {self._key(question) for question in questions} - failures.keys()
        return failures, {key: dataclasses.asdict(self._cache[key]) for key in keys}

    def _submit(self, question: Query, backend: JudgeBackend) -> None:
        key = self._key(question)
        if key not in self._cache and key not in self._pending:
            self.num_generated += 1
            self._pending[key] = self._pool.submit(self._generate, key, question, backend)

    def _generate(self, key: str, question: Query, backend: JudgeBackend) -> str:
        """Asks a question and caches the answer at once; returns what went wrong, or ""."""
        try:
            self._cache.add(key, backend.generate(question), question.given)
        except JudgeError as error:
            return str(error)
        return ""

    def _generate_batch(
        self,
        questions: Sequence[Query],
        backend: BatchJudgeBackend,
        on_answer: Callable[[], object],
    ) -> dict[str, str]:
        """Asks all questions that the cache cannot answer; returns {key: failure}."""
        by_key = {self._key(question): question for question in questions}
        missing = {key: query for key, query in by_key.items() if key not in self._cache}
        self.num_generated += len(missing)
        keys, failures = list(missing), {}
        for index, answer in backend.generate_batch(list(missing.values())):
            if isinstance(answer, JudgeError):
                failures[keys[index]] = str(answer)
            else:
                self._cache.add(keys[index], answer, missing[keys[index]].given)
            on_answer()
        return failures

    def _key(self, question: Query) -> str:
        return hash_json([self._backend.name, question.key])


def make_judge(
    config: JudgeConfig,
    *,
    dtype: FloatDtype,
    slices: int = 1,
    cache: PathLike | None = None,
    clips: ClipReader | None = None,
) -> Judge | None:
    """Builds the configured judge; returns None where none is configured.

    Args:
        config: names an endpoint or the folder of a model.
        dtype: of a model in this process, which is loaded onto all devices.
        slices: TPU slices that the devices form.
        cache: a file that keeps the answers.
        clips: reads the clips that the judge hears; None reads them as `ClipReader()` does.
    """
    backend = make_backend(config, dtype=dtype, slices=slices)
    clips = ClipReader() if clips is None else clips
    if isinstance(backend, ModelBackend):
        clips = clips.with_convention(backend.length_convention)
    if backend is None:
        return None
    return Judge(
        backend,
        JudgePrompt(
            config.prompt,
            levels=config.preference_levels,
            rubric=config.rubric,
            inputs=config.inputs,
        ),
        clips=clips,
        cache=cache,
        concurrency=config.concurrency,
        max_abstention_rate=config.max_abstention_rate,
    )
