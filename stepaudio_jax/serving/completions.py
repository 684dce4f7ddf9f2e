"""The form of chat completions: whole ones, pieces of streams, usage, log-probabilities."""

import dataclasses
import time
import uuid
from typing import Any

from stepaudio_jax.generation import Completion, RequestOutput
from stepaudio_jax.generation.outputs import OutputToken
from stepaudio_jax.serving.reply_parts import ParsedCall, ReplyPiece, ReplySplitter
from stepaudio_jax.text import Tokenizer

_FINISH_REASONS = {"stop": "stop", "repetition": "stop", "length": "length", "cancelled": "stop"}


@dataclasses.dataclass
class Choice:
    """One of the replies to a request, as it grows.

    Attributes:
        index: which of them.
        splitter: divides its text.
        reasoning, content, calls: what is certain so far.
        reply_tokens, reasoning_tokens: with what is known of each.
        completion: where it has ended.
    """

    index: int
    splitter: ReplySplitter
    reasoning: str = ""
    content: str = ""
    calls: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    reply_tokens: list[OutputToken] = dataclasses.field(default_factory=list)
    reasoning_tokens: list[OutputToken] = dataclasses.field(default_factory=list)
    completion: Completion | None = None

    def add(self, output: RequestOutput) -> "ChoiceDelta":
        """Adds what a step has given; returns it in parts."""
        piece = self.splitter.add(output.text)
        if output.completion is not None:
            self.completion = output.completion
            rest = self.splitter.finish()
            piece = ReplyPiece(
                piece.reasoning + rest.reasoning,
                piece.content + rest.content,
                piece.calls + rest.calls,
            )
        calls = [
            _call_object(call, len(self.calls) + number) for number, call in enumerate(piece.calls)
        ]
        delta = ChoiceDelta(
            piece.reasoning,
            piece.content,
            calls,
            [token for token in output.tokens if token.in_reply],
            [token for token in output.tokens if not token.in_reply],
        )
        self.reasoning += delta.reasoning
        self.content += delta.content
        self.calls += calls
        self.reply_tokens += delta.reply_tokens
        self.reasoning_tokens += delta.reasoning_tokens
        return delta

    @property
    def finish_reason(self) -> str | None:
        """Why it has ended, in OpenAI's words; None while it goes on."""
        if self.completion is None:
            return None
        reason = _FINISH_REASONS[self.completion.finish_reason]
        return "tool_calls" if reason == "stop" and self.calls else reason


@dataclasses.dataclass(frozen=True)
class ChoiceDelta:
    """What a step adds to a reply."""

    reasoning: str
    content: str
    calls: list[dict[str, Any]]
    reply_tokens: list[OutputToken]
    reasoning_tokens: list[OutputToken]

    @property
    def is_empty(self) -> bool:
        """Whether nothing of it can be shown."""
        return not (self.reasoning or self.content or self.calls)


