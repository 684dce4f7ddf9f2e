"""What comes out of the engine: pieces of replies as they grow, and completions at their end."""

import dataclasses
from typing import Literal

FinishReason = Literal["stop", "length", "repetition", "cancelled"]


@dataclasses.dataclass(frozen=True)
class StopToken:
    """The token that ended a reply, with its log-probabilities as in `sampling.Sampled`."""

    token: int
    logprob: float
    sampling_logprob: float


@dataclasses.dataclass(frozen=True)
class OutputToken:
    """A token of a reply, as far as its text can be shown.

    Attributes:
        token: its id.
        logprob: its log-probability under the model's own distribution.
        in_reply: whether any of its text belongs to the reply, and not to the reasoning before it.
        top: the most probable tokens in its place and their log-probabilities, where asked for.
    """

    token: int
    logprob: float
    in_reply: bool
    top: tuple[tuple[int, float], ...] = ()


@dataclasses.dataclass(frozen=True)
class Completion:
    """What was generated for one request.

    Attributes:
        tokens: without the stop token.
        logprobs: of each token under the model's own distribution.
        sampling_logprobs: of each token under the distribution that it was drawn from: tempered,
            restricted and penalised.
        finish_reason: "stop" (a stop token or a stop string), "length", "repetition" (the last
            tokens repeat one pattern) or "cancelled".
        stop_token: where one has ended the completion.
        stop_overlap_bytes: bytes at the end of the last token that belong to a stop string.
        cached_tokens: tokens of the prompt whose keys and values were kept from an earlier one.
    """

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    sampling_logprobs: tuple[float, ...]
    finish_reason: FinishReason
    stop_token: StopToken | None = None
    stop_overlap_bytes: int = 0
    cached_tokens: int = 0


@dataclasses.dataclass(frozen=True)
class RequestOutput:
    """What a step adds to a request: text (whole characters), and at the end its completion.

    Attributes:
        request: its number.
        text: what can be shown since the last output.
        completion: where the request has ended.
        tokens: those of the text.
    """

    request: int
    text: str
    completion: Completion | None = None
    tokens: tuple[OutputToken, ...] = ()
