"""A judge in the same process: one of our own models, which answers all questions of a step side by side."""

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
from typing import Any

from stepaudio_jax import hub
from stepaudio_jax.config import LengthConvention
from stepaudio_jax.errors import ConfigError, GenerationError, JudgeError, TextError
from stepaudio_jax.generation import (
    Engine,
    LoadedModel,
    Prompt,
    Sampling,
    build_engine,
    build_prompt,
)
from stepaudio_jax.judge.judge import JudgeAnswer
from stepaudio_jax.text import Message, TextPart, Tokenizer, parse_reply, render_prompt

# A judge behind a server that speaks OpenAI's chat protocol: vLLM, SGLang, or a provider's.

_RETRYABLE_STATUS = {408, 409, 425, 429}  # and every 5xx
MAX_BACKOFF_S = 60.0
_SECONDS = re.compile(r"[0-9]{1,300}(\.[0-9]{1,300})?")
MAX_RESPONSE_BYTES = 16 * 2**20


@dataclasses.dataclass(frozen=True, kw_only=True)
class EndpointBackend:
    """Where the judge is, and how it is asked.

    Attributes:
        url: up to and with /v1.
        model: its name there.
        api_key_env: the environment variable that holds the key; empty for a server that wants
        none.
        temperature, max_tokens: of its answers.
        timeout_s: without a word from the server.
        retries: after the first attempt; each waits twice as long as the one before, or as long as
        the server asks for.
        initial_backoff_s: before the first retry.
    """

    url: str
    model: str
    api_key_env: str = "OPENAI_API_KEY"
    temperature: float = 0.0
    max_tokens: int = 1024
    timeout_s: float = 60.0
    retries: int = 4
    initial_backoff_s: float = 1.0

    @property
    def name(self) -> str:
        """Of the judge: all that its answers depend on."""
        return (
            f"{self.model} at {self.url}, temperature {self.temperature}, {self.max_tokens} tokens"
        )

    def generate(self, question: str) -> JudgeAnswer:
        """One question; may be called from many threads.

        Raises:
            JudgeError: the server refuses, or has no answer after all retries.
            ConfigError: there is no key.
        """
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": question}],
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
        }
        headers = {"Content-Type": "application/json"}
        if self.api_key_env:
            headers["Authorization"] = f"Bearer {read_api_key(self.api_key_env)}"
        request = urllib.request.Request(
            f"{self.url}/chat/completions", json.dumps(body).encode(), headers, method="POST"
        )
        problem, wait_s = "", self.initial_backoff_s
        for attempt in range(self.retries + 1):
            if attempt:
                time.sleep(
                    wait_s * random.uniform(0.8, 1.2)
                )  # so that those who failed together do not come back together
                wait_s = min(2 * wait_s, MAX_BACKOFF_S)
            try:
                with urllib.request.urlopen(request, timeout=self.timeout_s) as response:
                    return _answer(response.read(MAX_RESPONSE_BYTES + 1))
            except urllib.error.HTTPError as error:
                problem = f"status {error.code}: {_error_excerpt(error)}"
                if error.code not in _RETRYABLE_STATUS and error.code < 500:
                    raise JudgeError(f"{self.url} refuses the question, {problem}") from None
                asked = error.headers.get("Retry-After", "")
                wait_s = min(float(asked), MAX_BACKOFF_S) if _SECONDS.fullmatch(asked) else wait_s
            # No server, a time-out, half an answer, what is no completion, a redirection to
            # nowhere.
            except (OSError, http.client.HTTPException, ValueError) as error:
                problem = f"{type(error).__name__}: {error}"
        raise JudgeError(
            f"{self.url} has no answer after {self.retries + 1} attempts; the last one: {problem}"
        )


def read_api_key(variable: str) -> str:
    """The key in an environment variable.

    Raises:
        ConfigError: there is none.
    """
    key = os.environ.get(variable, "")
    if not key:
        raise ConfigError(
            f"the environment variable {variable} holds no key for the judge's server; set it, or let api_key_env be empty "
            "for a server that wants none"
        )
    return key


