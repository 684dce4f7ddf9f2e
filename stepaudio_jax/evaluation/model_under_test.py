"""The models that are evaluated: one of ours in this process, or any endpoint that hears."""

import base64
import collections
import dataclasses
import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, Protocol, TypeVar

import numpy as np
import soundfile
from numpy.typing import NDArray

from stepaudio_jax.audio.lengths import SAMPLE_RATE
from stepaudio_jax.config import AudioChannel, DataConfig, FloatDtype
from stepaudio_jax.data import Record
from stepaudio_jax.data.clips import load_clip, load_silence
from stepaudio_jax.errors import (
    AudioError,
    DataError,
    EndpointError,
    GenerationError,
)
from stepaudio_jax.evaluation.results import ModelIdentity
from stepaudio_jax.generation import (
    LoadedModel,
    Sampling,
    build_record_prompt,
    check_record_fits,
    folder_decode_mesh,
    load_model,
)
from stepaudio_jax.generation.loaded_model import default_dtype
from stepaudio_jax.generation.prepared_requests import (
    PreparedRequest,
    answer_requests,
    describe_reply,
    sample_seed,
)
from stepaudio_jax.judge.endpoint import ChatCompletion, ChatEndpoint
from stepaudio_jax.models import CacheDtype
from stepaudio_jax.storage import DiskCache, PathLike, expand_home, fingerprint_folder
from stepaudio_jax.text import AudioPart, Message, TextPart
from stepaudio_jax.text.dialogue import THINK_END_TAG, THINK_START_TAG
from stepaudio_jax.text.prompt_format import Problem

_T = TypeVar("_T")
_R = TypeVar("_R")

_ENDPOINT_ROLES = {"input": "tool", "tool_json_schemas": "system"}
_MAX_FAILURES_IN_A_ROW = 20


@dataclasses.dataclass(frozen=True)
class ModelReply:
    """Holds one reply of a model.

    Attributes:
        reasoning: what it wrote before the reply.
        reply: what is scored; "" where the reasoning never ended.
        finish_reason: "stop", "length", "repetition", or what a server calls it.
        problems: each way in which the output departs from the model's format.
        completion_tokens: of both; None where a server does not say.
    """

    reasoning: str
    reply: str
    finish_reason: str
    problems: tuple[Problem, ...] = ()
    completion_tokens: int | None = None

    @property
    def well_formed(self) -> bool:
        """Returns whether reasoning and reply are in the model's format."""
        return not self.problems


@dataclasses.dataclass(frozen=True)
class Failure:
    """Says why an item has no reply."""

    reason: str


Replies = tuple[ModelReply, ...] | Failure


class ModelUnderTest(Protocol):
    """A model that answers the items of a task.

    Attributes:
        identity: which model it is, and all that its replies depend on.
    """

    identity: ModelIdentity

    def answer(
        self,
        records: Sequence[Record],
        indices: Sequence[int],
        sampling: Sampling,
        *,
        num_samples: int,
        silenced: bool,
    ) -> Iterator[tuple[int, Replies]]:
        """Answers records; yields (index, its replies or why there are none) as each is ready.

        Args:
            records: dialogues that end in a user's turn.
            indices: of the records to answer.
            sampling: sample j of record i draws from the seed (seed, i, j).
            num_samples: replies to each.
            silenced: whether clips are replaced by zeros of their length.
        """
        ...


class LoadedModelUnderTest:
    """A model in this process, on all its devices.

    Args:
        model: the loaded model.
        slots: replies written side by side.
        cache_dtype: dtype of the KV cache; None for that of the computation.
        identity: which model it is, and all that its replies depend on.
    """

    def __init__(
        self,
        model: LoadedModel,
        *,
        slots: int,
        cache_dtype: CacheDtype | None = None,
        identity: ModelIdentity,
    ):
        self._model, self._slots, self._cache_dtype = model, slots, cache_dtype
        self.identity = identity

    def answer(
        self,
        records: Sequence[Record],
        indices: Sequence[int],
        sampling: Sampling,
        *,
        num_samples: int,
        silenced: bool,
    ) -> Iterator[tuple[int, Replies]]:
        """Answers records; see `ModelUnderTest.answer`.

        A prompt's sound is encoded once. A reply has at most the tokens that the model's positions
        leave beside its prompt: protocols allow more than short models hold.
        """
        model = self._model

        def read(part: AudioPart, /, **settings: Any) -> NDArray[np.float32]:
            return load_silence(part, allow_urls=model.allow_urls, **settings)

        def prepare(index: int) -> PreparedRequest:
            record = records[index]
            try:
                prompt = build_record_prompt(model, record, read=read if silenced else None)
                room = max(model.config.decoder.max_positions - prompt.length, 1)
                fitting = dataclasses.replace(
                    sampling, max_new_tokens=min(sampling.max_new_tokens, room)
                )
                check_record_fits(model, record, prompt, fitting)
            except (DataError, GenerationError) as error:
                return PreparedRequest(failure=str(error))
            seeds = (sample_seed(sampling.seed, index, sample) for sample in range(num_samples))
            samplings = tuple(dataclasses.replace(fitting, seed=seed) for seed in seeds)
            return PreparedRequest(record, prompt, samplings)

        for answered in answer_requests(
            model,
            prepare,
            indices,
            slots=self._slots,
            cache_dtype=self._cache_dtype,
        ):
            if answered.request.prompt is None:
                yield answered.index, Failure(answered.request.failure)
                continue
            lines = [describe_reply(model, completion) for completion in answered.completions]
            yield answered.index, tuple(_reply_of_line(line) for line in lines)


