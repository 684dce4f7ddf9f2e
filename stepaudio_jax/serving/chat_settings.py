"""The settings of a chat completion -> how each of its replies is sampled."""

import dataclasses
import secrets

from stepaudio_jax.errors import ApiError, GenerationError
from stepaudio_jax.generation import Sampling
from stepaudio_jax.serving.chat_protocol import ChatRequest, NamedTool, TemplateOptions
from stepaudio_jax.serving.settings import ServingSettings

_SEEDS = 2**32


@dataclasses.dataclass(frozen=True)
class ChatSettings:
    """What a request asks for beside its messages.

    Attributes:
        sampling: of every reply, but for its seed and length.
        seeds: of each reply.
        max_tokens: of each reply; None for as many as fit.
        num_top_logprobs: alternatives of each token.
        with_logprobs: whether log-probabilities are written.
        enable_thinking: whether the reply begins with a reasoning.
        has_tools: whether the model is told of the tools, and calls are taken out of its words.
        stream: whether the reply is sent as it grows.
        with_usage: whether a stream ends with its usage.
    """

    sampling: Sampling
    seeds: tuple[int, ...]
    max_tokens: int | None
    num_top_logprobs: int
    with_logprobs: bool
    enable_thinking: bool
    has_tools: bool
    stream: bool
    with_usage: bool

    def samplings(self, max_tokens: int) -> tuple[Sampling, ...]:
        """Returns how each reply is sampled, of at most so many tokens."""
        return tuple(
            dataclasses.replace(self.sampling, seed=seed, max_new_tokens=max_tokens)
            for seed in self.seeds
        )


def read_chat_settings(request: ChatRequest, settings: ServingSettings) -> ChatSettings:
    """Reads the settings of a request.

    Raises:
        ApiError: two of them contradict each other, or one is out of range.
    """
    options = request.chat_template_kwargs or TemplateOptions()
    enable_thinking = options.enable_thinking is not False and request.reasoning_effort is None
    if request.reasoning_effort == "none" and options.enable_thinking:
        raise _conflict("reasoning_effort", "'none' contradicts enable_thinking")
    budget = _agreed("thinking_budget", request.thinking_budget, options.thinking_budget)
    if budget is not None and not enable_thinking:
        raise _conflict("thinking_budget", "has no effect without thinking; leave it out")
    max_tokens = _agreed("max_tokens", request.max_tokens, request.max_completion_tokens)
    num_samples = request.n or 1
    if num_samples > settings.max_samples:
        raise ApiError(
            400, f"n is {num_samples}, more than this server's {settings.max_samples}", param="n"
        )
    if request.top_logprobs is not None and not request.logprobs:
        raise _conflict("top_logprobs", "needs logprobs: true")
    if request.stream_options is not None and not request.stream:
        raise _conflict("stream_options", "needs stream: true")
    if request.parallel_tool_calls is False and request.tools and not _must_call(request):
        raise _conflict(
            "parallel_tool_calls",
            "false is kept only where tool_choice asks for a call ('required' or a function)",
        )
    stop = [request.stop] if isinstance(request.stop, str) else request.stop or []
    seed = request.seed if request.seed is not None else secrets.randbits(32)
    default = Sampling()
    try:
        sampling = Sampling(
            temperature=_or(request.temperature, default.temperature),
            top_p=_or(request.top_p, default.top_p),
            top_k=max(default.top_k if request.top_k is None else request.top_k, 0),
            min_p=_or(request.min_p, default.min_p),
            repetition_penalty=_or(request.repetition_penalty, default.repetition_penalty),
            presence_penalty=_or(request.presence_penalty, default.presence_penalty),
            frequency_penalty=_or(request.frequency_penalty, default.frequency_penalty),
            max_reasoning_tokens=budget,
            stop_strings=tuple(dict.fromkeys(stop)),
        )
    except GenerationError as error:
        raise ApiError(400, str(error)) from None
    stream_options = request.stream_options
    has_tools = bool(request.tools) and request.tool_choice != "none"
    return ChatSettings(
        sampling=sampling,
        seeds=tuple((seed + index) % _SEEDS for index in range(num_samples)),
        max_tokens=max_tokens,
        num_top_logprobs=request.top_logprobs or 0,
        with_logprobs=bool(request.logprobs),
        enable_thinking=enable_thinking,
        has_tools=has_tools,
        stream=bool(request.stream),
        with_usage=bool(stream_options and stream_options.include_usage),
    )


def _must_call(request: ChatRequest) -> bool:
    return request.tool_choice == "required" or isinstance(request.tool_choice, NamedTool)


def _agreed(name: str, first: int | None, second: int | None) -> int | None:
    """Returns a setting that may be given in two places."""
    if first is not None and second is not None and first != second:
        raise _conflict(name, f"is given twice, as {first} and {second}; keep one")
    return first if first is not None else second


def _conflict(param: str, message: str) -> ApiError:
    return ApiError(400, f"{param}: {message}", param=param)


def _or(value: float | None, default: float) -> float:
    return default if value is None else value
