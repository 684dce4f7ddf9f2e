"""Talking to a model from Python: replies, streams and scores, with sound from files or arrays."""

import dataclasses
import os
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepaudio_jax.audio import waveform_from_array
from stepaudio_jax.config import AudioChannel, DataConfig, FloatDtype, LengthConvention
from stepaudio_jax.data import Record
from stepaudio_jax.data.clips import load_clip
from stepaudio_jax.data.sources.messages import parse_record
from stepaudio_jax.errors import DataError, GenerationError
from stepaudio_jax.generation.engine import Engine
from stepaudio_jax.generation.loaded_model import (
    LoadedModel,
    build_engine,
    build_record_prompt,
    folder_decode_mesh,
    load_model,
)
from stepaudio_jax.generation.outputs import Completion, FinishReason
from stepaudio_jax.generation.prompts import check_prompt_fits
from stepaudio_jax.generation.sampling import Sampling
from stepaudio_jax.generation.scoring import Scorer, TurnScore
from stepaudio_jax.models import CacheDtype
from stepaudio_jax.storage import PathLike, did_you_mean, expand_home
from stepaudio_jax.text import AudioPart, parse_reply

# Samples [samples] or [samples, channels] and their rate in Hz.
SoundArray = tuple[NDArray[Any], int]
# A string is text, or the path of a clip where it ends as a sound file's name does.
Part = PathLike | SoundArray | Mapping[str, Any]

_SOUND_SUFFIXES = (
    *(".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus"),
    *(".m4a", ".aac", ".aif", ".aiff", ".wma", ".webm", ".mp4"),  # refused with what to do
)


def load(
    folder: PathLike,
    *,
    dtype: FloatDtype | None = None,
    int8_weights: bool = False,
    cache_dtype: CacheDtype | None = None,
    tensor: int = 0,
    for_generation: bool = False,
    history_reasoning: bool = False,
    channel: AudioChannel = DataConfig.channel,
) -> "ChatModel":
    """Loads a Hugging Face folder or a checkpoint of this project, on all devices.

    Args:
        folder: either kind, the finished `model` of a training run for example.
        dtype: dtype of weights and computation; None for bfloat16, on a CPU float32.
        int8_weights: keep the decoder's matrices in int8, for generation only.
        cache_dtype: dtype of cached keys and values; None for `dtype`.
        tensor: devices over which each layer is sharded; 0 for as many as divide its heads.
        for_generation: keep one copy of the weights instead of two; the model cannot score then.
        history_reasoning: past turns keep their reasoning, for a model trained so.
        channel: which channel of a multichannel clip is used: the "first", or the "mix" of all.

    Raises:
        CheckpointError: the folder holds no model, or an incomplete one.
        ConfigError: `tensor` does not divide the number of devices.
    """
    model = load_model(
        folder,
        dtype,
        int8_weights=int8_weights,
        mesh=folder_decode_mesh(folder, tensor),
        for_generation=for_generation,
        history_reasoning=history_reasoning,
        channel=channel,
    )
    return ChatModel(model, cache_dtype=cache_dtype, can_score=not (for_generation or int8_weights))


@dataclasses.dataclass(frozen=True)
class Reply:
    """What a model answered.

    Attributes:
        text: the reply, without the reasoning.
        reasoning: what the model thought before it.
        finish_reason: "stop", "length" (truncated at `max_new_tokens`) or "repetition".
        problems: what is wrong with the form of the reply, "not_ended" for example; empty where
            nothing is.
        tokens: of reasoning and reply, as generated, without the stop token.
        logprobs: of each of them, natural logarithm, under the model's own distribution.
    """

    text: str
    reasoning: str
    finish_reason: FinishReason
    problems: tuple[str, ...]
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]

    def __str__(self) -> str:
        return self.text

    @property
    def message(self) -> dict[str, str]:
        """The reply as a message, to go on with: `messages + [reply.message, ...]`."""
        return {"role": "assistant", "reasoning_content": self.reasoning, "content": self.text}


