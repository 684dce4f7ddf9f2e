"""Asks a server that speaks OpenAI's chat protocol, with the standard library."""

import base64
import dataclasses
import http.client
import json
import os
import random
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from stepaudio_jax.config import JudgeConfig
from stepaudio_jax.errors import ConfigError, EndpointError

MAX_BACKOFF_S = 60.0
MAX_RESPONSE_BYTES = 16 * 2**20
_RETRYABLE_STATUS = {408, 409, 425, 429}  # and every 5xx
_SECONDS = re.compile(r"[0-9]{1,300}(\.[0-9]{1,300})?")
_Answer = TypeVar("_Answer")


@dataclasses.dataclass(frozen=True)
class ChatCompletion:
    """What a server answered.

    Attributes:
        text: the content of the message; "" where it is null or no text.
        reasoning: what the server reports apart from the content, as vLLM (`reasoning_content`,
            `reasoning`) and others do; "" where it reports none.
        finish_reason: as the server names it ("stop", "length", ..); None where it names none.
        usage: the server's own count of tokens, as far as it is whole numbers.
    """

    text: str
    reasoning: str = ""
    finish_reason: str | None = None
    usage: Mapping[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChatEndpoint:
    """A model behind a server that speaks OpenAI's chat protocol: vLLM, SGLang, or a provider's.

    It is asked with the standard library: a response is truncated at 16 MiB, a malformed body is an
    error, Retry-After is capped at 60 s, and only retryable codes are tried again. The openai
    client (3.57) has no limit on a response's size, lets the ValueError of a number of 5,000 digits
    and the RecursionError of deep nesting escape, and returns a body of `null` unchecked; it would
    add httpx2, pydantic, anyio and jiter to every installation to replace one POST.

    Attributes:
        url: address of the API, up to and including /v1. It may hold `USER:PASSWORD@` of HTTP's
            basic authentication, which no message or result shows.
        model: its name at the server.
        api_key_env: the environment variable that holds the key; None where none is needed.
        timeout_s: seconds without a byte from the server.
        retries: after the first attempt; each waits twice as long as the one before, or as long as
            the server asks for.
        initial_backoff_s: seconds before the first retry.
    """

    url: str
    model: str
    api_key_env: str | None = JudgeConfig.api_key_env
    timeout_s: float = JudgeConfig.timeout_s
    retries: int = JudgeConfig.retries
    initial_backoff_s: float = 1.0

    def __post_init__(self) -> None:
        check_url(self.url)

    @property
    def shown_url(self) -> str:
        """Returns the address without user and password, as it may be shown and kept."""
        return split_credentials(self.url)[0]

    def complete(
        self, messages: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]
    ) -> ChatCompletion:
        """Returns the answer to a dialogue; may be called from many threads.

        Args:
            messages: in the protocol's form.
            settings: other fields of the request, such as `temperature`.

        Raises:
            EndpointError: the server refuses, or has no answer after all retries.
            ConfigError: there is no key.
        """
        body = {"model": self.model, "messages": messages, **settings}
        return self.post("chat/completions", body, _parse_completion)

    def post(
        self, path: str, body: Mapping[str, Any], parse: Callable[[bytes], _Answer]
    ) -> _Answer:
        """Returns the parsed answer to a request; may be called from many threads.

        Args:
            path: below the address of the API.
            body: of the request.
            parse: reads the body of an answer; raises a ValueError where it is malformed, after
                which the server is asked again.

        Raises:
            EndpointError: the server refuses, or has no answer after all retries.
            ConfigError: there is no key.
        """
        request = self._request(path, body)
        problem, wait_s = "", self.initial_backoff_s
        for attempt in range(self.retries + 1):
            if attempt:
                # The jitter spreads out the retries of questions that failed together.
                time.sleep(wait_s * random.uniform(0.8, 1.2))
                wait_s = min(2 * wait_s, MAX_BACKOFF_S)
            try:
                with urllib.request.urlopen(request, timeout=self.timeout_s) as response:
                    return parse(_within_limit(response.read(MAX_RESPONSE_BYTES + 1)))
            except urllib.error.HTTPError as error:
                problem = f"status {error.code}: {_error_excerpt(error)}"
                if error.code not in _RETRYABLE_STATUS and error.code < 500:
                    raise EndpointError(
                        f"{self.shown_url} refuses the question, {problem}"
                    ) from None
                retry_after = error.headers.get("Retry-After", "")
                if _SECONDS.fullmatch(retry_after):
                    wait_s = min(float(retry_after), MAX_BACKOFF_S)
            # No server, a time-out, a truncated or malformed response, a redirection to nowhere.
            except (OSError, http.client.HTTPException, ValueError) as error:
                problem = f"{type(error).__name__}: {error}"
        raise EndpointError(
            f"{self.shown_url} has no answer after {self.retries + 1} attempts; the last one:"
            f" {problem}"
        )

    def _request(self, path: str, body: Mapping[str, Any]) -> urllib.request.Request:
        headers = {"Content-Type": "application/json"}
        url, credentials = split_credentials(self.url)
        if credentials and self.api_key_env:
            raise ConfigError(
                f"{url} is given with a user, and a key from {self.api_key_env}: a request can hold"
                " but one of them; leave out the user, or let api_key_env be None"
            )
        if credentials:
            headers["Authorization"] = f"Basic {base64.b64encode(credentials.encode()).decode()}"
        if self.api_key_env:
            headers["Authorization"] = f"Bearer {read_api_key(self.api_key_env)}"
        return urllib.request.Request(
            f"{url}/{path}", json.dumps(body).encode(), headers, method="POST"
        )


