"""The reply to one request as it grows, on the host: its tokens, where it ends, its text."""

import codecs
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from stepaudio_jax.config import RepetitionDetectionConfig
from stepaudio_jax.generation.outputs import (
    Completion,
    FinishReason,
    OutputToken,
    RequestOutput,
    StopToken,
)
from stepaudio_jax.generation.sampling import Sampling
from stepaudio_jax.text import Tokenizer
from stepaudio_jax.text.dialogue import THINK_END_TAG, THINK_START_TAG

_THINK_START, _THINK_END = THINK_START_TAG.encode(), THINK_END_TAG.encode()


class TokenConstraint(Protocol):
    """Says, token by token, which tokens of the vocabulary may come next."""

    def write_allowed(self, words: NDArray[np.uint32]) -> None:
        """Sets a bit for each token that may come next, the lowest bit first; at least one."""

    def accept(self, token: int) -> None:
        """Takes notice of the token that came."""


class RequestState:
    """The reply to one request.

    Args:
        number: the request's number.
        sampling: how it is answered.
        tokenizer: the model's tokenizer.
        in_reasoning: whether the prompt has opened a reasoning, with which the text then begins. A
            text that begins with `<think>` opens one itself.
        num_top_logprobs: alternatives of each token that are kept.
        constraint: what restricts the tokens; None for nothing.
        has_special_text: whether a special token is text, its name. It is none in a server, whose
            replies are shown as they grow.

    Attributes:
        number, sampling, num_top_logprobs, constraint: as above.
        cached_tokens: tokens of the prompt whose keys and values were kept from an earlier one.
        stopped: whether a stop token or a stop string has ended it.
        repeated: whether it has ended because its last tokens repeat one pattern.
        stop_token: where one has ended it.
    """

    def __init__(
        self,
        number: int,
        sampling: Sampling,
        tokenizer: Tokenizer,
        *,
        in_reasoning: bool = False,
        num_top_logprobs: int = 0,
        constraint: TokenConstraint | None = None,
        has_special_text: bool = True,
    ):
        self.number = number
        self.sampling = sampling
        self.num_top_logprobs = num_top_logprobs
        self.constraint = constraint
        self.cached_tokens = 0
        self._has_special_text = has_special_text
        self._tokenizer = tokenizer
        self._stop_tokens = {tokenizer.special.eot, *sampling.stop_tokens}
        self._stop_strings = [text.encode() for text in sampling.stop_strings]
        self._tokens: list[int] = []
        self._logprobs: list[float] = []
        self._sampling_logprobs: list[float] = []
        self._top: list[tuple[tuple[int, float], ...]] = []
        self._num_shown_tokens = 0  # that `take_new_tokens` has returned
        self._text = b""
        self._ends: list[int] = []  # length of the text after each token
        self._num_shown = 0  # bytes of the text that `take_new_text` has returned
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._cut: int | None = None  # bytes of the text before the stop string
        self._in_reasoning = in_reasoning
        self._num_searched = 0  # bytes of the text in which no end of the reasoning begins
        self._reply_start: int | None = None  # bytes of the text up to and with that end
        detection = sampling.repetition_detection
        self._repetition = (
            RepetitionDetector(detection, max_new_tokens=sampling.max_new_tokens)
            if detection.is_on
            else None
        )
        self.stopped = False
        self.repeated = False
        self.stop_token: StopToken | None = None

    def add(
        self,
        tokens: Any,
        logprobs: Any,
        sampling_logprobs: Any,
        top_tokens: Any = None,
        top_logprobs: Any = None,
    ) -> None:
        """Adds tokens [n] with their log-probabilities [n], up to the one that ends the reply.

        Args:
            tokens, logprobs, sampling_logprobs: as in `sampling.Sampled`.
            top_tokens, top_logprobs: alternatives [n, top] of each; None where none were computed.
        """
        for index, (token, logprob, sampling_logprob) in enumerate(
            zip(tokens.tolist(), logprobs.tolist(), sampling_logprobs.tolist(), strict=True)
        ):
            if self.stopped or self.repeated:
                return
            if self.constraint is not None:
                self.constraint.accept(token)
            if token in self._stop_tokens:
                self.stopped, self.stop_token = True, StopToken(token, logprob, sampling_logprob)
                return
            self._tokens.append(token)
            self._logprobs.append(logprob)
            self._sampling_logprobs.append(sampling_logprob)
            top = slice(0, self.num_top_logprobs)
            if self.num_top_logprobs and top_tokens is not None:
                pairs = zip(
                    top_tokens[index, top].tolist(), top_logprobs[index, top].tolist(), strict=True
                )
                self._top.append(tuple(pairs))
            if self._has_special_text or not self._tokenizer.is_special(token):
                self._text += self._tokenizer.token_bytes(token)
            self._ends.append(len(self._text))
            self._find_stop_string()
            if self._repetition is not None and not self.stopped:
                self.repeated = self._repetition.add(token)

    @property
    def num_tokens(self) -> int:
        """Tokens of the reply so far, without the one that has stopped it."""
        return len(self._tokens)

    @property
    def at_limit(self) -> bool:
        """Whether it has `max_new_tokens` tokens."""
        return len(self._tokens) >= self.sampling.max_new_tokens

    @property
    def reasoning_ended(self) -> bool:
        """Whether the model has ended its reasoning itself."""
        return _THINK_END in self._text

    def output_tokens(self) -> tuple[tuple[int, ...], tuple[float, ...], tuple[float, ...]]:
        """Returns tokens, log-probabilities and sampling log-probabilities.

        Tokens that are wholly part of the stop string are left out.
        """
        count = self._num_output_tokens
        return (
            tuple(self._tokens[:count]),
            tuple(self._logprobs[:count]),
            tuple(self._sampling_logprobs[:count]),
        )

    def take_new_tokens(self, *, last: bool = False) -> tuple[OutputToken, ...]:
        """Returns the tokens whose text `take_new_text` has returned since the last call.

        Args:
            last: nothing follows; all tokens of the output are returned.
        """
        count = self._num_output_tokens
        if not last:
            limit, count = count, self._num_shown_tokens
            while count < limit and self._ends[count] <= self._num_shown:
                count += 1
        indices = range(self._num_shown_tokens, count)
        self._num_shown_tokens = count
        reply_start = self._find_reply_start()
        return tuple(
            OutputToken(
                self._tokens[index],
                self._logprobs[index],
                reply_start is not None and self._ends[index] > reply_start,
                self._top[index] if self._top else (),
            )
            for index in indices
        )

    @property
    def stop_overlap_bytes(self) -> int:
        """Bytes at the end of the last output token that belong to the stop string."""
        if self._cut is None or not self._num_output_tokens:
            return 0
        return self._ends[self._num_output_tokens - 1] - self._cut

    @property
    def _num_output_tokens(self) -> int:
        """The number of tokens that begin before the stop string.

        A token without text belongs to what follows it.
        """
        if self._cut is None:
            return len(self._ends)
        num_before = int(np.searchsorted(self._ends, self._cut, side="right"))
        end = self._ends[num_before - 1] if num_before else 0
        return num_before + (end < self._cut)

    def final_output(self, reason: FinishReason) -> RequestOutput:
        """Returns the rest of the text with the completion; nothing may follow."""
        tokens, logprobs, sampling_logprobs = self.output_tokens()
        completion = Completion(
            tokens,
            logprobs,
            sampling_logprobs,
            reason,
            self.stop_token,
            self.stop_overlap_bytes,
            self.cached_tokens,
        )
        text = self.take_new_text(last=True)
        return RequestOutput(self.number, text, completion, self.take_new_tokens(last=True))

    def take_new_text(self, *, last: bool = False) -> str:
        """Returns the text that can be shown since the last call.

        That is whole characters, and nothing that may turn out to begin a stop string.

        Args:
            last: nothing follows; bytes that are no character are written as U+FFFD.
        """
        end = len(self._text) if self._cut is None else self._cut
        if not last:
            end -= self._partial_stop_len(end)
        new, self._num_shown = self._text[self._num_shown : end], max(end, self._num_shown)
        return self._decoder.decode(new, last)

    def _find_stop_string(self) -> None:
        """Ends the reply at a stop string that the last token has completed, if there is one."""
        if not self._stop_strings or (start := self._stop_search_start()) is None:
            return
        before = self._ends[-2] if len(self._ends) > 1 else 0
        for stop in self._stop_strings:
            position = self._text.find(stop, max(start, before - len(stop) + 1))
            if position >= 0 and (self._cut is None or position < self._cut):
                self._cut, self.stopped = position, True

    def _stop_search_start(self) -> int | None:
        """Returns the byte from which stop strings count; None while the reasoning goes on."""
        return 0 if self.sampling.stop_in_reasoning else self._find_reply_start()

    def _find_reply_start(self) -> int | None:
        """Returns the byte at which the reply begins; None while the reasoning goes on."""
        if self._reply_start is None:
            if not self._in_reasoning and not self._text.startswith(_THINK_START):
                return 0
            tag = self._text.find(_THINK_END, self._num_searched)
            if tag < 0:
                self._num_searched = max(0, len(self._text) - len(_THINK_END) + 1)
                return None
            self._reply_start = tag + len(_THINK_END)
        # The line break after the tag is the format's, not the reply's.
        return self._reply_start + self._text.startswith(b"\n", self._reply_start)

    def _partial_stop_len(self, end: int) -> int:
        """Returns the bytes before `end` that may be the beginning of a stop string."""
        if not self._stop_strings or (start := self._stop_search_start()) is None:
            return 0
        longest = 0
        for stop in self._stop_strings:
            for size in range(min(len(stop) - 1, end - start), longest, -1):
                if self._text[end - size : end] == stop[:size]:
                    longest = size
                    break
        return longest