class ChatModel:
    """Answers and scores dialogues with one model, one at a time; made by `load`.

    A dialogue is a list of messages as `docs/data.md` has them, or a list of parts, which are one
    user's turn. A part is text, the path of a clip (a `pathlib.Path`, or a string that ends in
    ".wav", ".flac", ".mp3" or ".ogg"), a clip in memory `(samples, rate)`, or a mapping such as
    `{"type": "text", "text": ".."}`, which takes any words as words.

    Args:
        model: the loaded model.
        cache_dtype: dtype of cached keys and values; None for that of the computation.
        can_score: whether the decoder's layers are stacked and in a float dtype.

    Attributes:
        model: the loaded model: its config, parameters and tokenizer.
    """

    def __init__(
        self,
        model: LoadedModel,
        *,
        cache_dtype: CacheDtype | None = None,
        can_score: bool = True,
    ):
        self.model = model
        self._cache_dtype = cache_dtype
        self._can_score = can_score
        self._engine: Engine | None = None
        self._scorer: Scorer | None = None

    def chat(self, messages: Part | Sequence[Part], **sampling: Any) -> Reply:
        """Answers a dialogue.

        Args:
            messages: messages that end in a user's turn, or the parts of one turn.
            sampling: fields of `Sampling`, such as temperature, max_new_tokens and seed. The same
                seed gives the same reply.

        Raises:
            DataError: the dialogue or a clip cannot be used; names the message and the part.
            GenerationError: a setting is unknown or out of range, or the model's positions do not
                hold dialogue and reply.
        """
        stream = self._generate(messages, sampling)
        while True:
            try:
                next(stream)
            except StopIteration as end:
                return self._parse(end.value)

    def stream(self, messages: Part | Sequence[Part], **sampling: Any) -> Iterator[str]:
        """Answers a dialogue piece by piece, as it is generated: reasoning, `</think>`, reply.

        Closing the iterator early cancels the rest. Arguments and errors are those of `chat`.
        """
        yield from self._generate(messages, sampling)

    def score(self, messages: Sequence[Mapping[str, Any]]) -> list[TurnScore]:
        """Computes the log-probability of every token of each assistant turn, given what precedes.

        Args:
            messages: a dialogue with at least one assistant turn after a user's.

        Returns:
            One score for each such turn, in order.

        Raises:
            DataError: the dialogue or a clip cannot be used.
            GenerationError: the model was loaded for generation only, or its positions do not hold
                the dialogue.
        """
        if not self._can_score:
            raise GenerationError(
                "the model was loaded with for_generation or int8_weights, and cannot score; load "
                "it without them"
            )
        record, clips = _parse_dialogue(messages)
        if self._scorer is None:
            self._scorer = Scorer(
                self.model.config,
                self.model.parameters,
                self.model.tokenizer,
                compute=self.model.compute,
                mesh=self.model.mesh,
                history_reasoning=self.model.history_reasoning,
                channel=self.model.channel,
            )
        return self._scorer.score(record.messages, read=clips.read)

    def _generate(
        self, messages: Part | Sequence[Part], settings: Mapping[str, Any]
    ) -> Generator[str, None, Completion]:
        """Yields text as it is generated; returns the completion."""
        sampling = _sampling(settings)
        record, clips = _parse_dialogue(messages)
        prompt = build_record_prompt(self.model, record, read=clips.read)
        check_prompt_fits(prompt, self.model.config, new_tokens=sampling.max_new_tokens)
        if self._engine is not None and self._engine.busy:
            raise GenerationError(
                "another reply is being streamed; read it to its end, or close its iterator"
            )
        if self._engine is None or not self._engine.fits_slot(prompt, [sampling]):
            self._engine = None  # its slots and its copy of the weights go before the new ones come
            self._engine = build_engine(
                self.model,
                [prompt],
                sampling.max_new_tokens,
                slots=1,
                cache_dtype=self._cache_dtype,
            )
        engine = self._engine
        (request,) = engine.submit(prompt, [sampling])
        completion = None
        try:
            for output in engine.run():
                completion = output.completion
                if output.text:
                    yield output.text
        finally:
            if completion is None:  # the caller has closed the iterator, or something went wrong
                engine.cancel(request)
                for _ in engine.run():
                    pass
        assert completion is not None
        return completion

    def _parse(self, completion: Completion) -> Reply:
        parsed = parse_reply(
            completion.tokens,
            self.model.tokenizer,
            ended=completion.finish_reason == "stop",
            stop_overlap_bytes=completion.stop_overlap_bytes,
        )
        return Reply(
            text=parsed.reply,
            reasoning=parsed.reasoning,
            finish_reason=completion.finish_reason,
            problems=tuple(parsed.problems),
            tokens=completion.tokens,
            logprobs=completion.logprobs,
        )


def _sampling(settings: Mapping[str, Any]) -> Sampling:
    """Returns the sampling that keyword arguments describe; lists count as tuples.

    Raises:
        GenerationError: a setting is unknown (names the nearest one) or out of range.
    """
    known = [field.name for field in dataclasses.fields(Sampling)]
    for name in settings:
        if name not in known:
            raise GenerationError(
                f"unknown setting {name!r}{did_you_mean(name, known)} (allowed: {', '.join(known)})"
            )
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()
    }
    return Sampling(**values)