class FolderModel:
    """A model folder of this project or of Hugging Face, loaded when it is first asked.

    Args:
        folder: either kind.
        dtype, int8_weights, history_reasoning, history_eot, channel, allow_urls, clip_cache: see
            `load_model`.
        tensor: devices over which a layer is sharded; see `folder_decode_mesh`.
        slots: replies written side by side.
        cache_dtype: dtype of the KV cache; None for that of the computation.
    """

    def __init__(
        self,
        folder: PathLike,
        *,
        dtype: FloatDtype | None = None,
        int8_weights: bool = False,
        tensor: int = 0,
        slots: int = 16,
        cache_dtype: CacheDtype | None = None,
        history_reasoning: bool = False,
        history_eot: bool = True,
        channel: AudioChannel = DataConfig.channel,
        allow_urls: bool = DataConfig.allow_urls,
        clip_cache: DiskCache | None = None,
    ):
        self._clip_cache = clip_cache
        self._folder = expand_home(os.fspath(folder))
        self._tensor, self._slots, self._cache_dtype = tensor, slots, cache_dtype
        self._load_settings: dict[str, Any] = {
            "dtype": default_dtype(dtype),
            "int8_weights": int8_weights,
            "history_reasoning": history_reasoning,
            "history_eot": history_eot,
            "channel": channel,
            "allow_urls": allow_urls,
        }
        self.identity = ModelIdentity(
            name=self._folder,
            kind="folder",
            identity=fingerprint_folder(self._folder),
            settings={**self._load_settings, "cache_dtype": cache_dtype},
        )
        self._loaded: LoadedModelUnderTest | None = None

    def answer(
        self,
        records: Sequence[Record],
        indices: Sequence[int],
        sampling: Sampling,
        *,
        num_samples: int,
        silenced: bool,
    ) -> Iterator[tuple[int, Replies]]:
        """Answers records; see `ModelUnderTest.answer`."""
        if not indices:
            return
        if self._loaded is None:
            mesh = folder_decode_mesh(self._folder, self._tensor)
            model = load_model(
                self._folder,
                mesh=mesh,
                for_generation=True,
                clip_cache=self._clip_cache,
                **self._load_settings,
            )
            self._loaded = LoadedModelUnderTest(
                model, slots=self._slots, cache_dtype=self._cache_dtype, identity=self.identity
            )
        yield from self._loaded.answer(
            records, indices, sampling, num_samples=num_samples, silenced=silenced
        )

    def close(self) -> None:
        """Frees the weights, so that a judge has room; the next question loads them again."""
        self._loaded = None