def check_url(url: str) -> None:
    """Checks that an address is one of HTTP.

    Raises:
        ConfigError: it is none; shows it without a user and password.
    """
    if not re.match(r"https?://[^/]", url):
        raise ConfigError(
            f"the address {url.rpartition('@')[2]!r} must begin with http:// or https://, as in"
            " http://localhost:8000/v1"
        )


def split_credentials(url: str) -> tuple[str, str]:
    """Returns an address without its `USER:PASSWORD@`, and these; "" where it has none."""
    scheme, separator, rest = url.partition("://")
    authority, slash, path = rest.partition("/")
    credentials, at, host = authority.rpartition("@")
    if not (separator and at):
        return url, ""
    return f"{scheme}://{host}{slash}{path}", urllib.parse.unquote(credentials)


def read_api_key(api_key_env: str) -> str:
    """Returns the key in an environment variable.

    Raises:
        ConfigError: it holds none.
    """
    key = os.environ.get(api_key_env, "")
    if not key:
        raise ConfigError(
            f"the environment variable {api_key_env} holds no key for the server; set it, "
            "or let api_key_env be None for a server that wants none"
        )
    return key


def _error_excerpt(error: urllib.error.HTTPError) -> str:
    """Returns the beginning of the error page; the server may break off within it."""
    try:
        return error.read(200).decode(errors="replace")
    except (OSError, http.client.HTTPException) as broken:
        return f"({type(broken).__name__}: {broken})"


def load_json(body: bytes) -> Any:
    """Returns the JSON value of a response, whole numbers as floats.

    Raises:
        ValueError, RecursionError: it is none.
    """
    # Python refuses to convert integers of more than 4300 digits; floats have no such limit.
    return json.loads(body.decode("utf-8-sig", errors="replace"), parse_int=float)


def _within_limit(body: bytes) -> bytes:
    if len(body) > MAX_RESPONSE_BYTES:
        raise ValueError(f"a response of more than {MAX_RESPONSE_BYTES} bytes")
    return body


def _parse_completion(body: bytes) -> ChatCompletion:
    """Returns what a chat completion says.

    Raises:
        ValueError: the body is no chat completion.
    """
    try:
        completion = load_json(body)
        choice = completion["choices"][0]
        message, reason = choice["message"], choice.get("finish_reason")
        content = message["content"]
        reasoning = message.get("reasoning_content") or message.get("reasoning")
        usage = completion.get("usage")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise ValueError(f"not a chat completion: {body[:200]!r}") from None
    return ChatCompletion(
        _content_text(content),
        _content_text(reasoning),
        reason if isinstance(reason, str) else None,
        _token_counts(usage),
    )


def _content_text(content: Any) -> str:
    """Returns the text of a message's content, which is a string or a list of parts."""
    if isinstance(content, list):
        texts = (part.get("text") for part in content if isinstance(part, dict))
        return "".join(text for text in texts if isinstance(text, str))
    return content if isinstance(content, str) else ""


def _token_counts(usage: Any) -> dict[str, int]:
    """Returns the counts of a response's `usage`: those that are whole numbers of a sane size."""
    if not isinstance(usage, dict):
        return {}
    return {
        name: int(value)
        for name, value in usage.items()
        if isinstance(value, float) and 0 <= value < 2**53 and value == int(value)
    }
