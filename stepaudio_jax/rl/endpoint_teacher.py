"""Log-probabilities of given tokens by a model behind a server of OpenAI's completions protocol.

A request has the tokens as its `prompt`, by their ids, and lets the server generate one token more,
which is not read: many servers refuse to generate none. Two kinds of servers return what the
prompt's tokens have:

* vLLM, asked with `prompt_logprobs`: for each token but the first a dict of ids, the token's own
  among them, with `logprob` and `decoded_token`;
* others (SGLang, and vLLM too), asked with `echo` and `logprobs`: the lists `tokens` and
  `token_logprobs` of the prompt, and of what was generated after it.

They are log-probabilities of single tokens, or of the few best ones beside, never a distribution.
A KL in which the teacher's distribution is summed over the vocabulary cannot be computed of them.
The reverse KL can be estimated: its expectation is over the student's own tokens, which is what is
scored here.
"""

import dataclasses
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import jax
import numpy as np
from jaxtyping import Float32
from numpy.typing import NDArray

from stepaudio_jax.config import TeacherEndpointConfig
from stepaudio_jax.errors import ConfigError, EndpointError
from stepaudio_jax.judge.endpoint import ChatEndpoint, load_json, read_api_key
from stepaudio_jax.parallel import broadcast_json
from stepaudio_jax.text import Tokenizer

logger = logging.getLogger(__name__)

Form = Literal["prompt_logprobs", "echo"]

_REQUESTS: dict[Form, dict[str, Any]] = {
    "prompt_logprobs": {"prompt_logprobs": 1},
    "echo": {"echo": True, "logprobs": 1},
}
# Of the vocabulary, by whose spelling the server's tokenizer is compared with the student's.
_PROBED_TOKENS = 96
_MIN_COMPARED_SHARE = 0.25


@dataclasses.dataclass(frozen=True)
class TokenScore:
    """What a server says of one token of a prompt.

    Attributes:
        logprob: given all tokens before it; None of a prompt's first token.
        text: as the server spells it; None where it does not say.
    """

    logprob: float | None
    text: str | None


class EndpointTeacher:
    """Scores tokens by a model behind a server. In a run of several processes the first one asks.

    Args:
        config: the server, and how it is asked.
        tokenizer: the student's.
    """

    def __init__(self, config: TeacherEndpointConfig, tokenizer: Tokenizer):
        assert config.url is not None
        assert config.model is not None
        self._config, self._tokenizer = config, tokenizer
        self._endpoint = ChatEndpoint(
            url=config.url,
            model=config.model,
            api_key_env=config.api_key_env,
            timeout_s=config.timeout_s,
            retries=config.retries,
        )
        self._form: Form | None = None

    @property
    def name(self) -> str:
        """Returns the model and its address, without user and password."""
        return f"{self._config.model} at {self._endpoint.shown_url}"

    def connect(self) -> None:
        """Finds out in which form the server returns log-probabilities, and compares tokenizers.

        Raises:
            ConfigError: it returns none; it spells a token otherwise than the student's tokenizer,
                or does not say how; or there is no key.
        """
        result: tuple[str, Form | None] | None = None
        if jax.process_index() == 0:
            try:
                result = "", self._find_form()
            except (ConfigError, EndpointError) as error:
                result = str(error), None
        problem, self._form = broadcast_json(result)
        if problem:
            raise ConfigError(f"objective.teacher_endpoint: {problem}")
        logger.info(
            "the teacher %s returns log-probabilities by %s: the reverse KL is estimated at the"
            " student's own tokens",
            self.name,
            self._form,
        )

    def logprobs(
        self, prompts: Sequence[NDArray[np.int32]], replies: Sequence[NDArray[np.int32]]
    ) -> list[Float32[np.ndarray, " reply_tokens"]]:
        """Returns the log-probability of each token of each reply, in every process.

        Args:
            prompts, replies: tokens; a reply follows its prompt.

        Raises:
            EndpointError: the server refuses, has no answer after all retries, or answers of other
                tokens.
        """
        result: tuple[str, list[list[float]]] | None = None
        if jax.process_index() == 0:
            try:
                with ThreadPoolExecutor(self._config.concurrency) as pool:
                    result = "", list(pool.map(self._score_reply, prompts, replies))
            except (ConfigError, EndpointError) as error:
                result = str(error), []
        problem, scores = broadcast_json(result)
        if problem:
            raise EndpointError(f"the teacher {self.name}: {problem}")
        return [np.asarray(of_reply, np.float32) for of_reply in scores]

    def _score_reply(self, prompt: NDArray[np.int32], reply: NDArray[np.int32]) -> list[float]:
        assert self._form is not None, "connect() comes first"
        tokens = [*prompt.tolist(), *reply.tolist()]
        scores = self._ask(tokens, self._form)
        if scores is None:
            raise EndpointError(f"an answer has no log-probabilities of the prompt ({self._form})")
        self._compare_spelling(tokens, scores)
        values = []
        for token, score in list(zip(tokens, scores, strict=True))[len(prompt) :]:
            if score.logprob is None:
                raise EndpointError(f"an answer has no log-probability of token {token}")
            values.append(score.logprob)
        return values

    def _find_form(self) -> Form:
        if self._config.api_key_env:
            read_api_key(self._config.api_key_env)
        tokens = _tokens_to_compare(self._tokenizer)
        refusals = []
        for form in _REQUESTS:
            try:
                scores = self._ask(tokens, form)
            except EndpointError as error:
                refusals.append(f"asked with {form}: {error}")
                continue
            if scores is None:
                refusals.append(f"asked with {form}, it returns none")
                continue
            compared = self._compare_spelling(tokens, scores)
            if compared < _MIN_COMPARED_SHARE * len(tokens):
                raise ConfigError(
                    f"{self.name} does not say how it spells tokens ({compared} of {len(tokens)}),"
                    " so that its tokenizer cannot be compared with the student's; take a server"
                    " that returns tokens with their log-probabilities"
                )
            return form
        raise ConfigError(
            f"{self.name} must return the log-probabilities of a prompt's tokens, as vLLM does: "
            + "; ".join(refusals)
        )

    def _ask(self, tokens: Sequence[int], form: Form) -> list[TokenScore] | None:
        """Returns the score of each token; None if the answer has none of the prompt's."""
        body = {
            "model": self._config.model,
            "prompt": list(tokens),
            "max_tokens": 1,
            # Some servers report log-probabilities after temperature.
            "temperature": 1.0,
            **_REQUESTS[form],
        }
        return self._endpoint.post("completions", body, _reader(form, tokens))

    def _compare_spelling(self, tokens: Sequence[int], scores: Sequence[TokenScore]) -> int:
        """Returns how many tokens server and student spell alike; the others say nothing.

        Raises:
            ConfigError: they spell one differently.
        """
        compared = 0
        for token, score in zip(tokens, scores, strict=True):
            if score.text == f"token_id:{token}":  # vLLM's form with return_tokens_as_token_ids
                compared += 1
                continue
            try:
                ours = self._tokenizer.token_bytes(token).decode("utf-8").strip()
            except UnicodeDecodeError:
                continue  # part of a character, of which no server shows a text
            # White space is not compared: some servers clean it up.
            theirs = (score.text or "").strip()
            if not ours or not theirs or "\ufffd" in theirs:
                continue
            if ours != theirs:
                raise ConfigError(
                    f"{self.name} spells token {token} {theirs!r}, and the student's tokenizer "
                    f"{ours!r}: a teacher must have the student's tokenizer"
                )
            compared += 1
        return compared


