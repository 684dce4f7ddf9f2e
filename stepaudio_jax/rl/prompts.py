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
from stepaudio_jax.generation.audio_encoder import AudioEncoder, fixed_groups
from stepaudio_jax.models import Parameters, abstract_model
from stepaudio_jax.parallel import replicated
from stepaudio_jax.storage import truncate_words
from stepaudio_jax.text import AudioPart, Segment, Tokenizer, render_prompt, tokenize_dialogue

# Each clip of a step is encoded once: rollouts and all later passes take the frozen encoder's features from here.

CHUNKS_PER_GROUP = 8  # chunks encoded together


class AudioFeatureCache:
    """Runs encoder and adaptor apart: features are computed once a step, embeddings after updates.

    Args:
        model: the model's shape.
        compute: dtypes and kernels; rows are replicated, since a group is too small to shard.
        data: `mel_frames_per_chunk` is the frames that every chunk is padded to.
        mesh: the devices of the run.
    """

    def __init__(self, model: ModelConfig, compute: ComputeConfig, data: DataConfig, mesh: Mesh):
        replicated_rows = dataclasses.replace(
            compute, remat="none", rules=dataclasses.replace(compute.rules, batch=())
        )
        graphdef, _ = abstract_model(model, replicated_rows)

        def encode(parameters: Parameters, mel: jax.Array, mel_lengths: jax.Array) -> jax.Array:
            return nnx.merge(graphdef, parameters).encoder(mel, mel_lengths)

        def adapt(parameters: Parameters, features: jax.Array, _: jax.Array) -> jax.Array:
            return nnx.merge(graphdef, parameters).adaptor(features)

        self._encoder, self._adaptor = (
            AudioEncoder(
                jax.jit(program, out_shardings=replicated(mesh)),
                functools.partial(fixed_groups, rows=CHUNKS_PER_GROUP, frames=size),
            )
            for program, size in (
                (encode, data.mel_frames_per_chunk),
                (adapt, model.encoder.hidden),
            )
        )

    @property
    def num_encoded(self) -> int:
        """The number of chunks that the encoder has encoded."""
        return self._encoder.num_encoded

    def encode(
        self, parameters: Parameters, prompts: Sequence[Prompt]
    ) -> list[NDArray[np.float32]]:
        """Computes the encoder's features of each prompt's chunks, on the host.

        Returns:
            For each prompt [C, encoder frames, encoder hidden] f32, zero beyond each chunk;
            [0, 0, 0] where it has no chunk.
        """
        chunks = [chunk for prompt in prompts for chunk in prompt.chunks]
        features = iter(self._encoder.encode(parameters, chunks))
        nothing = np.zeros((0, 0, 0), np.float32)
        return [
            np.stack(list(itertools.islice(features, len(prompt.chunks))))
            if prompt.chunks
            else nothing
            for prompt in prompts
        ]

    def embed(
        self,
        parameters: Parameters,
        prompts: Sequence[Prompt],
        features: Sequence[NDArray[np.float32]],
    ) -> list[Prompt]:
        """Returns the prompts with the adaptor's outputs of their chunks by these parameters."""
        outputs = iter(
            self._adaptor.encode(parameters, [chunk for chunks in features for chunk in chunks])
        )
        embedded = []
        for prompt in prompts:
            chunks = [next(outputs)[:count] for count in prompt.chunk_tokens]
            embedded.append(
                dataclasses.replace(prompt, audio_embeddings=np.concatenate(chunks))
                if chunks
                else prompt
            )
        return embedded


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
