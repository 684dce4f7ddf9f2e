"""The body of a chat completion, as OpenAI's API and the servers of open models have it.

Every key is checked; one that is unknown is refused, since a client that sends it expects something
of it. Keys that only describe a request for somebody's records are read and left alone.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from stepaudio_jax.errors import ApiError
from stepaudio_jax.storage import did_you_mean

MAX_MESSAGES = 2048
MAX_TOP_LOGPROBS = 20
_MAX_STOPS = 16
_MAX_STOP_CHARACTERS = 512
_MAX_TOOLS = 128
_MAX_TOKENS = 2**31 - 1
_MAX_SEED = 2**63 - 1


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class TextPart(_Strict):
    """Words."""

    type: Literal["text"]
    text: str


class RefusalPart(_Strict):
    """An earlier reply that was a refusal."""

    type: Literal["refusal"]
    refusal: str


class InputAudio(_Strict):
    """A sound file in base64; its format is recognized by its content, whatever is said of it."""

    data: str
    format: str | None = None


class InputAudioPart(_Strict):
    """A clip in the body."""

    type: Literal["input_audio"]
    input_audio: InputAudio


class AudioUrl(_Strict):
    """Where a clip is: `data:`, or what the server allows of `https:` and `file:`."""

    url: str


class AudioUrlPart(_Strict):
    """A clip by its address."""

    type: Literal["audio_url"]
    audio_url: AudioUrl | str


class QwenAudioPart(_Strict):
    """A clip as Qwen's examples write it: its address in `audio` or `audio_url`."""

    type: Literal["audio"]
    audio: str | None = None
    audio_url: str | None = None


UserPart = Annotated[
    TextPart | InputAudioPart | AudioUrlPart | QwenAudioPart, Field(discriminator="type")
]


class SystemMessage(_Strict):
    """What the model is told of its task."""

    role: Literal["system", "developer"]
    content: str | list[TextPart]
    name: str | None = None


class UserMessage(_Strict):
    """A person's turn: words and clips in their order."""

    role: Literal["user"]
    content: str | Annotated[list[UserPart], Field(min_length=1)]
    name: str | None = None


class FunctionCall(_Strict):
    """What a model has called, its arguments as JSON."""

    name: str
    arguments: str


class ToolCall(_Strict):
    """A call of an earlier reply."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall
    index: int | None = None


class AssistantMessage(_Strict):
    """An earlier reply, as this server has sent it.

    The model sees nothing of its reasoning, unless the server runs with --history-reasoning.
    """

    role: Literal["assistant"]
    content: str | list[TextPart | RefusalPart] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: list[ToolCall] | None = None
    name: str | None = None
    audio: None = None
    function_call: None = None
    annotations: list[Any] | None = None


class ToolMessage(_Strict):
    """The result of a call."""

    role: Literal["tool"]
    content: str | list[TextPart]
    tool_call_id: str | None = None
    name: str | None = None


ChatMessage = Annotated[
    SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")
]


class FunctionSchema(_Strict):
    """A function that the model may call; `parameters` is a JSON schema of its arguments."""

    name: str = Field(pattern=r"^[a-zA-Z0-9_.\-]{1,64}$")
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(_Strict):
    """A tool: a function."""

    type: Literal["function"]
    function: FunctionSchema


class NamedFunction(_Strict):
    """The name of a function."""

    name: str


class NamedTool(_Strict):
    """The tool that must be called."""

    type: Literal["function"]
    function: NamedFunction


class JsonSchema(_Strict):
    """The schema that a reply must follow."""

    name: str = "reply"
    description: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None


class TextFormat(_Strict):
    """Words."""

    type: Literal["text"]


class JsonObjectFormat(_Strict):
    """Any JSON object."""

    type: Literal["json_object"]


class JsonSchemaFormat(_Strict):
    """A JSON value that follows a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[
    TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")
]


class StreamOptions(_Strict):
    """How a stream is written."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class TemplateOptions(_Strict):
    """How the prompt is written: without thinking, or with at most so many tokens of it."""

    enable_thinking: bool | None = None
    thinking_budget: int | None = Field(default=None, ge=1, le=_MAX_TOKENS)


StopText = Annotated[str, Field(min_length=1, max_length=_MAX_STOP_CHARACTERS)]


class ChatRequest(_Strict):
    """A request for a chat completion."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)]
    model: str | None = Field(default=None, description="one of /v1/models; the first by default")
    max_tokens: int | None = Field(default=None, ge=1, le=_MAX_TOKENS)
    max_completion_tokens: int | None = Field(default=None, ge=1, le=_MAX_TOKENS)
    temperature: float | None = Field(default=None, ge=0, le=100)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=-1, le=_MAX_TOKENS, description="0 or -1: all")
    min_p: float | None = Field(default=None, ge=0, le=1)
    repetition_penalty: float | None = Field(default=None, gt=0, le=100)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    seed: int | None = Field(default=None, ge=-_MAX_SEED - 1, le=_MAX_SEED)
    n: int | None = Field(default=None, ge=1)
    stop: StopText | Annotated[list[StopText], Field(max_length=_MAX_STOPS)] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool], Field(max_length=_MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: TemplateOptions | None = None
    thinking_budget: int | None = Field(
        default=None, ge=1, le=_MAX_TOKENS, description="most tokens of the reasoning"
    )
    reasoning_effort: Literal["none"] | None = Field(
        default=None, description='"none" as enable_thinking: false'
    )
    modalities: list[Literal["text"]] | None = None
    # Read and left alone.
    user: str | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None


class TokenizeRequest(_Strict):
    """A text or a dialogue whose tokens are asked for."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)] | None = (
        None
    )
    tools: Annotated[list[Tool], Field(max_length=_MAX_TOOLS)] | None = None
    chat_template_kwargs: TemplateOptions | None = None


def parse_body(kind: type[BaseModel], body: bytes) -> Any:
    """Returns a body as the model of its kind.

    Raises:
        ApiError: 400 where it is no JSON, 422 where a key is wrong; names the first of them.
    """
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise _as_api_error(error.errors(include_url=False), kind) from None


def _as_api_error(errors: list[ErrorDetails], kind: type[BaseModel]) -> ApiError:
    if errors[0]["type"] == "json_invalid":
        reason = errors[0].get("ctx", {}).get("error", "it cannot be read")
        return ApiError(400, f"the body is no JSON: {reason}", code="invalid_json")
    # Of a key that may have several forms every form has its error: the deepest says most.
    first = max(errors, key=lambda item: len(item["loc"]))
    names = [item for item in first["loc"] if not _is_form(item)]
    param = ".".join(str(name) for name in names) or None
    message = first["msg"]
    if first["type"] == "extra_forbidden":
        key = str(first["loc"][-1])
        known = list(kind.model_fields) if len(first["loc"]) == 1 else []
        message = f"unknown key{did_you_mean(key, known)}"
    return ApiError(422, f"{param or 'the body'}: {message}", param=param)


def _is_form(item: int | str) -> bool:
    """Returns whether a part of an error's place names a form that was tried, and no key."""
    if isinstance(item, int):
        return False
    return item in _FORM_NAMES or "[" in item


_FORM_NAMES = frozenset(
    (
        *("str", "AudioUrl", "NamedTool", "TextPart", "RefusalPart"),
        *("system", "developer", "user", "assistant", "tool"),
        *("text", "refusal", "input_audio", "audio_url", "audio", "json_object"),
    )
)
