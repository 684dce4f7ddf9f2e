"""Splits dialogues whose recording is too long for a model into dialogues about its parts."""

import dataclasses
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepaudio_jax.audio import (
    CHUNK_SAMPLES,
    SAMPLE_RATE,
    clip_chunks,
    find_split_points,
    mel_frame_count,
)
from stepaudio_jax.audio.lengths import max_clip_samples
from stepaudio_jax.data import Record, Source
from stepaudio_jax.data.clips import iter_clip, measure_clip
from stepaudio_jax.errors import AudioError, DataError, GenerationError, TextError
from stepaudio_jax.generation.loaded_model import LoadedModel
from stepaudio_jax.text import AudioPart, render_prompt, tokenize_dialogue

_MAX_CHUNKS = 24 * 3600 * SAMPLE_RATE // CHUNK_SAMPLES
_MIN_PART_S = 1.0


class SplitDialogues:
    """Reads the dialogues of a source, a recording that is too long in several parts.

    A recording is split at silences into parts that the model's positions hold together with the
    rest of the dialogue and the longest reply. The lengths of all clips are read at the beginning,
    and the recordings that are too long are decoded once to find their silences.

    Args:
        model: the model that answers.
        source: the dialogues.
        new_tokens: returns the most tokens that the reply to a record may have.
        num_threads: threads that read lengths; None for Python's default.
    """

    def __init__(
        self,
        model: LoadedModel,
        source: Source,
        new_tokens: Callable[[Record], int],
        num_threads: int | None = None,
    ):
        self._model, self._source, self._new_tokens = model, source, new_tokens
        self._dialogues: list[tuple[int, AudioPart | None]] = []
        self._failures: dict[int, GenerationError] = {}
        with ThreadPoolExecutor(num_threads) as pool:
            for index, parts in enumerate(pool.map(self._find_parts, range(len(source)))):
                of_record: list[AudioPart | None] = [*parts] or [None]
                self._dialogues += [(index, part) for part in of_record]

    def __len__(self) -> int:
        return len(self._dialogues)

    def __getitem__(self, index: int) -> Record:
        """Reads the dialogue at `index`, about one part if its recording was split.

        Raises:
            DataError: as of `Source`.
            GenerationError: its recording is too long, and cannot be split.
        """
        number, part = self._dialogues[index]
        if number in self._failures:
            raise self._failures[number]
        record = self._source[number]
        return record if part is None else _with_part(record, part)

    def origin(self, index: int) -> str:
        """Returns `file:line` or `file#place` of the dialogue at `index`."""
        return self._source.origin(self._dialogues[index][0])

    def record_id(self, index: int) -> str:
        """Returns the id of the record at `index`, even if the record cannot be used otherwise."""
        return self._source.record_id(self._dialogues[index][0])

    def part(self, index: int) -> AudioPart | None:
        """Returns the part that the dialogue at `index` is about; None if nothing was split."""
        return self._dialogues[index][1]

    def _find_parts(self, index: int) -> list[AudioPart]:
        """Returns the parts into which a record's recording is split; none if it fits or fails.

        What is wrong with a record is reported where it is read to be answered.
        """
        try:
            record = self._source[index]
            return self._split(record)
        except (DataError, TextError, AudioError):
            return []
        except GenerationError as error:
            self._failures[index] = error
            return []

    def _split(self, record: Record) -> list[AudioPart]:
        clips = [part for message in record.messages for part in message.audio]
        room = self._model.config.decoder.max_positions - self._new_tokens(record)
        room -= self._count_text_tokens(record)
        lengths = [self._count_samples(clip) for clip in clips]
        if sum(map(self._count_audio_tokens, lengths)) <= room:
            return []
        if len(clips) != 1:
            raise GenerationError(
                f"the dialogue is too long and has {len(clips)} clips; only a dialogue with one can"
                " be split"
            )
        longest = max_clip_samples(
            room,
            _MAX_CHUNKS,
            mel_frame_count(CHUNK_SAMPLES),
            self._model.config.length_convention,
        )
        max_s = longest / SAMPLE_RATE
        if max_s < _MIN_PART_S:
            raise GenerationError(
                "the dialogue and its reply leave no room for sound; lower max_new_tokens or"
                " shorten the text"
            )
        (clip,) = clips
        return [
            dataclasses.replace(clip, start_s=clip.start_s + start, end_s=clip.start_s + end)
            for start, end in find_split_points(self._iter_clip(clip), max_s)
        ]

    def _count_text_tokens(self, record: Record) -> int:
        segments = render_prompt(
            record.messages,
            self._model.tokenizer,
            history_eot=self._model.history_eot,
            history_reasoning=self._model.history_reasoning,
        )
        return len(tokenize_dialogue(segments, lambda _: [], self._model.tokenizer).tokens)

    def _count_audio_tokens(self, samples: int) -> int:
        """Returns the tokens of a clip, with `<audio_start>` and `<audio_end>` of each chunk."""
        sizes = clip_chunks(samples, self._model.config.length_convention)
        return sum(size.tokens + 2 for size in sizes)

    def _count_samples(self, clip: AudioPart) -> int:
        return measure_clip(clip, **self._reading())

    def _iter_clip(self, clip: AudioPart) -> Iterator[NDArray[np.float32]]:
        """Yields the samples of a clip in pieces, so that none is held whole."""
        return iter_clip(clip, **self._reading())

    def _reading(self) -> dict[str, Any]:
        """Returns how clips are read."""
        return {
            "length_convention": self._model.config.length_convention,
            "channel": self._model.channel,
            "allow_urls": self._model.allow_urls,
            "cache": self._model.clip_cache,
        }


def _with_part(record: Record, part: AudioPart) -> Record:
    """Returns a record with its only clip replaced by a part of it."""
    messages = tuple(
        dataclasses.replace(
            message,
            parts=tuple(part if isinstance(item, AudioPart) else item for item in message.parts),
        )
        for message in record.messages
    )
    return dataclasses.replace(record, messages=messages)
