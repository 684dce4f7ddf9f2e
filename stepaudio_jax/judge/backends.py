"""Backends that answer a judge's questions: a server, or one of our own models in this process."""

import base64
import collections
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from stepaudio_jax import hub
from stepaudio_jax.audio.lengths import SAMPLE_RATE, clip_chunks
from stepaudio_jax.config import FloatDtype, JudgeConfig, LengthConvention, SimulatedUserConfig
from stepaudio_jax.data.clip_files import encode_wav
from stepaudio_jax.errors import EndpointError, GenerationError, JudgeError, TextError
from stepaudio_jax.generation import (
    Engine,
    LoadedModel,
    Prompt,
    Sampling,
    build_engine,
    load_model,
)
from stepaudio_jax.generation.prompts import ClipFeatures, build_prompt_of_features
from stepaudio_jax.generation.shardings import decode_mesh
from stepaudio_jax.judge.clip_embeddings import AudioFeatures, ClipEmbeddings
from stepaudio_jax.judge.endpoint import ChatEndpoint
from stepaudio_jax.judge.query import JudgeAnswer, Query
from stepaudio_jax.storage import fingerprint_folder
from stepaudio_jax.text import (
    AudioPart,
    Message,
    TextPart,
    Tokenizer,
    parse_reply,
    render_prompt,
)


class JudgeBackend(Protocol):
    """A judge that answers one question at a time, such as a server.

    Attributes:
        name: everything that the answers depend on, model and settings: the key of the cache.
    """

    @property
    def name(self) -> str: ...

    def generate(self, query: Query) -> JudgeAnswer:
        """Returns the answer to a question; called from many threads.

        Raises:
            JudgeError: there is no answer.
        """
        ...


