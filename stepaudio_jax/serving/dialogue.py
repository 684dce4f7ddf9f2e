"""The messages of a request -> a prompt of the model, with its clips decoded."""

import dataclasses
import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from stepaudio_jax.audio import SAMPLE_RATE
from stepaudio_jax.data.sources.tools import calls_text, order_results, schemas_text
from stepaudio_jax.errors import ApiError, AudioError, DataError, TextError
from stepaudio_jax.generation.prompts import ClipFeatures, Prompt, build_prompt_of_features
from stepaudio_jax.serving.chat_protocol import (
    AssistantMessage,
    AudioUrlPart,
    ChatMessage,
    InputAudioPart,
    QwenAudioPart,
    TextPart,
    Tool,
    ToolMessage,
    UserMessage,
)
from stepaudio_jax.serving.clips import ClipReader, UrlTime, clip_error, decode_clip_data, seconds
from stepaudio_jax.serving.models import ServedModel
from stepaudio_jax.serving.settings import ServingSettings
from stepaudio_jax.text import (
    THINK_END,
    AudioPart,
    Message,
    Segment,
    render_prompt,
)
from stepaudio_jax.text import TextPart as Words
from stepaudio_jax.text.dialogue import THINK_END_TAG, THINK_START_TAG

_ORIGIN = "messages"


@dataclasses.dataclass(frozen=True)
class BuiltPrompt:
    """A request's prompt.

    Attributes:
        prompt: tokens and sound.
        audio_seconds: of all clips together.
        opens_reasoning: whether the reply begins inside a reasoning.
    """

    prompt: Prompt
    audio_seconds: float
    opens_reasoning: bool

    @property
    def audio_tokens(self) -> int:
        """Tokens that stand for sound."""
        return int(np.count_nonzero(self.prompt.is_audio))


@dataclasses.dataclass(frozen=True)
class _ClipPlace:
    """Where a clip of the request stands, and what names it."""

    where: str
    source: InputAudioPart | str


def build_chat_prompt(
    served: ServedModel,
    messages: Sequence[ChatMessage],
    tools: Sequence[Tool],
    *,
    enable_thinking: bool,
    clips: ClipReader,
    settings: ServingSettings,
) -> BuiltPrompt:
    """Builds the prompt of a dialogue: reads and decodes its clips, renders and tokenizes it.

    Args:
        served: whose format and tokenizer are used.
        messages: of the request.
        tools: functions that the model is told of.
        enable_thinking: False closes the reasoning before it begins.
        clips: reads clips.
        settings: limits.

    Raises:
        ApiError: the dialogue is not one that the model can answer, or a clip cannot be used.
    """
    model = served.loaded
    places: list[_ClipPlace] = []
    try:
        dialogue = [_to_message(item, number, places) for number, item in _ordered(messages)]
        if tools:
            dialogue.insert(_schemas_place(dialogue), _schemas_message(tools))
        _check_number(places, settings)
        texts = (message.text for message in dialogue)
        check_text_size(texts, served, "messages")
        segments = render_prompt(
            [message for message in dialogue if not _is_empty_system(message)],
            model.tokenizer,
            history_eot=model.history_eot,
            history_reasoning=model.history_reasoning,
        )
        if not enable_thinking:
            end = tuple(model.tokenizer.encode(THINK_END))
            segments.append(Segment(end, in_loss=False, audio=None, turn=len(dialogue)))
        samples = 0
        url_time = UrlTime(settings.url_timeout_s)
        left = round(settings.max_audio_s * SAMPLE_RATE)

        def features(part: AudioPart) -> ClipFeatures:
            nonlocal samples, left
            clip_place = places[int(part.path)]
            clip = clips.decode(
                _content(clip_place, clips, url_time),
                clip_place.where,
                max_samples=left,
                convention=model.config.length_convention,
                channel=model.channel,
            )
            samples, left = samples + clip.samples, left - clip.samples
            return clip.features

        prompt = build_prompt_of_features(segments, model.tokenizer, features)
        _ = prompt.chunk_digests  # computed here, and not by the thread that all requests share
    except (TextError, DataError) as error:
        raise ApiError(400, str(error), param="messages") from None
    return BuiltPrompt(prompt, seconds(samples), enable_thinking)


def check_text_size(texts: Iterable[str], served: ServedModel, param: str) -> None:
    """Refuses texts that no slot can hold before they are tokenized, which would take long.

    Args:
        texts: that are tokenized for a request.
        served: whose slots should hold them.
        param: the key of the body that they come from.

    Raises:
        ApiError: they are too long together.
    """
    size = sum(len(text.encode(errors="replace")) for text in texts)
    if size > served.max_text_bytes:
        raise ApiError(
            400,
            f"{param}: {size} bytes of text are more than this server's"
            f" {served.lane.engine.slot_tokens} tokens can hold; send less",
            param=param,
            code="context_length_exceeded",
        )


