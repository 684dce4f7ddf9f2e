"""Which dialogues a step answers: an order that follows from the seed, so that its number is all that a run must remember."""

import dataclasses
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from stepaudio_jax.audio import AudioError, load_audio
from stepaudio_jax.config import DataConfig, LengthConvention, ModelConfig
from stepaudio_jax.data import (
    BadAudioError,
    DataError,
    JsonlSource,
    Record,
    TooLongError,
    Visit,
    open_sources,
    training_streams,
)
from stepaudio_jax.generation import GenerationError, Prompt, hear_prompt, require_fit
from stepaudio_jax.storage import shorten_words
from stepaudio_jax.text import TextError, Tokenizer, render_prompt

logger = logging.getLogger(__name__)

_MOST_SKIPPED = 100  # records of a source, one after the other


@dataclasses.dataclass(frozen=True)
class Asked:
    """A record with its dialogue rendered and its clips read; `skipped`: how many before it could not be used."""

    record: Record
    prompt: Prompt
    skipped: int


class PromptStream:
    """The endless stream of a stage's prompts.

    Args:
        data: sources and their weights; `augmentation.silence_probability` silences that share of the prompts.
        tokenizer: of the model.
        model: that answers.
        seed: of the order.
        new_tokens: that a reply may have.
    """

    def __init__(self, data: DataConfig, tokenizer: Tokenizer, model: ModelConfig, *, seed: int, new_tokens: int):
        self._data, self._tokenizer, self._model, self._seed, self._new_tokens = data, tokenizer, model, seed, new_tokens
        self._sources = open_sources(data.sources)
        lengths, weights = [len(source) for source in self._sources], [source.weight for source in data.sources]
        (self._visits,) = training_streams(lengths, weights, seed=seed, rows=1)

    @property
    def sources(self) -> Sequence[JsonlSource]:
        """What is read."""
        return self._sources

    def of_step(self, step: int, count: int) -> list[Asked]:
        """What a step asks, counted from 0, with `count` prompts a step.

        In place of a record that cannot be used, where `data` says to skip such ones, stands the next one of its source that
        can be.

        Raises:
            DataError: a record cannot be read or does not fit a row with its reply; naming its file and line.
        """
        rng = np.random.default_rng((self._seed, step))
        silent = rng.random(count) < self._data.augmentation.silence_probability
        visits = [self._visits[step * count + index] for index in range(count)]
        with ThreadPoolExecutor(self._data.threads) as pool:
            return list(pool.map(self._asked, visits, silent))

    def check(self, records: Sequence[Record]) -> None:
        """Reads some records as a step would.

        Raises:
            DataError: as of `of_step`.
        """
        for record in records:
            try:
                self._prompt(record, silent=False)
            except (BadAudioError, TooLongError) as error:
                self._require_skipping(error)

    def _asked(self, visit: Visit, silent: bool) -> Asked:
        source = self._sources[visit.source]
        most = min(len(source), _MOST_SKIPPED)
        for skipped in range(most):
            record = source[(visit.record + skipped) % len(source)]
            try:
                return Asked(record, self._prompt(record, silent), skipped)
            except (BadAudioError, TooLongError) as error:
                self._require_skipping(error)
                logger.warning("skipped: %s", shorten_words(str(error)))
        raise DataError(f"{source.name}: {most} records one after the other cannot be used; see the warnings")

    def _require_skipping(self, error: BadAudioError | TooLongError) -> None:
        """Raises an error again, but where the configuration says to skip what it is about."""
        choice = self._data.on_bad_audio if isinstance(error, BadAudioError) else self._data.on_too_long
        if choice == "error":
            raise error

    def _prompt(self, record: Record, silent: bool) -> Prompt:
        try:
            segments = render_prompt(record.messages, self._tokenizer, history_reasoning=self._data.history_reasoning)
            read = _silence if silent else load_audio
            prompt = hear_prompt(segments, self._tokenizer, self._model.length_convention, read=read)
            require_fit(prompt, self._model, new_tokens=self._new_tokens, slot_tokens=self._data.tokens_per_row)
        except AudioError as error:
            raise BadAudioError(f"{record.origin}: {error}") from None
        except GenerationError as error:
            raise TooLongError(f"{record.origin}: {error}") from None
        except TextError as error:
            raise DataError(f"{record.origin}: {error}") from None
        for name, needed in (("chunks_per_row", len(prompt.chunks)), ("frames_per_chunk", prompt.longest_chunk)):
            if needed > getattr(self._data, name):
                raise TooLongError(
                    f"{record.origin}: the dialogue needs {name}={needed}, and it is {getattr(self._data, name)}"
                )
        return prompt


def _silence(source: str, /, *, length_convention: LengthConvention) -> NDArray[np.float32]:
    return np.zeros_like(load_audio(source, length_convention=length_convention))
