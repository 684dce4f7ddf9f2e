"""Backends that answer a judge's questions: a server, or one of our own models in this process."""

import dataclasses
import http.client
import json
import os
import random
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

from stepaudio_jax.config import JudgeConfig, LengthConvention
from stepaudio_jax.errors import ConfigError, GenerationError, JudgeError, TextError
from stepaudio_jax.generation import (
    Engine,
    LoadedModel,
    Prompt,
    Sampling,
    build_engine,
    build_prompt,
)
from stepaudio_jax.judge.cache import JudgeAnswer
from stepaudio_jax.storage import fingerprint_folder
from stepaudio_jax.text import Message, TextPart, Tokenizer, parse_reply, render_prompt

MAX_BACKOFF_S = 60.0
MAX_RESPONSE_BYTES = 16 * 2**20
_RETRYABLE_STATUS = {408, 409, 425, 429}  # and every 5xx
_SECONDS = re.compile(r"[0-9]{1,300}(\.[0-9]{1,300})?")


class JudgeBackend(Protocol):
    """A judge that answers one question at a time, such as a server.

    Attributes:
        name: everything that the answers depend on, model and settings: the key of the cache.
    """

    @property
    def name(self) -> str: ...

    def generate(self, question: str) -> JudgeAnswer:
        """Returns the answer to a question; called from many threads.

        Raises:
            JudgeError: there is no answer.
        """
        ...


@runtime_checkable
class BatchJudgeBackend(Protocol):
    """A judge that answers all questions of a batch together, such as a model in this process.

    Every process calls it with the same questions.

    Attributes:
        name: everything that the answers depend on, model and settings: the key of the cache.
    """

    @property
    def name(self) -> str: ...

    def generate_batch(
        self, questions: Sequence[str]
    ) -> Iterator[tuple[int, JudgeAnswer | JudgeError]]:
        """Yields (index of the question, answer or error) as each is ready."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class EndpointBackend:
    """A judge behind a server that speaks OpenAI's chat protocol: vLLM, SGLang, or a provider's.

    The endpoint is asked with the standard library: a response is truncated at 16 MiB, a malformed
    body is an abstention, Retry-After is capped at 60 s, and only retryable codes are tried again.
    The openai client (3.57) has no limit on a response's size, lets the ValueError of a number of
    5,000 digits and the RecursionError of deep nesting escape, and returns a body of `null`
    unchecked; it would add httpx2, pydantic, anyio and jiter to every installation to replace one
    POST.

    Attributes:
        url: address of the API, up to and including /v1.
        model: its name at the server.
        api_key_env: the environment variable that holds the key; None where none is needed.
        temperature, max_tokens: of the answers.
        timeout_s: seconds without a byte from the server.
        retries: after the first attempt; each waits twice as long as the one before, or as long as
            the server asks for.
        initial_backoff_s: seconds before the first retry.
    """

    url: str
    model: str
    api_key_env: str | None = JudgeConfig.api_key_env
    temperature: float = 0.0
    max_tokens: int = JudgeConfig.max_tokens
    timeout_s: float = JudgeConfig.timeout_s
    retries: int = JudgeConfig.retries
    initial_backoff_s: float = 1.0

    @property
    def name(self) -> str:
        """Returns the judge's name. Caches are keyed by it: do not reword it."""
        return (
            f"{self.model} at {self.url}, temperature {self.temperature}, {self.max_tokens} tokens"
        )

    def generate(self, question: str) -> JudgeAnswer:
        """Returns the answer to a question; may be called from many threads.

        Raises:
            JudgeError: the server refuses, or has no answer after all retries.
            ConfigError: there is no key.
        """
        request = self._request(question)
        problem, wait_s = "", self.initial_backoff_s
        for attempt in range(self.retries + 1):
            if attempt:
                # The jitter spreads out the retries of questions that failed together.
                time.sleep(wait_s * random.uniform(0.8, 1.2))
                wait_s = min(2 * wait_s, MAX_BACKOFF_S)
            try:
                with urllib.request.urlopen(request, timeout=self.timeout_s) as response:
                    return _parse_completion(response.read(MAX_RESPONSE_BYTES + 1))
            except urllib.error.HTTPError as error:
                problem = f"status {error.code}: {_error_excerpt(error)}"
                if error.code not in _RETRYABLE_STATUS and error.code < 500:
                    raise JudgeError(f"{self.url} refuses the question, {problem}") from None
                retry_after = error.headers.get("Retry-After", "")
                if _SECONDS.fullmatch(retry_after):
                    wait_s = min(float(retry_after), MAX_BACKOFF_S)
            # No server, a time-out, a truncated or malformed response, a redirection to nowhere.
            except (OSError, http.client.HTTPException, ValueError) as error:
                problem = f"{type(error).__name__}: {error}"
        raise JudgeError(
            f"{self.url} has no answer after {self.retries + 1} attempts; the last one: {problem}"
        )

    def _request(self, question: str) -> urllib.request.Request:
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": question}],
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
        }
        headers = {"Content-Type": "application/json"}
        if self.api_key_env:
            headers["Authorization"] = f"Bearer {read_api_key(self.api_key_env)}"
        return urllib.request.Request(
            f"{self.url}/chat/completions", json.dumps(body).encode(), headers, method="POST"
        )