def _ordered(messages: Sequence[ChatMessage]) -> list[tuple[int, ChatMessage]]:
    """Returns the messages with their numbers, the results of calls in the order of the calls."""
    ordered: list[tuple[int, ChatMessage]] = []
    ids: list[str] = []
    results: list[tuple[int, ToolMessage]] = []

    def flush() -> None:
        named = [
            {"tool_call_id": message.tool_call_id, "index": index}
            for index, (_, message) in enumerate(results)
        ]
        ordered.extend(results[item["index"]] for item in order_results(named, ids, _ORIGIN))
        results.clear()

    for number, message in enumerate(messages, 1):
        if isinstance(message, ToolMessage):
            results.append((number, message))
            continue
        flush()
        ordered.append((number, message))
        calls = message.tool_calls if isinstance(message, AssistantMessage) else None
        ids = [call.id for call in calls or ()]
    flush()
    return ordered


def _to_message(message: ChatMessage, number: int, places: list[_ClipPlace]) -> Message:
    where = f"message {number} ({message.role})"
    if isinstance(message, UserMessage):
        if isinstance(message.content, str):
            return Message("user", (Words(message.content),))
        parts = tuple(
            _to_part(part, f"message {number}: part {index}", places)
            for index, part in enumerate(message.content, 1)
        )
        return Message("user", parts)
    if isinstance(message, AssistantMessage):
        return _to_reply(message, where)
    text = _joined(message.content)
    if isinstance(message, ToolMessage):
        return Message("input", (Words(text),))
    return Message("system", (Words(text),))


def _to_reply(message: AssistantMessage, where: str) -> Message:
    """Returns an earlier reply: its words or refusal, and its calls as the model writes them."""
    content = message.content if message.content is not None else message.refusal
    text = _joined(content or "")
    reasoning = message.reasoning_content or message.reasoning
    if text.lstrip().startswith(THINK_START_TAG):
        thought, tag, rest = text.lstrip().removeprefix(THINK_START_TAG).partition(THINK_END_TAG)
        if not tag:
            raise TextError(f"{where} opens {THINK_START_TAG} and never closes it")
        reasoning, text = reasoning or thought.strip(), rest.lstrip("\n")
    calls = [
        {"name": call.function.name, "arguments": call.function.arguments}
        for call in message.tool_calls or ()
    ]
    return Message("assistant", (Words(text + calls_text(calls, where)),), reasoning=reasoning)


def _to_part(
    part: TextPart | InputAudioPart | AudioUrlPart | QwenAudioPart,
    where: str,
    places: list[_ClipPlace],
) -> Words | AudioPart:
    if isinstance(part, TextPart):
        return Words(part.text)
    if isinstance(part, InputAudioPart):
        source: InputAudioPart | str = part
    elif isinstance(part, AudioUrlPart):
        source = part.audio_url if isinstance(part.audio_url, str) else part.audio_url.url
    else:
        addresses = [text for text in (part.audio, part.audio_url) if text is not None]
        if len(addresses) != 1:
            raise clip_error(where, "give the clip's address in 'audio' or in 'audio_url'")
        source = addresses[0]
    places.append(_ClipPlace(where, source))
    return AudioPart(str(len(places) - 1))


def _content(place: _ClipPlace, clips: ClipReader, url_time: UrlTime) -> bytes:
    """Returns the file of a clip."""
    if isinstance(place.source, str):
        return clips.fetch(place.source, place.where, url_time)
    try:
        return decode_clip_data(place.source.input_audio.data)
    except AudioError as error:
        raise clip_error(place.where, f"{error.source} {error.reason}") from None


def _check_number(places: Sequence[_ClipPlace], settings: ServingSettings) -> None:
    if len(places) > settings.max_clips:
        raise ApiError(
            413,
            f"the request has {len(places)} clips, more than this server's {settings.max_clips};"
            " send fewer, or start the server with a larger --max-clips",
            param="messages",
            code="too_many_clips",
        )


def _schemas_place(dialogue: Sequence[Message]) -> int:
    """Returns where the turn of schemas stands: after the system turns at the beginning."""
    return next(
        (index for index, message in enumerate(dialogue) if message.role != "system"),
        len(dialogue),
    )


def _schemas_message(tools: Sequence[Tool]) -> Message:
    schemas: list[Any] = [tool.model_dump(exclude_none=True) for tool in tools]
    text = schemas_text(json.loads(json.dumps(schemas)), "'tools'")
    assert text is not None
    return Message("tool_json_schemas", (Words(text),))


def _is_empty_system(message: Message) -> bool:
    return message.role == "system" and not message.text.strip()


def _joined(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "".join(part.text if isinstance(part, TextPart) else part.refusal for part in content)