class CompletionWriter:
    """Writes the answers to one request.

    Args:
        model: the name of the model that answers.
        tokenizer: the model's.
        with_logprobs: whether the log-probability of each token is written.
        with_usage: whether every piece of a stream has `usage`.
    """

    def __init__(self, model: str, tokenizer: Tokenizer, *, with_logprobs: bool, with_usage: bool):
        self._tokenizer = tokenizer
        self._with_logprobs, self._with_usage = with_logprobs, with_usage
        self._common = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": None,
        }

    def whole(self, choices: list[Choice], usage: dict[str, Any]) -> dict[str, Any]:
        """Returns a completion with all its replies."""
        return {
            **self._common,
            "object": "chat.completion",
            "choices": [
                {
                    "index": choice.index,
                    "message": _message(choice),
                    "logprobs": self._logprobs(choice.reply_tokens, choice.reasoning_tokens),
                    "finish_reason": choice.finish_reason,
                }
                for choice in choices
            ],
            "usage": usage,
        }

    def first_piece(self, index: int) -> dict[str, Any]:
        """Returns the piece of a stream that opens a reply."""
        return self._piece(index, {"role": "assistant", "content": ""})

    def piece(self, index: int, delta: ChoiceDelta) -> dict[str, Any]:
        """Returns the piece of a stream with what a step has added to a reply."""
        values: dict[str, Any] = {}
        if delta.reasoning:
            values |= {"reasoning_content": delta.reasoning, "reasoning": delta.reasoning}
        if delta.content:
            values["content"] = delta.content
        if delta.calls:
            values["tool_calls"] = delta.calls
        logprobs = self._logprobs(delta.reply_tokens, delta.reasoning_tokens)
        return self._piece(index, values, logprobs=logprobs)

    def last_piece(self, choice: Choice) -> dict[str, Any]:
        """Returns the piece of a stream that ends a reply."""
        return self._piece(choice.index, {}, finish_reason=choice.finish_reason)

    def usage_piece(self, usage: dict[str, Any]) -> dict[str, Any]:
        """Returns the piece of a stream that has the usage of all of it."""
        return {
            **self._common,
            "object": "chat.completion.chunk",
            "choices": [],
            "usage": usage,
        }

    def _piece(
        self,
        index: int,
        delta: dict[str, Any],
        *,
        logprobs: dict[str, Any] | None = None,
        finish_reason: str | None = None,
    ) -> dict[str, Any]:
        usage = {"usage": None} if self._with_usage else {}
        return {
            **self._common,
            "object": "chat.completion.chunk",
            "choices": [
                {
                    "index": index,
                    "delta": delta,
                    "logprobs": logprobs,
                    "finish_reason": finish_reason,
                }
            ],
            **usage,
        }

    def _logprobs(
        self, reply: list[OutputToken], reasoning: list[OutputToken]
    ) -> dict[str, Any] | None:
        if not self._with_logprobs:
            return None
        return {
            "content": [self._token(token) for token in reply],
            "reasoning_content": [self._token(token) for token in reasoning],
            "refusal": None,
        }

    def _token(self, token: OutputToken) -> dict[str, Any]:
        return {
            **self._named(token.token, token.logprob),
            "top_logprobs": [self._named(other, logprob) for other, logprob in token.top],
        }

    def _named(self, token: int, logprob: float) -> dict[str, Any]:
        content = self._tokenizer.token_bytes(token)
        return {
            "token": content.decode("utf-8", "replace"),
            "logprob": logprob,
            "bytes": list(content),
        }


def usage_of(prompt_tokens: int, audio_tokens: int, choices: list[Choice]) -> dict[str, Any]:
    """Returns what a request has used, so far.

    A stop token counts, and so do the tokens of `</think>`, with the reasoning.
    """
    ended = [choice.completion for choice in choices if choice.completion is not None]
    completion_tokens = sum(
        len(choice.reply_tokens) + len(choice.reasoning_tokens) for choice in choices
    ) + sum(completion.stop_token is not None for completion in ended)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {
            "cached_tokens": max((completion.cached_tokens for completion in ended), default=0),
            "audio_tokens": audio_tokens,
        },
        "completion_tokens_details": {
            "reasoning_tokens": sum(len(choice.reasoning_tokens) for choice in choices),
            "audio_tokens": 0,
        },
    }


def _message(choice: Choice) -> dict[str, Any]:
    message: dict[str, Any] = {
        "role": "assistant",
        "content": choice.content if choice.content or not choice.calls else None,
        "reasoning_content": choice.reasoning or None,
        "reasoning": choice.reasoning or None,
        "refusal": None,
    }
    if choice.calls:
        # The place among the calls is for streams, where pieces of several may come.
        message["tool_calls"] = [
            {key: value for key, value in call.items() if key != "index"} for call in choice.calls
        ]
    return message


def _call_object(call: ParsedCall, index: int) -> dict[str, Any]:
    return {
        "index": index,
        "id": f"call_{uuid.uuid4().hex[:24]}",
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    }
