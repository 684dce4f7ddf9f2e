"""Answers chat completions: from a request to a reply, whole or as a stream."""

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import json
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any, TypeVar

from stepaudio_jax.errors import ApiError, GenerationError
from stepaudio_jax.generation import check_prompt_fits
from stepaudio_jax.serving.chat_protocol import ChatRequest
from stepaudio_jax.serving.chat_settings import ChatSettings, read_chat_settings
from stepaudio_jax.serving.clips import ClipReader
from stepaudio_jax.serving.completions import Choice, CompletionWriter, usage_of
from stepaudio_jax.serving.constraints import reply_grammar
from stepaudio_jax.serving.dialogue import BuiltPrompt, build_chat_prompt
from stepaudio_jax.serving.disconnects import CLIENT_CLOSED_REQUEST
from stepaudio_jax.serving.engine_thread import EngineThread
from stepaudio_jax.serving.errors import error_body, user_error
from stepaudio_jax.serving.job_outputs import JobOutputs, Outputs, stopping_error
from stepaudio_jax.serving.jobs import Work
from stepaudio_jax.serving.metrics import Metrics, RequestCount
from stepaudio_jax.serving.models import ModelRegistry, ServedModel
from stepaudio_jax.serving.reply_parts import ReplySplitter
from stepaudio_jax.serving.settings import ServingSettings

_PROMPT_THREADS = 4  # that decode sound and tokenize
_MAX_RETRY_S = 60
_DONE = "data: [DONE]\n\n"

Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True)
class PreparedChat:
    """A request that can be answered.

    Attributes:
        model: which model answers.
        settings: what is asked for.
        built: its prompt.
        work: what the engine does.
        arrived: when it came, by `time.monotonic`.
    """

    model: ServedModel
    settings: ChatSettings
    built: BuiltPrompt
    work: Work
    arrived: float


