"""A speaker in front of the microphone: says a phrase at a rate and a pitch, once the voice's own have been measured."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.fft import irfft, rfft, rfftfreq

from examples.spoken_corpus import espeak
from examples.spoken_corpus.espeak import CorpusError
from examples.spoken_corpus.measurement import Pitch, Rate, pitch_range, speech_span
from examples.spoken_corpus.phrases import Phrase
from examples.spoken_corpus.voices import Gender, Language, Speaker
from stepaudio_jax.audio import SAMPLE_RATE, resample

MAX_SPEECH_S = 2.06
TARGET_PITCH_HZ: Mapping[Gender, Mapping[Pitch, tuple[float, float]]] = {
    "female": {"medium": (150, 160), "high": (230, 285)},
    "male": {"low": (74, 88), "medium": (128, 138)},
}
"""Within what is common: a voice outside of it could be of either gender to any ear."""

_TARGET_RATES: Mapping[Rate, tuple[float, float]] = {
    "slow": (0.6, 0.7),
    "normal": (0.94, 1.08),
    "fast": (1.5, 1.95),
}
_NORMAL_WPM, _DEFAULT_PITCH, _DEFAULT_PITCH_RANGE, _PITCH_STEPS_PER_OCTAVE = 175, 50, 50, 64
_SPEED_EXPONENT = 0.92  # times faster ~ (words per minute / 175) ** (1 / 0.92), measured
_PITCH_RANGES = (10, 30)
_CALIBRATION: Mapping[Language, str] = {
    "English": "the quiet river was near the old station",
    "Mandarin": "今天 天气 很好",
}

_FORMANT_SHIFT_RATES = range(
    20_800, 23_301, 250
)  # Hz; samples played at these rates have formants 6 % lower to 6 % higher
_CHANNEL_KNOTS, _CHANNEL_DB = 8, 12.0
_CHANNEL_SAMPLES = int(2.2 * SAMPLE_RATE)  # longer than any speech, and quickly transformed


class CalibratedSpeaker:
    """One speaker in one accent.

    A voice of the training set varies from phrase to phrase in the length of its throat and in the
    channel it is heard through: there are few to learn from, and a model takes the colour of each
    for a sign of its pitch. A held-out voice is as it is.

    Args:
        synthesizer: whose voice it is. What it said before is part of what it says.
        speaker: one whose voice the synthesizer has.
        accent: espeak-ng's name of a language.
        language: which the accent is of.
    """

    def __init__(
        self, synthesizer: espeak.Synthesizer, speaker: Speaker, accent: str, language: Language
    ):
        self._synthesizer = synthesizer
        self._speaker = speaker
        self._accent = accent
        self._reference_seconds: dict[str, float] = {}
        calibration = _CALIBRATION[language]
        sound = self._speak(
            calibration, speaker.name, pitch_range=sum(_PITCH_RANGES) // 2
        )  # a narrow range is lower, too
        measured = pitch_range(sound)
        assert measured is not None  # every variant in `voices` is voiced
        self._natural_pitch_hz = measured.median_hz
        self._natural_rate = self.reference_seconds(calibration) / (len(sound) / SAMPLE_RATE)

    def say(
        self, phrase: Phrase, rate: Rate, pitch: Pitch, rng: np.random.Generator
    ) -> NDArray[np.float32]:
        """Says a phrase, as near to a rate and a pitch as the voice comes.

        Args:
            phrase: what to say.
            rate: what would be too long is said faster.
            pitch: one of `TARGET_PITCH_HZ` for the speaker's gender.
            rng: where the draws within the classes come from.

        Returns:
            [samples] at 16 kHz, at most `MAX_SPEECH_S` long, no silence around it.

        Raises:
            CorpusError: the phrase is too long.
        """
        playback_hz = (
            espeak.SAMPLE_RATE if self._speaker.held_out else int(rng.choice(_FORMANT_SHIFT_RATES))
        )
        pitch_shift = (
            playback_hz / espeak.SAMPLE_RATE
        )  # by this factor it is faster and higher than it was said
        octaves = np.log2(
            rng.uniform(*TARGET_PITCH_HZ[self._speaker.gender][pitch])
            / (self._natural_pitch_hz * pitch_shift)
        )
        pitch_parameter = int(
            np.clip(round(_DEFAULT_PITCH + _PITCH_STEPS_PER_OCTAVE * octaves), 0, 99)
        )
        pitch_range_parameter = int(rng.integers(*_PITCH_RANGES))
        for attempt in [rate, *[faster for faster in _TARGET_RATES if faster != "slow"]]:
            target_rate = rng.uniform(*_TARGET_RATES[attempt]) / (self._natural_rate * pitch_shift)
            speech = self._speak(
                phrase.text,
                self._speaker.name,
                words_per_minute=int(np.clip(_NORMAL_WPM * target_rate**_SPEED_EXPONENT, 80, 450)),
                pitch=pitch_parameter,
                pitch_range=pitch_range_parameter,
                playback_hz=playback_hz,
            )
            if len(speech) <= MAX_SPEECH_S * SAMPLE_RATE:
                return speech
        raise CorpusError(
            f"{phrase.text!r} takes more than {MAX_SPEECH_S} s even when said fast; shorten its template"
        )

    def apply_channel(
        self, speech: NDArray[np.float32], rng: np.random.Generator
    ) -> NDArray[np.float32]:
        """The speech as the microphone has it: through a random smooth frequency response, if the voice is not held out."""
        if self._speaker.held_out:
            return speech
        hz = np.maximum(rfftfreq(_CHANNEL_SAMPLES, 1 / SAMPLE_RATE), 1)
        knots = np.geomspace(60, SAMPLE_RATE / 2, _CHANNEL_KNOTS)
        gain_db = np.interp(
            np.log(hz), np.log(knots), rng.uniform(-_CHANNEL_DB, _CHANNEL_DB, _CHANNEL_KNOTS)
        )
        gain = (10 ** (gain_db / 20)).astype(np.float32)
        return irfft(rfft(speech, _CHANNEL_SAMPLES) * gain, _CHANNEL_SAMPLES)[: len(speech)]

    def reference_seconds(self, text: str) -> float:
        """Seconds that the accent's own voice takes for a text at 175 words a minute."""
        if text not in self._reference_seconds:
            self._reference_seconds[text] = len(self._speak(text, None)) / SAMPLE_RATE
        return self._reference_seconds[text]

    def _speak(
        self,
        text: str,
        variant: str | None,
        *,
        words_per_minute: int = _NORMAL_WPM,
        pitch: int = _DEFAULT_PITCH,
        pitch_range: int = _DEFAULT_PITCH_RANGE,
        playback_hz: int = espeak.SAMPLE_RATE,
    ) -> NDArray[np.float32]:
        sound = self._synthesizer.say(
            text,
            language=self._accent,
            variant=variant,
            words_per_minute=words_per_minute,
            pitch=pitch,
            pitch_range=pitch_range,
        )
        waveform = resample(sound.astype(np.float32) / np.float32(32768), playback_hz, SAMPLE_RATE)
        return waveform[speech_span(waveform)]