class EndpointModel:
    """A model behind a server that speaks OpenAI's chat protocol with `input_audio`.

    Each clip is sent as the samples that a model of ours would hear: WAV, 16 kHz, mono, 16 bits.

    Args:
        endpoint: the server, and the model's name there.
        concurrency: requests at a time.
        channel: which channel of a multichannel clip is sent.
        allow_urls: whether clips may be URLs.
        token_limit_key: how the server calls the limit of new tokens; "max_completion_tokens" for
            OpenAI's reasoning models.
        omit: settings that are not sent, since the server refuses them, such as "temperature".
    """

    def __init__(
        self,
        endpoint: ChatEndpoint,
        *,
        concurrency: int = 8,
        channel: AudioChannel = DataConfig.channel,
        allow_urls: bool = DataConfig.allow_urls,
        token_limit_key: str = "max_tokens",
        omit: Sequence[str] = (),
    ):
        self._endpoint, self._concurrency = endpoint, concurrency
        self._channel, self._allow_urls = channel, allow_urls
        self._token_limit_key, self._omit = token_limit_key, tuple(omit)
        self.identity = ModelIdentity(
            name=endpoint.model,
            kind="endpoint",
            identity=endpoint.shown_url,
            settings={"channel": channel, "token_limit_key": token_limit_key, "omit": list(omit)},
        )

    def answer(
        self,
        records: Sequence[Record],
        indices: Sequence[int],
        sampling: Sampling,
        *,
        num_samples: int,
        silenced: bool,
    ) -> Iterator[tuple[int, Replies]]:
        """Answers records; see `ModelUnderTest.answer`.

        Raises:
            EndpointError: the server has no answer to many items in a row.
        """

        def ask(index: int) -> tuple[int, Replies, bool]:
            try:
                messages = [self._message(turn, silenced) for turn in records[index].messages]
                completions = [
                    self._endpoint.complete(
                        messages,
                        self._settings(sampling, sample_seed(sampling.seed, index, sample)),
                    )
                    for sample in range(num_samples)
                ]
            except AudioError as error:
                return index, Failure(f"{records[index].origin}: {error}"), False
            except EndpointError as error:
                return index, Failure(f"{records[index].origin}: {error}"), True
            return index, tuple(map(_reply_of_completion, completions)), False

        failures = 0
        with ThreadPoolExecutor(self._concurrency) as pool:
            for index, replies, is_server_failure in _map_unordered(
                pool, ask, indices, depth=2 * self._concurrency
            ):
                failures = failures + 1 if is_server_failure else 0
                if isinstance(replies, Failure) and failures >= _MAX_FAILURES_IN_A_ROW:
                    raise EndpointError(
                        f"{failures} items in a row had no answer; the last one: {replies.reason}"
                    )
                yield index, replies

    def _message(self, message: Message, silenced: bool) -> dict[str, Any]:
        role = _ENDPOINT_ROLES.get(message.role, message.role)
        if not message.audio:
            return {"role": role, "content": message.text}
        return {"role": role, "content": [self._part(part, silenced) for part in message.parts]}

    def _part(self, part: TextPart | AudioPart, silenced: bool) -> dict[str, Any]:
        if isinstance(part, TextPart):
            return {"type": "text", "text": part.text}
        read = load_silence if silenced else load_clip
        samples = read(part, channel=self._channel, allow_urls=self._allow_urls)
        wav = io.BytesIO()
        soundfile.write(wav, samples, SAMPLE_RATE, format="WAV", subtype="PCM_16")
        data = base64.b64encode(wav.getvalue()).decode()
        return {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}

    def _settings(self, sampling: Sampling, seed: int) -> dict[str, Any]:
        """Returns a request's settings; those that leave sampling alone are not sent."""
        settings: dict[str, Any] = {
            "temperature": sampling.temperature,
            self._token_limit_key: sampling.max_new_tokens,
            "seed": seed,
        }
        neutral = Sampling(temperature=0.0)
        for name in (
            "top_p",
            "top_k",
            "min_p",
            "repetition_penalty",
            "presence_penalty",
            "frequency_penalty",
        ):
            if getattr(sampling, name) != getattr(neutral, name):
                settings[name] = getattr(sampling, name)
        if sampling.stop_strings:
            settings["stop"] = list(sampling.stop_strings)
        return {name: value for name, value in settings.items() if name not in self._omit}


def hide_sound(record: Record) -> Record:
    """Returns a record whose clips are replaced by their transcripts, each on lines of its own.

    Raises:
        DataError: a clip has no transcript; names the record's file and place.
    """

    def text(part: TextPart | AudioPart) -> str:
        if isinstance(part, TextPart):
            return part.text
        if part.transcript is None or not part.transcript.strip():
            raise DataError(f"{record.origin}: the clip {part.name} has no transcript")
        return part.transcript

    def hide(message: Message) -> Message:
        if not message.audio:
            return message
        lines = "\n".join(text(part).strip("\n") for part in message.parts)
        return dataclasses.replace(message, parts=(TextPart(lines),))

    return dataclasses.replace(record, messages=tuple(map(hide, record.messages)))


def split_reasoning(text: str) -> tuple[str, str, bool]:
    """Splits a server's text into reasoning and reply.

    Returns:
        (reasoning, reply, whether they are in the format). Without tags all is reply. Reasoning
        that never ends has no reply.
    """
    before, end, after = text.rpartition(THINK_END_TAG)
    if end and THINK_START_TAG not in after:
        return before.strip().removeprefix(THINK_START_TAG).strip(), after.strip(), True
    if THINK_START_TAG in text:
        return text.partition(THINK_START_TAG)[2].strip(), "", False
    return "", text.strip(), True


def _reply_of_line(line: Mapping[str, Any]) -> ModelReply:
    return ModelReply(
        reasoning=line["reasoning"],
        reply=line["reply"],
        finish_reason=line["finish_reason"],
        problems=tuple(line["problems"]),
        completion_tokens=line["completion_tokens"],
    )


def _reply_of_completion(completion: ChatCompletion) -> ModelReply:
    reasoning, reply, well_formed = split_reasoning(completion.text)
    return ModelReply(
        reasoning="\n".join(filter(None, (completion.reasoning, reasoning))),
        reply=reply,
        finish_reason=completion.finish_reason or "unknown",
        problems=() if well_formed else ("no_think_end",),
        completion_tokens=completion.usage.get("completion_tokens"),
    )


def _map_unordered(
    pool: ThreadPoolExecutor, function: Callable[[_T], _R], values: Sequence[_T], *, depth: int
) -> Iterator[_R]:
    """Yields the results of a function as each is ready; at most `depth` calls are pending."""
    remaining = collections.deque(values)
    pending: set[Future[_R]] = set()
    try:
        while remaining or pending:
            while remaining and len(pending) < depth:
                pending.add(pool.submit(function, remaining.popleft()))
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
    finally:
        for future in pending:
            future.cancel()