def _tokens_to_compare(tokenizer: Tokenizer) -> list[int]:
    """Returns tokens from all of the vocabulary, its last and the prompt format's among them."""
    spread = np.linspace(0, tokenizer.required_vocab_size - 1, _PROBED_TOKENS).astype(int)
    special = dataclasses.astuple(tokenizer.special)
    return sorted({*spread.tolist(), *special})


def _reader(form: Form, tokens: Sequence[int]) -> Callable[[bytes], list[TokenScore] | None]:
    """Returns a function that reads the scores of a prompt's tokens from the body of an answer.

    It raises a ValueError where the body is malformed.
    """
    read = _read_prompt_logprobs if form == "prompt_logprobs" else _read_echo

    def parse(body: bytes) -> list[TokenScore] | None:
        try:
            choice = load_json(body)["choices"][0]
            scores = read(choice, tokens)
            return None if scores is None else list(scores)
        except (LookupError, TypeError, AttributeError, RecursionError):
            raise ValueError(f"not a completion with log-probabilities: {body[:200]!r}") from None

    return parse


def _read_prompt_logprobs(
    choice: dict[str, Any], tokens: Sequence[int]
) -> Iterator[TokenScore] | None:
    entries = choice.get("prompt_logprobs")
    if entries is None:
        return None
    if len(entries) != len(tokens):
        raise ValueError(f"{len(entries)} log-probabilities for {len(tokens)} tokens")

    def scores() -> Iterator[TokenScore]:
        for token, entry in zip(tokens, entries, strict=True):
            if entry is None:
                yield TokenScore(None, None)
                continue
            if str(token) not in entry:
                raise ValueError(f"no log-probability of token {token}, but of {list(entry)[:5]}")
            of_token = entry[str(token)]
            yield TokenScore(_logprob(of_token["logprob"]), of_token.get("decoded_token"))

    return scores()


def _read_echo(choice: dict[str, Any], tokens: Sequence[int]) -> Iterator[TokenScore] | None:
    logprobs = choice.get("logprobs")
    if logprobs is None:
        return None
    texts, values = logprobs["tokens"], logprobs["token_logprobs"]
    if len(texts) <= 1:  # of what was generated alone: there is no echo
        return None
    # One token more may have been generated.
    if len(texts) != len(values) or not 0 <= len(texts) - len(tokens) <= 1:
        raise ValueError(
            f"{len(texts)} tokens and {len(values)} log-probabilities for {len(tokens)} tokens"
        )
    pairs = zip(values[: len(tokens)], texts[: len(tokens)], strict=True)
    return (
        TokenScore(None if value is None else _logprob(value), text if text is None else str(text))
        for value, text in pairs
    )


def _logprob(value: Any) -> float:
    """Returns a log-probability; the least that a server reports may stand for minus infinity.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(value, float) or not math.isfinite(value) or value > 1e-3:
        raise ValueError(f"{value!r} is no log-probability")
    return value