@runtime_checkable
class BatchJudgeBackend(Protocol):
    """A judge that answers all questions of a batch together, such as a model in this process.

    Every process calls it with the same questions.

    Attributes:
        name: everything that the answers depend on, model and settings: the key of the cache.
    """

    @property
    def name(self) -> str: ...

    def generate_batch(
        self, queries: Sequence[Query]
    ) -> Iterator[tuple[int, JudgeAnswer | JudgeError]]:
        """Yields (index of the question, answer or error) as each is ready."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class EndpointBackend:
    """A judge behind a server that speaks OpenAI's chat protocol: vLLM, SGLang, or a provider's.

    Attributes:
        url: address of the API, up to and including /v1.
        model: its name at the server.
        api_key_env: the environment variable that holds the key; None where none is needed.
        temperature, max_tokens: of the answers. Models that allow no other temperature than their
            default (OpenAI's reasoning models) need None.
        uses_seeds: whether `Query.sample` is sent as the seed of an answer.
        timeout_s, retries, initial_backoff_s: see `ChatEndpoint`.
    """

    url: str
    model: str
    api_key_env: str | None = JudgeConfig.api_key_env
    temperature: float | None = 0.0
    max_tokens: int = JudgeConfig.max_tokens
    timeout_s: float = JudgeConfig.timeout_s
    retries: int = JudgeConfig.retries
    initial_backoff_s: float = 1.0
    uses_seeds: bool = False

    @property
    def name(self) -> str:
        """Returns the judge's name. Caches are keyed by it: do not reword it."""
        url = self._endpoint.shown_url
        return f"{self.model} at {url}, temperature {self.temperature}, {self.max_tokens} tokens"

    def generate(self, query: Query) -> JudgeAnswer:
        """Returns the answer to a question; may be called from many threads.

        Raises:
            JudgeError: the server refuses, or has no answer after all retries.
            ConfigError: there is no key.
        """
        messages: list[dict[str, Any]] = []
        if query.system:
            messages.append({"role": "system", "content": query.system})
        messages += [{"role": role, "content": text} for role, text in query.history]
        messages.append({"role": "user", "content": _endpoint_content(query)})
        settings = {
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
            "seed": query.sample if self.uses_seeds else None,
        }
        try:
            completion = self._endpoint.complete(
                messages, {name: value for name, value in settings.items() if value is not None}
            )
        except EndpointError as error:
            raise JudgeError(str(error)) from None
        return JudgeAnswer(completion.text, truncated=completion.finish_reason == "length")

    @property
    def _endpoint(self) -> ChatEndpoint:
        return ChatEndpoint(
            url=self.url,
            model=self.model,
            api_key_env=self.api_key_env,
            timeout_s=self.timeout_s,
            retries=self.retries,
            initial_backoff_s=self.initial_backoff_s,
        )


class ModelBackend:
    """A judge in this process: one of our own models. Its verdict is read from the reply alone.

    Args:
        model: the judge.
        slots: questions answered side by side.
        max_tokens: most tokens of an answer.
        temperature: of an answer, drawn by `Query.sample` where it is above 0.
    """

    def __init__(
        self, model: LoadedModel, *, slots: int, max_tokens: int, temperature: float = 0.0
    ):
        self._model, self._slots = model, slots
        self._sampling = Sampling(temperature=temperature, max_new_tokens=max_tokens)
        self._embed = ClipEmbeddings(model)
        self._engine: Engine | None = None
        self._engine_prompt_len = 0  # tokens of the longest question that the engine was built for
        # A judge that is trained again into the same folder is another judge. Caches are keyed by
        # the name: do not reword it.
        fingerprint = fingerprint_folder(model.folder)[:12]
        self.name = f"{model.folder} ({fingerprint}), {model.compute.dtype}, {max_tokens} tokens"
        if temperature:
            self.name += f", temperature {temperature}"

    @property
    def length_convention(self) -> LengthConvention:
        """Returns how the model counts the audio tokens of a clip."""
        return self._model.config.length_convention

    @property
    def model(self) -> LoadedModel:
        """Returns the judge."""
        return self._model

    def set_audio_features(self, features: AudioFeatures) -> None:
        """Lets the judge hear through the features of a model whose encoder is the same.

        They replace those of an earlier call. Clips without features are encoded.
        """
        self._embed.set_features(features)

    def generate_batch(
        self, queries: Sequence[Query]
    ) -> Iterator[tuple[int, JudgeAnswer | JudgeError]]:
        """Yields (index, answer) as each is ready.

        A question gets an error where no tokens spell it, or where it is too long for a slot.
        """
        prompts: dict[int, Prompt] = {}
        for index, query in enumerate(queries):
            try:
                prompts[index] = _build_prompt(
                    query, self._model.tokenizer, self._model.config.length_convention
                )
            except TextError as error:
                yield index, JudgeError(str(error))
        if not prompts:
            return
        engine = self._engine_for(list(prompts.values()))
        try:
            yield from self._answer(engine, queries, prompts)
        finally:
            if engine.busy:  # an error, or nobody wants the rest: the next call begins anew
                self._engine = None

    def _answer(
        self, engine: Engine, queries: Sequence[Query], prompts: dict[int, Prompt]
    ) -> Iterator[tuple[int, JudgeAnswer | JudgeError]]:
        """Yields (index, answer) of the prompts, which are removed as they are begun."""
        waiting = collections.deque(prompts)
        index_of_request: dict[int, int] = {}
        while waiting or engine.busy:
            # Prompts get their sound shortly before they are answered: it is large.
            while waiting and engine.num_waiting < self._slots:
                index = waiting.popleft()
                prompt, clips = prompts.pop(index), [clip for _, clip in queries[index].clips]
                try:
                    if clips:
                        engine.check_fits(prompt, self._sampling)
                        embeddings = self._embed(engine, clips)
                        prompt = dataclasses.replace(prompt, audio_embeddings=embeddings)
                    sampling = dataclasses.replace(self._sampling, seed=queries[index].sample)
                    (request,) = engine.submit(prompt, [sampling])
                except GenerationError as error:
                    yield index, JudgeError(str(error))
                else:
                    index_of_request[request] = index
            for output in engine.step():
                if output.completion is None:
                    continue
                truncated = output.completion.finish_reason == "length"
                parsed = parse_reply(
                    output.completion.tokens, self._model.tokenizer, ended=not truncated
                )
                index = index_of_request.pop(output.request)
                yield index, JudgeAnswer(parsed.reply, truncated)

    def _engine_for(self, prompts: Sequence[Prompt]) -> Engine:
        """Returns the engine, built again only where a question is longer than all before.

        Its slots are as short as the questions allow, since short slots are faster to attend to.
        """
        longest = max(prompts, key=lambda prompt: prompt.length)
        # A question that no engine can hold, seen before, is no reason to build another one.
        is_longer = longest.length > self._engine_prompt_len
        if self._engine is None or (
            is_longer and not self._engine.fits_slot(longest, [self._sampling])
        ):
            self._engine = None  # frees its slots and its copy of the weights first
            self._engine = build_engine(
                self._model, prompts, self._sampling.max_new_tokens, slots=self._slots
            )
            self._engine_prompt_len = longest.length
        return self._engine


def make_backend(
    config: JudgeConfig | SimulatedUserConfig,
    *,
    dtype: FloatDtype,
    slices: int = 1,
    temperature: float | None = 0.0,
    uses_seeds: bool = False,
) -> EndpointBackend | ModelBackend | None:
    """Builds what answers by an endpoint, or by a model in this process; None for neither.

    Args:
        config: names an endpoint or the folder of a model.
        dtype: of a model in this process, which is loaded onto all devices.
        slices: TPU slices that the devices form.
        temperature: of the answers; None leaves it to an endpoint.
        uses_seeds: whether an endpoint gets `Query.sample` as the seed of an answer.
    """
    if config.folder:
        mesh = decode_mesh(hub.read_model_config(config.folder), slices=slices)
        model = load_model(config.folder, dtype, mesh=mesh, for_generation=True)
        return ModelBackend(
            model,
            slots=config.slots,
            max_tokens=config.max_tokens,
            temperature=temperature or 0.0,
        )
    if config.url and config.model:
        return EndpointBackend(
            url=config.url,
            model=config.model,
            api_key_env=config.api_key_env,
            temperature=temperature,
            max_tokens=config.max_tokens,
            timeout_s=config.timeout_s,
            retries=config.retries,
            uses_seeds=uses_seeds,
        )
    return None


def _endpoint_content(query: Query) -> str | list[dict[str, Any]]:
    """Returns the content of a message: text, or parts of which clips are WAV without loss."""
    if not query.clips:
        return query.text
    parts: list[dict[str, Any]] = []
    for part in query.parts:
        if isinstance(part, str):
            parts.append({"type": "text", "text": part})
        else:
            data = base64.b64encode(encode_wav(part.read(), SAMPLE_RATE)).decode()
            parts.append({"type": "input_audio", "input_audio": {"data": data, "format": "wav"}})
    return parts


def _build_prompt(query: Query, tokenizer: Tokenizer, convention: LengthConvention) -> Prompt:
    """Returns the prompt of a question; its chunks have their frames only, and no mel bins."""
    clips = {clip.digest: clip for _, clip in query.clips}

    def count_tokens(part: AudioPart) -> ClipFeatures:
        sizes = clip_chunks(clips[part.path].num_samples, convention)
        return ClipFeatures(
            tuple(size.tokens for size in sizes),
            tuple(np.empty((0, size.mel_frames), np.float32) for size in sizes if size.tokens),
        )

    messages = [Message(role="system", parts=(TextPart(query.system),))] if query.system else []
    messages += [Message(role=role, parts=(TextPart(text),)) for role, text in query.history]
    parts = tuple(
        TextPart(part) if isinstance(part, str) else AudioPart(part.digest) for part in query.parts
    )
    messages.append(Message(role="user", parts=parts))
    return build_prompt_of_features(render_prompt(messages, tokenizer), tokenizer, count_tokens)