class ChatService:
    """Answers chat completions.

    Args:
        settings: limits.
        models: which answer.
        thread: the engines' thread.
        metrics: counts.
        clips: reads clips.
    """

    def __init__(
        self,
        settings: ServingSettings,
        models: ModelRegistry,
        thread: EngineThread,
        metrics: Metrics,
        clips: ClipReader,
    ):
        self.settings = settings
        self.models = models
        self.thread = thread
        self.metrics = metrics
        self.clips = clips
        self._prompt_threads = concurrent.futures.ThreadPoolExecutor(
            _PROMPT_THREADS, thread_name_prefix="prompt"
        )
        self._jobs: set[JobOutputs] = set()
        self._is_draining = False
        self._mean_seconds = 1.0  # of the last requests

    @property
    def state(self) -> str:
        """Whether requests are answered: "ready", "starting", "draining", "stopped" or "failed"."""
        is_draining = self._is_draining and self.thread.state == "ready"
        return "draining" if is_draining else self.thread.state

    @property
    def num_jobs(self) -> int:
        """Requests in the engine's hands."""
        return len(self._jobs)

    def drain(self) -> None:
        """Takes no further requests."""
        self._is_draining = True

    def give_up(self) -> None:
        """Ends all requests, as where the time to drain is over."""
        for job in list(self._jobs):
            job.fail(stopping_error())

    def close(self) -> None:
        """Ends the threads that build prompts."""
        self._prompt_threads.shutdown(wait=False, cancel_futures=True)

    def check_ready(self) -> None:
        """Checks that requests are answered.

        Raises:
            ApiError: 503 where programs are being compiled, or the server is about to stop.
        """
        if self.state == "ready":
            return
        if self.state == "starting":
            message = f"the server is compiling its programs ({self.thread.progress}); try again"
        else:
            message = f"the server is {self.state} and takes no requests"
        raise ApiError(503, message, code="not_ready", headers={"Retry-After": "5"})

    async def in_thread(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Returns a function's result, computed beside the event loop.

        Raises:
            ApiError: 503 where it takes longer than a request may, its wait for a thread included.
        """
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self.settings.request_timeout_s) as limit:
                return await loop.run_in_executor(self._prompt_threads, function, *arguments)
        except TimeoutError:
            if not limit.expired():  # it is the function's
                raise
            raise self._timeout() from None

    async def prepare(self, request: ChatRequest, client: str) -> PreparedChat:
        """Builds the prompt of a request, and checks that it can be answered.

        Raises:
            ApiError: it cannot.
        """
        arrived = time.monotonic()
        self.check_ready()
        model = self.models.get(request.model)
        settings = read_chat_settings(request, self.settings)
        grammar = reply_grammar(request, in_reasoning=settings.enable_thinking)
        self._check_queue(model, len(settings.seeds))

        def build() -> BuiltPrompt:
            if grammar is not None:
                model.lane.constraints.check(grammar)
            return build_chat_prompt(
                model,
                request.messages,
                (request.tools or []) if settings.has_tools else [],
                enable_thinking=settings.enable_thinking,
                clips=self.clips,
                settings=self.settings,
            )

        built = await self.in_thread(build)
        samplings = settings.samplings(_max_tokens(model, built, settings))
        work = Work(
            model.name,
            client,
            built.prompt,
            samplings,
            num_top_logprobs=settings.num_top_logprobs,
            grammar=grammar,
        )
        return PreparedChat(model, settings, built, work, arrived)

    def submit(self, chat: PreparedChat) -> "JobOutputs":
        """Gives a request to the engine.

        Raises:
            ApiError: 429 where too many wait already, 503 where the engine has ended.
        """
        job = JobOutputs(chat.work, self.thread, on_end=self._jobs.discard)
        if not self.thread.try_submit(job.job, self.settings.max_queue):
            self.check_ready()
            raise self._too_many()
        self._jobs.add(job)
        return job

    async def complete(self, chat: PreparedChat) -> dict[str, Any]:
        """Returns the whole answer to a request."""
        choices, writer = self._begin(chat)
        try:
            with contextlib.closing(self.submit(chat)) as job:
                async for outputs in self._outputs(chat, job, len(choices)):
                    for index, output in outputs:
                        choices[index].add(output)
        finally:
            usage = self._count_usage(chat, choices)
        return writer.whole(choices, usage)

    async def stream(
        self, chat: PreparedChat, job: "JobOutputs", count: RequestCount
    ) -> AsyncGenerator[str]:
        """Yields the answer to a request as events, while it grows.

        Args:
            chat: the request.
            job: of it; the caller closes it.
            count: gets the status of what the client was told.
        """
        choices, writer = self._begin(chat)
        count.status = 500  # where the server makes a mistake
        try:
            for choice in choices:
                yield _event(writer.first_piece(choice.index))
            async for outputs in self._outputs(chat, job, len(choices)):
                for index, output in outputs:
                    delta = choices[index].add(output)
                    if not delta.is_empty or (chat.settings.with_logprobs and output.tokens):
                        yield _event(writer.piece(index, delta))
                    if output.completion is not None:
                        yield _event(writer.last_piece(choices[index]))
            if chat.settings.with_usage:
                yield _event(writer.usage_piece(_usage(chat, choices)))
            count.status = 200
            yield _DONE
        except ApiError as error:
            count.status = error.status
            yield _event(error_body(error))
        except (asyncio.CancelledError, GeneratorExit):
            if count.status == 500:
                count.status = CLIENT_CLOSED_REQUEST
            raise
        finally:
            self._count_usage(chat, choices)

    async def _outputs(
        self, chat: PreparedChat, job: "JobOutputs", num_replies: int
    ) -> AsyncIterator[Outputs]:
        """Yields what each step adds, until all replies have ended; measures how long it takes.

        Raises:
            ApiError: 503 where the request takes too long, or the server stops.
        """
        name = chat.model.name
        last: dict[int, float] = {}  # when each reply that has begun last grew
        num_running = num_replies
        deadline = chat.arrived + self.settings.request_timeout_s
        while num_running:
            try:
                outputs = await asyncio.wait_for(job.next(), deadline - time.monotonic())
            except TimeoutError:
                raise self._timeout() from None
            now = time.monotonic()
            if not last:
                self.metrics.time_to_first_token.labels(name).observe(now - chat.arrived)
            for index, output in outputs:
                if output.tokens and index in last:
                    seconds = (now - last[index]) / len(output.tokens)
                    self.metrics.time_between_tokens.labels(name).observe(seconds)
                if output.tokens or index not in last:
                    last[index] = now
                num_running -= output.completion is not None
            yield outputs
        seconds = time.monotonic() - chat.arrived
        self._mean_seconds += 0.1 * (seconds - self._mean_seconds)
        self.metrics.request_seconds.labels(name).observe(seconds)

    def _begin(self, chat: PreparedChat) -> tuple[list[Choice], CompletionWriter]:
        name = chat.model.name
        self.metrics.prompt_tokens.labels(name).inc(chat.built.prompt.length)
        self.metrics.audio_tokens.labels(name).inc(chat.built.audio_tokens)
        self.metrics.audio_seconds.labels(name).inc(chat.built.audio_seconds)
        choices = [
            Choice(
                index,
                ReplySplitter(
                    in_reasoning=chat.built.opens_reasoning,
                    parses_calls=chat.settings.has_tools,
                ),
            )
            for index in range(len(chat.work.samplings))
        ]
        writer = CompletionWriter(
            name,
            chat.model.loaded.tokenizer,
            with_logprobs=chat.settings.with_logprobs,
            with_usage=chat.settings.with_usage,
        )
        return choices, writer

    def _count_usage(self, chat: PreparedChat, choices: list[Choice]) -> dict[str, Any]:
        """Counts the tokens of a request that has ended, in whatever way; returns its usage."""
        usage = _usage(chat, choices)
        self.metrics.completion_tokens.labels(chat.model.name).inc(usage["completion_tokens"])
        return usage

    def _check_queue(self, model: ServedModel, count: int) -> None:
        """Refuses a request before its clips are decoded, where it would be refused after that.

        Raises:
            ApiError: 429 where too many wait already, 400 where so many replies never fit.
        """
        free, slots = model.lane.engine.free_slots, model.lane.engine.num_slots
        if count > self.settings.max_queue + slots:
            raise ApiError(
                400,
                f"n is {count}, more than this server's {slots} slots and the"
                f" {self.settings.max_queue} replies that may wait; ask for fewer at a time",
                param="n",
            )
        if self.thread.num_waiting + count > self.settings.max_queue + free:
            raise self._too_many()

    def _timeout(self) -> ApiError:
        return ApiError(
            503,
            f"the request took longer than {self.settings.request_timeout_s:g} s and was ended;"
            " ask for less, or try again when the server has less to do",
            code="timeout",
        )

    def _too_many(self) -> ApiError:
        waiting = self.thread.num_waiting
        slots = max(self.thread.num_running, 1)
        seconds = math.ceil(self._mean_seconds * (waiting + 1) / slots)
        return ApiError(
            429,
            f"{waiting} replies wait already, and this server lets {self.settings.max_queue} wait;"
            " try again later",
            code="queue_full",
            headers={"Retry-After": str(min(max(seconds, 1), _MAX_RETRY_S))},
        )


def _usage(chat: PreparedChat, choices: list[Choice]) -> dict[str, Any]:
    return usage_of(chat.built.prompt.length, chat.built.audio_tokens, choices)


def _max_tokens(model: ServedModel, built: BuiltPrompt, settings: ChatSettings) -> int:
    """Returns the most tokens of a reply.

    Raises:
        ApiError: prompt and reply do not fit a slot.
    """
    limit, length = model.lane.engine.slot_tokens, built.prompt.length
    room = limit - length
    wanted = settings.max_tokens
    if room < 1 or (wanted is not None and wanted > room):
        reply_part = f" and {wanted} for the reply" if wanted is not None else ""
        raise ApiError(
            400,
            f"this server's {limit} tokens for prompt and reply do not hold {length} tokens of"
            f" messages{reply_part}; shorten the messages{' or the reply' if wanted else ''}",
            param="messages",
            code="context_length_exceeded",
        )
    try:
        check_prompt_fits(built.prompt, model.loaded.config)
    except GenerationError as error:
        raise user_error(error, "messages") from None
    return room if wanted is None else wanted


def _event(value: Any) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False, separators=(',', ':'))}\n\n"
