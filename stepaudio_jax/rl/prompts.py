"""Which dialogues a step answers: an order that follows from the seed, so that its number is all that a run must remember."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from stepaudio_jax.audio import AudioError, load_audio
from stepaudio_jax.config import DataConfig, LengthConvention, ModelConfig
from stepaudio_jax.data import DataError, JsonlSource, Record, training_streams
from stepaudio_jax.generation import GenerationError, Prompt, hear_prompt, require_fit
from stepaudio_jax.text import TextError, Tokenizer, render_prompt


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
        self._sources = [JsonlSource(source) for source in data.sources]
        lengths, weights = [len(source) for source in self._sources], [source.weight for source in data.sources]
        (self._visits,) = training_streams(lengths, weights, seed=seed, rows=1)

    @property
    def sources(self) -> Sequence[JsonlSource]:
        """What is read."""
        return self._sources

    def records(self, step: int, count: int) -> list[Record]:
        """Those of a step, counted from 0, with `count` a step."""
        visits = (self._visits[step * count + index] for index in range(count))
        return [self._sources[visit.source][visit.record] for visit in visits]

    def prompts(self, step: int, records: Sequence[Record]) -> list[Prompt]:
        """The records' dialogues, rendered, their clips read.

        Raises:
            DataError: one cannot be read or does not fit a row with its reply; naming the record's file and line.
        """
        rng = np.random.default_rng((self._seed, step))
        silent = rng.random(len(records)) < self._data.augmentation.silence_probability
        with ThreadPoolExecutor(self._data.threads) as pool:
            return list(pool.map(self._prompt, records, silent))

    def _prompt(self, record: Record, silent: bool) -> Prompt:
        try:
            segments = render_prompt(record.messages, self._tokenizer)
            read = _silence if silent else load_audio
            prompt = hear_prompt(segments, self._tokenizer, self._model.length_convention, read=read)
            require_fit(prompt, self._model, new_tokens=self._new_tokens, slot_tokens=self._data.tokens_per_row)
        except (AudioError, TextError, GenerationError) as error:
            raise DataError(f"{record.origin}: {error}") from None
        for name, needed in (("chunks_per_row", len(prompt.chunks)), ("frames_per_chunk", prompt.longest_chunk)):
            if needed > getattr(self._data, name):
                raise DataError(f"{record.origin}: the dialogue needs {name}={needed}, and it is {getattr(self._data, name)}")
        return prompt


def _silence(source: str, /, *, length_convention: LengthConvention) -> NDArray[np.float32]:
    return np.zeros_like(load_audio(source, length_convention=length_convention))