class RepetitionDetector:
    """Detects a reply whose last tokens repeat one pattern, token by token.

    For each pattern size p it counts how many tokens in a row equal the one p positions before. The
    last k * p tokens are one pattern of p, k times, where that count reaches (k - 1) * p. A token
    costs one comparison for each size, whatever the reply's length.

    Args:
        config: sizes of patterns, and how often one must occur; it must be on.
        max_new_tokens: of the reply: larger patterns cannot occur often enough in it.
    """

    def __init__(self, config: RepetitionDetectionConfig, *, max_new_tokens: int):
        largest = min(config.max_pattern_size, max_new_tokens // config.min_count)
        sizes = np.arange(config.min_pattern_size, largest + 1)
        self._needed = (config.min_count - 1) * sizes
        self._matches = np.zeros(len(sizes), np.int64)
        self._smallest = config.min_pattern_size
        self._recent = np.full(max(largest, 0), -1, np.int64)  # the last tokens, newest first

    def add(self, token: int) -> bool:
        """Adds a token; returns whether the reply now ends in a pattern repeated often enough."""
        if not len(self._needed):
            return False
        equal = self._recent[self._smallest - 1 :] == token
        self._matches = np.where(equal, self._matches + 1, 0)
        self._recent[1:] = self._recent[:-1]
        self._recent[0] = token
        return bool((self._matches >= self._needed).any())
