"""The prompts of a step: their order follows from the seed and the number of the step alone."""

import dataclasses
import functools
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from stepaudio_jax.audio import clip_chunks
from stepaudio_jax.config import (
    DataConfig,
    ModelConfig,
)
from stepaudio_jax.data import (
    Record,
    Source,
    Visit,
    open_sources,
    record_error_context,
    skip_reason,
    training_streams,
)
from stepaudio_jax.data.clips import load_clip, load_silence, open_clip_cache, probe_clip
from stepaudio_jax.data.record import Content, count_content
from stepaudio_jax.errors import DataError, GenerationError
from stepaudio_jax.generation import Prompt, build_prompt, check_prompt_fits
from stepaudio_jax.storage import truncate_words
from stepaudio_jax.text import AudioPart, Segment, Tokenizer, render_prompt, tokenize_dialogue

logger = logging.getLogger(__name__)

MAX_CONSECUTIVE_SKIPS = 100  # records of one source


@dataclasses.dataclass(frozen=True)
class PromptExample:
    """A record as a prompt.

    Attributes:
        record: the record, whose last turn is the user's.
        prompt: the dialogue as tokens and log-mel chunks.
        skipped: number of unusable records that it stands in for.
    """

    record: Record
    prompt: Prompt
    skipped: int


class PromptStream:
    """The endless stream of a stage's prompts.

    Args:
        data: sources and their weights; `augmentation.silence_probability` is the share of the
            prompts whose audio is replaced by silence.
        tokenizer: the model's tokenizer.
        model: its shape.
        seed: decides the order.
        new_tokens: most tokens of a reply.
        validate: raises a DataError where a record lacks what its reward needs.

    Raises:
        DataError: a source has no file or no record.
        ConfigError: the cache of clips cannot be used.
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
        self._clip_cache = open_clip_cache(data)
        lengths, weights = (
            [len(source) for source in self._sources],
            [source.weight for source in data.sources],
        )
        blocks = [source.blocks() for source in self._sources]
        (self._visits,) = training_streams(lengths, weights, seed=seed, rows=1, blocks=blocks)

    @property
    def sources(self) -> Sequence[Source]:
        """Returns the sources of the records."""
        return self._sources

    def examples_at(self, step: int, count: int) -> list[PromptExample]:
        """Returns the prompts of a step.

        An unusable record that `data` says to skip is replaced by the next usable one of its
        source.

        Args:
            step: counted from 0.
            count: prompts a step, the same at each.

        Raises:
            DataError: a record cannot be read, or does not fit a row with its reply; names file
                and line.
        """
        rng = np.random.default_rng((self._seed, step))
        silent = rng.random(count) < self._data.augmentation.silence_probability
        visits = [self._visits[step * count + index] for index in range(count)]
        with ThreadPoolExecutor(self._data.threads) as pool:
            return list(pool.map(self._load_example, visits, silent))

    def check(self, record: Record, *, decode: bool) -> Content:
        """Reads a record as a step does, and returns what it holds.

        Without `decode`, only the headers of its clips are read.

        Raises:
            DataError: the record cannot be used.
        """
        if decode:
            self._prompt(record, silent=False)
        self._validate(record)
        with record_error_context(record):
            prompt, samples = self._prompt_from_headers(record)
            self.check_fits(prompt)
        return count_content(record, samples)

    def check_fits(self, prompt: Prompt) -> None:
        """Checks that a row holds the prompt with a reply.

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

    def _load_example(self, visit: Visit, silent: bool) -> PromptExample:
        source = self._sources[visit.source]
        attempts = min(len(source), MAX_CONSECUTIVE_SKIPS)
        for skipped in range(attempts):
            try:
                record = source[(visit.record + skipped) % len(source)]
                return PromptExample(record, self._prompt(record, silent), skipped)
            except DataError as error:
                if skip_reason(error, self._data) is None:
                    raise
                logger.warning("skipped: %s", truncate_words(str(error)))
        raise DataError(
            f"{source.name}: {attempts} records one after the other cannot be used; see the "
            "warnings"
        )

    def _prompt(self, record: Record, silent: bool) -> Prompt:
        self._validate(record)
        with record_error_context(record):
            read = functools.partial(
                load_silence if silent else load_clip,
                allow_urls=self._data.allow_urls,
                cache=self._clip_cache,
            )
            prompt = build_prompt(
                self._segments(record),
                self._tokenizer,
                self._model.length_convention,
                channel=self._data.channel,
                read=read,
            )
            self.check_fits(prompt)
        return prompt

    def _prompt_from_headers(self, record: Record) -> tuple[Prompt, list[int | None]]:
        """Builds a prompt from the lengths in the clips' headers; its chunks have no mel bins.

        Returns:
            The prompt, and the samples of each clip at 16 kHz, None where they are unknown.
        """
        convention = self._model.length_convention
        chunks: list[NDArray[np.float32]] = []
        chunk_tokens: list[int] = []
        lengths: dict[str, int | None] = {}

        def count_tokens(part: AudioPart) -> list[int]:
            samples = probe_clip(
                part,
                length_convention=convention,
                allow_urls=self._data.allow_urls,
                cache=self._clip_cache,
            )
            lengths[part.name] = samples
            sizes = clip_chunks(samples, convention) if samples is not None else []
            chunks.extend(
                np.empty((0, size.mel_frames), np.float32) for size in sizes if size.tokens
            )
            chunk_tokens.extend(size.tokens for size in sizes if size.tokens)
            return [size.tokens for size in sizes]

        dialogue = tokenize_dialogue(self._segments(record), count_tokens, self._tokenizer)
        is_audio = dialogue.tokens == self._tokenizer.special.audio_patch
        prompt = Prompt(
            dialogue.tokens, is_audio, dialogue.loss_mask, tuple(chunks), tuple(chunk_tokens)
        )
        return prompt, list(lengths.values())

    def _segments(self, record: Record) -> list[Segment]:
        return render_prompt(
            record.messages, self._tokenizer, history_reasoning=self._data.history_reasoning
        )
