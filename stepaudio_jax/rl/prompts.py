"""Which dialogues a step answers: an order that follows from the seed, so that its number is all that a run must remember."""

import dataclasses
import functools
import itertools
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from numpy.typing import NDArray

from stepaudio_jax.audio import clip_chunks, load_audio, probe_audio
from stepaudio_jax.config import (
    AudioChannel,
    ComputeConfig,
    DataConfig,
    LengthConvention,
    ModelConfig,
)
from stepaudio_jax.data import (
    JsonlSource,
    Record,
    Visit,
    open_sources,
    record_error_context,
    skip_reason,
    training_streams,
)
from stepaudio_jax.errors import DataError, GenerationError
from stepaudio_jax.generation import Prompt, build_prompt, check_prompt_fits
from stepaudio_jax.models import Parameters, abstract_model
from stepaudio_jax.parallel import replicated
from stepaudio_jax.storage import truncate_words
from stepaudio_jax.text import AudioPart, Segment, Tokenizer, render_prompt, tokenize_dialogue

# Each clip of a step is encoded once: rollouts and all later passes take the frozen encoder's features from here.

CHUNKS_PER_GROUP = 8  # chunks encoded together


class AudioFeatureCache:
    """Encoder and adaptor of one model, each a program of its own.

    Attributes:
        encoded: chunks that the encoder has heard so far.
    """

    def __init__(self, model: ModelConfig, compute: ComputeConfig, data: DataConfig, mesh: Mesh):
        self._frames = data.mel_frames_per_chunk
        self.num_encoded = 0
        alone = dataclasses.replace(
            compute, remat="none", rules=dataclasses.replace(compute.rules, batch=())
        )  # too few to cut
        graphdef, _ = abstract_model(model, alone)
        whole = replicated(mesh)

        def encode(parameters: Parameters, mel: jax.Array, mel_lengths: jax.Array) -> jax.Array:
            return nnx.merge(graphdef, parameters).encoder(mel, mel_lengths)

        def adapt(parameters: Parameters, features: jax.Array) -> jax.Array:
            return nnx.merge(graphdef, parameters).adaptor(features)

        self._encode, self._adapt = (
            jax.jit(encode, out_shardings=whole),
            jax.jit(adapt, out_shardings=whole),
        )

    def encode(
        self, parameters: Parameters, prompts: Sequence[Prompt]
    ) -> list[NDArray[np.float32]]:
        """Of each prompt [C,E,H_encoder] f32, on the host: the features of its chunks, zero beyond each."""
        chunks = [chunk for prompt in prompts for chunk in prompt.chunks]
        self.num_encoded += len(chunks)
        encoded = self._map_in_groups(functools.partial(self._encode_group, parameters), chunks)
        ends = np.cumsum([0, *(len(prompt.chunks) for prompt in prompts)])
        nothing = np.zeros((0, 0, 0), np.float32)
        return [
            encoded[start:end] if end > start else nothing
            for start, end in itertools.pairwise(ends)
        ]

    def embed(
        self,
        parameters: Parameters,
        prompts: Sequence[Prompt],
        features: Sequence[NDArray[np.float32]],
    ) -> list[Prompt]:
        """The prompts with the adaptor's outputs of their chunks, end to end, by these parameters."""
        every = [chunk for of_prompt in features for chunk in of_prompt]
        outputs = iter(
            self._map_in_groups(
                lambda group: np.asarray(self._adapt(parameters, np.stack(group)), np.float32),
                every,
            )
        )
        prompts_heard = []
        for prompt in prompts:
            own = [next(outputs)[:count] for count in prompt.chunk_tokens]
            prompts_heard.append(
                dataclasses.replace(prompt, audio_embeddings=np.concatenate(own)) if own else prompt
            )
        return prompts_heard

    def _encode_group(
        self, parameters: Parameters, group: Sequence[NDArray[np.float32]]
    ) -> NDArray[np.float32]:
        mel = np.zeros((len(group), group[0].shape[0], self._frames), np.float32)
        for row, chunk in enumerate(group):
            mel[row, :, : chunk.shape[1]] = chunk
        lengths = np.array([chunk.shape[1] for chunk in group], np.int32)
        return np.asarray(self._encode(parameters, mel, lengths), np.float32)

    def _map_in_groups(self, apply, items: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:  # type: ignore[no-untyped-def]
        """`apply` to a fixed number of items at a time, the last group filled up with its first item."""
        results = []
        for start in range(0, len(items), CHUNKS_PER_GROUP):
            group = list(items[start : start + CHUNKS_PER_GROUP])
            count = len(group)
            results.append(apply([*group, *[group[0]] * (CHUNKS_PER_GROUP - count)])[:count])
        return np.concatenate(results) if results else np.zeros((0, 0, 0), np.float32)


logger = logging.getLogger(__name__)

MAX_CONSECUTIVE_SKIPS = 100  # records of a source, one after the other


@dataclasses.dataclass(frozen=True)
class PromptExample:
    """A record with its dialogue rendered and its clips read; `skipped`: how many before it could not be used."""

    record: Record
    prompt: Prompt
    skipped: int


class PromptStream:
    """The endless stream of a stage's prompts.

    Args:
        data: sources and their weights; `augmentation.silence_probability` silences that share of
        the prompts.
        tokenizer: of the model.
        model: that answers.
        seed: of the order.
        new_tokens: that a reply may have.
        validate: raises a DataError where a record lacks what its rewards need.
    """

    def __init__(
        self,
        data: DataConfig,
        tokenizer: Tokenizer,
        model: ModelConfig,
        *,
        seed: int,
        new_tokens: int,
        validate: Callable[[Record], None],
    ):
        self._validate = validate
        self._data, self._tokenizer, self._model, self._seed, self._new_tokens = (
            data,
            tokenizer,
            model,
            seed,
            new_tokens,
        )
        self._sources = open_sources(data.sources)
        lengths, weights = (
            [len(source) for source in self._sources],
            [source.weight for source in data.sources],
        )
        (self._visits,) = training_streams(lengths, weights, seed=seed, rows=1)

    @property
    def sources(self) -> Sequence[JsonlSource]:
        """What is read."""
        return self._sources

    def examples_at(self, step: int, count: int) -> list[PromptExample]:
        """What a step asks, counted from 0, with `count` prompts a step.

        In place of a record that cannot be used, where `data` says to skip such ones, stands the
        next one of its source that can be.

        Raises:
            DataError: a record cannot be read or does not fit a row with its reply; naming its file
                and line.
        """
        rng = np.random.default_rng((self._seed, step))
        silent = rng.random(count) < self._data.augmentation.silence_probability
        visits = [self._visits[step * count + index] for index in range(count)]
        with ThreadPoolExecutor(self._data.threads) as pool:
            return list(pool.map(self._load_example, visits, silent))

    def check(self, record: Record, *, decode: bool) -> None:
        """Reads a record as a step would; without `decode`, its clips' headers only.

        Raises:
            DataError: the record cannot be used, as far as can be told.
        """
        if decode:
            self._prompt(record, silent=False)
            return
        self._validate(record)
        with record_error_context(record):
            self._check_fits(self._prompt_from_headers(record))

    def _load_example(self, visit: Visit, silent: bool) -> PromptExample:
        source = self._sources[visit.source]
        most = min(len(source), MAX_CONSECUTIVE_SKIPS)
        for skipped in range(most):
            try:
                record = source[(visit.record + skipped) % len(source)]
                return PromptExample(record, self._prompt(record, silent), skipped)
            except DataError as error:
                if skip_reason(error, self._data) is None:
                    raise
                logger.warning("skipped: %s", truncate_words(str(error)))
        raise DataError(
            f"{source.name}: {most} records one after the other cannot be used; see the warnings"
        )

    def _prompt(self, record: Record, silent: bool) -> Prompt:
        self._validate(record)
        with record_error_context(record):
            read = _silence if silent else load_audio
            prompt = build_prompt(
                self._segments(record),
                self._tokenizer,
                self._model.length_convention,
                channel=self._data.channel,
                read=read,
            )
            self._check_fits(prompt)
        return prompt

    def _prompt_from_headers(self, record: Record) -> Prompt:
        """Returns a prompt whose chunks have their frames and no mel bins, from the lengths that the clips' headers say."""
        convention = self._model.length_convention
        chunks: list[NDArray[np.float32]] = []
        chunk_tokens: list[int] = []

        def count_tokens(part: AudioPart) -> list[int]:
            samples = probe_audio(part.path, length_convention=convention)
            sizes = clip_chunks(samples, convention) if samples is not None else []
            chunks.extend(
                np.empty((0, size.mel_frames), np.float32) for size in sizes if size.tokens
            )
            chunk_tokens.extend(size.tokens for size in sizes if size.tokens)
            return [size.tokens for size in sizes]

        dialogue = tokenize_dialogue(self._segments(record), count_tokens, self._tokenizer)
        is_audio = dialogue.tokens == self._tokenizer.special.audio_patch
        return Prompt(
            dialogue.tokens, is_audio, dialogue.loss_mask, tuple(chunks), tuple(chunk_tokens)
        )

    def _segments(self, record: Record) -> list[Segment]:
        return render_prompt(
            record.messages, self._tokenizer, history_reasoning=self._data.history_reasoning
        )

    def _check_fits(self, prompt: Prompt) -> None:
        """Checks that a row holds a prompt with its reply.

        Raises:
            DataError: it does not; names the setting.
        """
        try:
            check_prompt_fits(
                prompt, self._model, new_tokens=self._new_tokens, slot_tokens=self._data.seq_len
            )
        except GenerationError as error:
            raise DataError(str(error), kind="too_long") from None
        for name, needed in (
            ("audio_chunks_per_seq", len(prompt.chunks)),
            ("mel_frames_per_chunk", prompt.longest_chunk),
        ):
            if needed > getattr(self._data, name):
                raise DataError(
                    f"the dialogue needs {name}={needed}, and it is {getattr(self._data, name)}",
                    kind="too_long",
                )


def _silence(
    source: str, /, *, length_convention: LengthConvention, channel: AudioChannel
) -> NDArray[np.float32]:
    return np.zeros_like(load_audio(source, length_convention=length_convention, channel=channel))
