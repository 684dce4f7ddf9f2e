"""Labels of audio chunks for the auxiliary losses: the words of a transcript (CTC), attributes."""

import itertools
from collections.abc import Sequence

from stepaudio_jax.config import AuxiliaryConfig
from stepaudio_jax.data.record import ChunkLabels
from stepaudio_jax.errors import DataError
from stepaudio_jax.storage import did_you_mean, format_path
from stepaudio_jax.text import AudioPart


def label_sizes(config: AuxiliaryConfig, audio_embeddings_per_chunk: int) -> tuple[int, int]:
    """Returns the maximum words of a chunk's transcript, and the number of attributes of a clip.

    A transcript has at most half as many words as the chunk has embeddings: six a second. A size is
    0 if its loss is off.
    """
    max_words = audio_embeddings_per_chunk // 2 if config.ctc_weight > 0 else 0
    return max_words, len(config.attributes) if config.attribute_weight > 0 else 0


class LabelEncoder:
    """Turns a clip's transcript and attributes into indices, for the auxiliary losses.

    Args:
        config: the closed word vocabulary, and the values of each attribute.
        audio_embeddings_per_chunk: of a chunk of full length.
    """

    def __init__(self, config: AuxiliaryConfig, audio_embeddings_per_chunk: int):
        self._words = (
            {word: number for number, word in enumerate(config.ctc_words, 1)}
            if config.ctc_weight > 0
            else None
        )
        self._attributes = dict(config.attributes) if config.attribute_weight > 0 else {}
        self._max_words = label_sizes(config, audio_embeddings_per_chunk)[0]

    def label(self, clip: AudioPart, chunk_tokens: tuple[int, ...]) -> tuple[ChunkLabels, ...]:
        """Returns the labels of each chunk of a clip.

        Args:
            clip: the audio part.
            chunk_tokens: the audio tokens of each of its chunks.

        Raises:
            DataError: a word or a value is outside its vocabulary, or CTC cannot align the
                transcript with the clip.
        """
        words = self._encode_transcript(clip, chunk_tokens)
        attributes = tuple(self._encode_attribute(clip, name) for name in self._attributes)
        return (ChunkLabels(words, attributes),) * len(chunk_tokens)

    def min_tokens(self, clip: AudioPart) -> int:
        """Returns how many audio tokens CTC needs to align a clip's transcript; 0 without one."""
        if self._words is None or clip.transcript is None:
            return 0
        return _ctc_outputs(clip.transcript.split())

    def _encode_transcript(
        self, clip: AudioPart, chunk_tokens: tuple[int, ...]
    ) -> tuple[int, ...] | None:
        if self._words is None or clip.transcript is None:
            return None
        words = clip.transcript.split()
        for word in words:
            if word not in self._words:
                raise DataError(
                    f"the transcript of {format_path(clip.name)} has the word {word!r}, which"
                    f" auxiliary.ctc_words lacks{did_you_mean(word, tuple(self._words))}"
                )
        if len(chunk_tokens) != 1:
            raise DataError(
                f"the transcript of {format_path(clip.name)} spans {len(chunk_tokens)} chunks;"
                " the CTC loss needs clips of one (at most 25 s)"
            )
        if _ctc_outputs(words) > chunk_tokens[0] or len(words) > self._max_words:
            raise DataError(
                f"the transcript of {format_path(clip.name)} has {len(words)} words, too many"
                f" for its {chunk_tokens[0]} audio tokens (at most {self._max_words} words a chunk)"
            )
        return tuple(self._words[word] for word in words)

    def _encode_attribute(self, clip: AudioPart, name: str) -> int:
        if name not in clip.attributes:
            return -1
        value, allowed = clip.attributes[name], self._attributes[name]
        if value not in allowed:
            raise DataError(
                f"{format_path(clip.name)} has {name}={value!r}, which auxiliary.attributes does"
                f" not list{did_you_mean(value, allowed)} (allowed: {', '.join(allowed)})"
            )
        return allowed.index(value)


def _ctc_outputs(words: Sequence[str]) -> int:
    """Returns how many outputs CTC needs: one for each word, and a blank between two equal ones."""
    return len(words) + sum(first == second for first, second in itertools.pairwise(words))