class _Clips:
    """The clips of a dialogue that are arrays, each under a name that stands for a path."""

    def __init__(self) -> None:
        self._arrays: dict[str, SoundArray] = {}

    def add(self, array: SoundArray) -> str:
        name = f"<array {len(self._arrays) + 1}>"
        self._arrays[name] = array
        return name

    def read(
        self, part: AudioPart, /, *, length_convention: LengthConvention, channel: AudioChannel
    ) -> NDArray[np.float32]:
        """Reads a clip by its name or path: [samples] f32 at 16 kHz."""
        if part.path not in self._arrays:
            return load_clip(part, length_convention=length_convention, channel=channel)
        return waveform_from_array(
            *self._arrays[part.path],
            name=part.path,
            length_convention=length_convention,
            channel=channel,
        )


def _parse_dialogue(messages: Any) -> tuple[Record, _Clips]:
    """Reads a dialogue that a caller wrote: messages, or the parts of one user's turn.

    Raises:
        DataError: it is neither; names the message and the part.
    """
    clips = _Clips()
    if isinstance(messages, str | os.PathLike | Mapping) or _as_array(messages) is not None:
        messages = [messages]
    if not isinstance(messages, Sequence) or not messages:
        raise DataError(
            f"the dialogue must be a list of messages or of parts, got {_describe(messages)}"
        )
    are_messages = [isinstance(item, Mapping) and "role" in item for item in messages]
    if any(are_messages) and not all(are_messages):
        number = are_messages.index(False) + 1
        raise DataError(
            f"item {number} of the dialogue has no 'role' and others have one; give messages, or "
            "the parts of one turn"
        )
    if all(are_messages):
        described = [_describe_message(item, clips, n) for n, item in enumerate(messages, 1)]
    else:
        parts = [_describe_part(item, clips, f"part {n}") for n, item in enumerate(messages, 1)]
        described = [{"role": "user", "content": parts}]
    record = parse_record(
        {"messages": described}, origin="the dialogue", folder="", source="chat", default_id="chat"
    )
    return record, clips


def _describe_message(message: Mapping[str, Any], clips: _Clips, number: int) -> Mapping[str, Any]:
    """Returns a message in the form of docs/data.md, its arrays replaced by names."""
    content = message.get("content")
    if content is None or isinstance(content, str):
        return message
    if isinstance(content, os.PathLike | Mapping) or _as_array(content) is not None:
        content = [content]
    if not isinstance(content, Sequence):
        return message  # the parser of records says what is wrong with it
    where = f"message {number}: part"
    parts = [_describe_part(part, clips, f"{where} {n}") for n, part in enumerate(content, 1)]
    return {**message, "content": parts}


def _describe_part(part: Any, clips: _Clips, where: str) -> Mapping[str, Any]:
    """Returns a part in the form of docs/data.md, an array replaced by its name."""
    array = _as_array(part)
    if array is not None:
        return {"type": "audio", "audio": clips.add(array)}
    if isinstance(part, os.PathLike):
        return {"type": "audio", "audio": os.fsdecode(part)}
    if isinstance(part, str):
        return {"type": "audio", "audio": part} if _is_clip_path(part, where) else _text(part)
    if not isinstance(part, Mapping):
        raise DataError(
            f"{where} is {_describe(part)}; give text, the path of a clip, (samples, rate), or "
            "an object with a 'type'"
        )
    sound = part.get("audio")
    array = _as_array(sound)
    if array is not None:
        return {**part, "audio": clips.add(array)}
    return {**part, "audio": os.fsdecode(sound)} if isinstance(sound, os.PathLike) else part


def _is_clip_path(text: str, where: str) -> bool:
    """Tells whether a bare string is the path of a clip or text.

    Raises:
        DataError: it names a file whose ending does not say that it is sound.
    """
    exists = "\0" not in text and os.path.isfile(expand_home(text))
    if text.lower().endswith(_SOUND_SUFFIXES):
        return exists or not any(character.isspace() for character in text)
    if exists:
        raise DataError(
            f"{where}, {text!r}, names a file: give pathlib.Path({text!r}) for its sound, "
            f"or {_text(text)} for the words"
        )
    return False


def _text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


def _as_array(value: Any) -> SoundArray | None:
    """Returns (samples, rate) of a clip in memory, also in the form of Hugging Face datasets."""
    if isinstance(value, Mapping) and value.keys() >= {"array", "sampling_rate"}:
        return value["array"], value["sampling_rate"]
    if isinstance(value, tuple) and len(value) == 2 and hasattr(value[0], "__array__"):
        return value
    return None


def _describe(value: Any) -> str:
    return "an empty list" if isinstance(value, list | tuple) and not value else repr(value)[:80]
