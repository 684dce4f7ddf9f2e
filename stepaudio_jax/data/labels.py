"""Labels of a clip for the auxiliary losses: its words (CTC) and its attributes."""

import itertools

from stepaudio_jax.config import AuxiliaryConfig
from stepaudio_jax.data.example import ChunkLabels
from stepaudio_jax.data.json_values import did_you_mean
from stepaudio_jax.data.record import DataError
from stepaudio_jax.text.dialogue import AudioPart


def label_sizes(config: AuxiliaryConfig, audio_embeddings_per_chunk: int) -> tuple[int, int]:
    """Words that a chunk's transcript may have (half as many as adaptor outputs: six a second), and attributes of a clip."""
    return audio_embeddings_per_chunk // 2 if config.ctc_weight > 0 else 0, len(
        config.attributes
    ) if config.attribute_weight > 0 else 0


class LabelEncoder:
    """Turns an audio part's transcript and attributes into indices.

    Args:
        config: the closed word vocabulary, and the values of each attribute.
        audio_embeddings_per_chunk: adaptor outputs of a whole chunk.
    """

    def __init__(self, config: AuxiliaryConfig, audio_embeddings_per_chunk: int):
        self._words = (
            {word: number for number, word in enumerate(config.ctc_words, 1)}
            if config.ctc_weight > 0
            else None
        )
        self._attributes = dict(config.attributes) if config.attribute_weight > 0 else {}
        self._max_words = label_sizes(config, audio_embeddings_per_chunk)[0]

    def label(self, clip: AudioPart, outputs: tuple[int, ...]) -> tuple[ChunkLabels, ...]:
        """Labels of each chunk of a clip.

        Args:
            clip: the audio part.
            outputs: adaptor outputs (audio tokens) of each of the clip's chunks.

        Raises:
            DataError: a word or a value outside its vocabulary, or a transcript that CTC cannot
                align with the clip.
        """
        words = self._transcript(clip, outputs)
        attributes = tuple(self._attribute(clip, name) for name in self._attributes)
        return (ChunkLabels(words, attributes),) * len(outputs)

    def _transcript(self, clip: AudioPart, outputs: tuple[int, ...]) -> tuple[int, ...] | None:
        if self._words is None or clip.transcript is None:
            return None
        words = clip.transcript.split()
        for word in words:
            if word not in self._words:
                raise DataError(
                    f"the transcript of {clip.path} has the word {word!r}, which auxiliary.ctc_words lacks"
                    f"{did_you_mean(word, tuple(self._words))}"
                )
        if len(outputs) != 1:
            raise DataError(
                f"the transcript of {clip.path} spans {len(outputs)} chunks; the CTC loss needs clips of one (at most 25 s)"
            )
        # CTC needs an output for each word and a blank between two that are equal.
        needed = len(words) + sum(first == second for first, second in itertools.pairwise(words))
        if needed > outputs[0] or len(words) > self._max_words:
            raise DataError(
                f"the transcript of {clip.path} has {len(words)} words, too many for its {outputs[0]} audio tokens"
                f" (at most {self._max_words} words a chunk)"
            )
        return tuple(self._words[word] for word in words)

    def _attribute(self, clip: AudioPart, name: str) -> int:
        if name not in clip.attributes:
            return -1
        value, allowed = clip.attributes[name], self._attributes[name]
        if value not in allowed:
            raise DataError(
                f"{clip.path} has {name}={value!r}, which auxiliary.attributes does not list"
                f"{did_you_mean(value, allowed)} (allowed: {', '.join(allowed)})"
            )
        return allowed.index(value)