class ModelBackend:
    """A judge in this process: one of our own models. Its verdict is read from the reply alone.

    Args:
        model: the judge.
        slots: questions answered side by side.
        max_tokens: most tokens of an answer.
    """

    def __init__(self, model: LoadedModel, *, slots: int, max_tokens: int):
        self._model, self._slots = model, slots
        self._sampling = Sampling(temperature=0.0, max_new_tokens=max_tokens)
        self._engine: Engine | None = None
        self._engine_prompt_len = 0  # tokens of the longest question that the engine was built for
        # A judge that is trained again into the same folder is another judge. Caches are keyed by
        # the name: do not reword it.
        fingerprint = fingerprint_folder(model.folder)[:12]
        self.name = f"{model.folder} ({fingerprint}), {model.compute.dtype}, {max_tokens} tokens"

    def generate_batch(
        self, questions: Sequence[str]
    ) -> Iterator[tuple[int, JudgeAnswer | JudgeError]]:
        """Yields (index, answer) as each is ready.

        A question gets an error where no tokens spell it, or where it is too long for a slot.
        """
        prompts: dict[int, Prompt] = {}
        for index, question in enumerate(questions):
            try:
                prompts[index] = _build_prompt(
                    question, self._model.tokenizer, self._model.config.length_convention
                )
            except TextError as error:
                yield index, JudgeError(str(error))
        if not prompts:
            return
        engine = self._engine_for(list(prompts.values()))
        index_of_request: dict[int, int] = {}
        for index, prompt in prompts.items():
            try:
                (request,) = engine.submit(prompt, [self._sampling])
            except GenerationError as error:
                yield index, JudgeError(str(error))
            else:
                index_of_request[request] = index
        for output in engine.run():
            if output.completion is None:
                continue
            truncated = output.completion.finish_reason == "length"
            parsed = parse_reply(
                output.completion.tokens, self._model.tokenizer, ended=not truncated
            )
            yield index_of_request[output.request], JudgeAnswer(parsed.reply, truncated)

    def _engine_for(self, prompts: Sequence[Prompt]) -> Engine:
        """Returns the engine, built again only where a question is longer than all before.

        Its slots are as short as the questions allow, since short slots are faster to attend to.
        """
        longest = max(prompts, key=lambda prompt: prompt.length)
        # A question that no engine can hold, seen before, is no reason to build another one.
        is_longer = longest.length > self._engine_prompt_len
        if self._engine is None or (
            is_longer and not self._engine.fits_slot(longest, [self._sampling])
        ):
            self._engine = None  # frees its slots and its copy of the weights first
            self._engine = build_engine(
                self._model, prompts, self._sampling.max_new_tokens, slots=self._slots
            )
            self._engine_prompt_len = longest.length
        return self._engine


def read_api_key(api_key_env: str) -> str:
    """Returns the key in an environment variable.

    Raises:
        ConfigError: it holds none.
    """
    key = os.environ.get(api_key_env, "")
    if not key:
        raise ConfigError(
            f"the environment variable {api_key_env} holds no key for the judge's server; set it, "
            "or let api_key_env be None for a server that wants none"
        )
    return key


def _error_excerpt(error: urllib.error.HTTPError) -> str:
    """Returns the beginning of the error page; the server may break off within it."""
    try:
        return error.read(200).decode(errors="replace")
    except (OSError, http.client.HTTPException) as broken:
        return f"({type(broken).__name__}: {broken})"


def _parse_completion(body: bytes) -> JudgeAnswer:
    """Returns the text of a chat completion; content that is null or not text gives an empty one.

    Raises:
        ValueError: the body is no chat completion.
    """
    if len(body) > MAX_RESPONSE_BYTES:
        raise ValueError(f"a response of more than {MAX_RESPONSE_BYTES} bytes")
    try:
        # Python refuses to convert integers of more than 4300 digits; floats have no such limit.
        completion = json.loads(body.decode("utf-8-sig", errors="replace"), parse_int=float)
        choice = completion["choices"][0]
        content, reason = choice["message"]["content"], choice.get("finish_reason")
    except (ValueError, LookupError, TypeError, RecursionError):
        raise ValueError(f"not a chat completion: {body[:200]!r}") from None
    return JudgeAnswer(_content_text(content), truncated=reason == "length")


def _content_text(content: Any) -> str:
    """Returns the text of a message's content, which is a string or a list of parts."""
    if isinstance(content, list):
        texts = (part.get("text") for part in content if isinstance(part, dict))
        return "".join(text for text in texts if isinstance(text, str))
    return content if isinstance(content, str) else ""


def _build_prompt(question: str, tokenizer: Tokenizer, convention: LengthConvention) -> Prompt:
    message = Message(role="user", parts=(TextPart(question),))
    return build_prompt(render_prompt([message], tokenizer), tokenizer, convention)