def _error_excerpt(error: urllib.error.HTTPError) -> str:
    """Of the page that says what was wrong; the server may break off in it."""
    try:
        return error.read(200).decode(errors="replace")
    except (OSError, http.client.HTTPException) as broken:
        return f"({type(broken).__name__}: {broken})"


def _answer(body: bytes) -> JudgeAnswer:
    """Returns what a chat completion says; a content of null, or of no form that text has, is an empty answer.

    Raises:
        ValueError: the body is no chat completion.
    """
    if len(body) > MAX_RESPONSE_BYTES:
        raise ValueError(f"a response of more than {MAX_RESPONSE_BYTES} bytes")
    try:
        # As an integer Python reads no number of more than 4300 digits.
        completion = json.loads(body.decode("utf-8-sig", errors="replace"), parse_int=float)
        choice = completion["choices"][0]
        content, reason = choice["message"]["content"], choice.get("finish_reason")
    except (ValueError, LookupError, TypeError, RecursionError):
        raise ValueError(f"not a chat completion: {body[:200]!r}") from None
    return JudgeAnswer(_text(content), truncated=reason == "length")


def _text(content: Any) -> str:
    """Returns the text of a content, which is a string or a list of parts."""
    if isinstance(content, list):
        texts = (part.get("text") for part in content if isinstance(part, dict))
        return "".join(text for text in texts if isinstance(text, str))
    return content if isinstance(content, str) else ""


class ModelBackend:
    """Answers a judge's questions; its verdict is the reply, what it reasons before that is its own affair.

    Args:
        model: the judge.
        slots: questions answered side by side.
        max_tokens: of an answer.
    """

    def __init__(self, model: LoadedModel, *, slots: int, max_tokens: int):
        self._model, self._slots = model, slots
        self._sampling = Sampling(temperature=0.0, max_new_tokens=max_tokens)
        self._engine: Engine | None = None
        self._longest = 0  # tokens of the question that the engine was made for
        # The cache tells judges apart by the name: one that is trained anew into its folder is
        # another judge.
        held = hub.fingerprint_folder(model.folder)[:12]
        self.name = f"{model.folder} ({held}), {model.compute.dtype}, {max_tokens} tokens"

    def __call__(self, questions: Sequence[str]) -> Iterator[tuple[int, JudgeAnswer | JudgeError]]:
        """Each question's index and answer, as each is ready; an error for one that no tokens spell or that fits no slot."""
        prompts: dict[int, Prompt] = {}
        for index, question in enumerate(questions):
            try:
                prompts[index] = _prompt(
                    question, self._model.tokenizer, self._model.config.length_convention
                )
            except TextError as error:
                yield index, JudgeError(str(error))
        if not prompts:
            return
        engine = self._engine_for(list(prompts.values()))
        asked: dict[int, int] = {}
        for index, prompt in prompts.items():
            try:
                (request,) = engine.submit(prompt, [self._sampling])
            except GenerationError as error:
                yield index, JudgeError(str(error))
            else:
                asked[request] = index
        for output in engine.run():
            if output.completion is None:
                continue
            truncated = output.completion.finish_reason == "length"
            written = parse_reply(
                output.completion.tokens, self._model.tokenizer, ended=not truncated
            )
            yield asked[output.request], JudgeAnswer(written.reply, truncated)

    def _engine_for(self, prompts: Sequence[Prompt]) -> Engine:
        """The engine, made anew where a question is longer than all before: short slots are read faster than long ones."""
        longest = max(prompts, key=lambda prompt: prompt.length)
        grown = (
            longest.length > self._longest
        )  # one too long for the model, seen before, is no reason
        if self._engine is None or (
            grown and not self._engine.fits_slot(longest, [self._sampling])
        ):
            self._engine = None  # its slots and its copy of the weights go first
            self._engine = build_engine(
                self._model, prompts, self._sampling.max_new_tokens, slots=self._slots
            )
            self._longest = longest.length
        return self._engine


def _prompt(question: str, tokenizer: Tokenizer, convention: LengthConvention) -> Prompt:
    message = Message(role="user", parts=(TextPart(question),))
    return build_prompt(render_prompt([message], tokenizer), tokenizer, convention)
