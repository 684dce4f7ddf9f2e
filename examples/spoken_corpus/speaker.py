"""A calibrated speaker: speaks a phrase at a target rate and pitch."""

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
"""Target pitch in Hz. Outside these common ranges a listener could not tell a voice's gender."""

_TARGET_RATES: Mapping[Rate, tuple[float, float]] = {
    "slow": (0.6, 0.7),
    "normal": (0.94, 1.08),
    "fast": (1.5, 1.95),
}
_NORMAL_WPM, _DEFAULT_PITCH, _DEFAULT_PITCH_RANGE, _PITCH_STEPS_PER_OCTAVE = 175, 50, 50, 64
_SPEED_EXPONENT = 0.92  # measured: relative rate = (words per minute / 175) ** (1 / 0.92)
_PITCH_RANGES = (10, 30)
_CALIBRATION: Mapping[Language, str] = {
    "English": "the quiet river was near the old station",
    "Mandarin": "今天 天气 很好",
}

# Samples read at these rates (in Hz) have formants 6 % lower to 6 % higher.
_FORMANT_SHIFT_RATES = range(20_800, 23_301, 250)
_CHANNEL_KNOTS, _CHANNEL_DB = 8, 12.0
_CHANNEL_SAMPLES = int(2.2 * SAMPLE_RATE)  # longer than any speech, and a fast size for an FFT


class CalibratedSpeaker:
    """Speaks phrases in the voice of one speaker and one accent.

    A training voice varies from phrase to phrase in the length of its vocal tract and in the
    frequency response of its channel. There are few training voices, and without the variation a
    model takes the timbre of each for its pitch. A held-out voice does not vary.

    Args:
        synthesizer: a synthesizer that has the speaker's voice. Its earlier output affects what it
            says next.
        speaker: the speaker.
        accent: espeak-ng's name of the accent.
        language: the language of the accent.
    """

    def __init__(
        self, synthesizer: espeak.Synthesizer, speaker: Speaker, accent: str, language: Language
    ):
        self._synthesizer = synthesizer
        self._speaker = speaker
        self._accent = accent
        self._reference_seconds: dict[str, float] = {}
        calibration = _CALIBRATION[language]
        # A narrow pitch range also lowers the pitch, so calibration uses the range of the phrases.
        speech = self._speak(calibration, speaker.name, pitch_range=sum(_PITCH_RANGES) // 2)
        measured = pitch_range(speech)
        assert measured is not None  # every variant in `voices` is voiced
        self._natural_pitch_hz = measured.median_hz
        self._natural_rate = self.reference_seconds(calibration) / (len(speech) / SAMPLE_RATE)

    def say(
        self, phrase: Phrase, rate: Rate, pitch: Pitch, rng: np.random.Generator
    ) -> NDArray[np.float32]:
        """Speaks a phrase as close to a rate and a pitch as the voice allows.

        Args:
            phrase: the phrase.
            rate: the target class; a phrase that would be too long is spoken faster.
            pitch: a class that `TARGET_PITCH_HZ` has for the speaker's gender.
            rng: the source of the random draws within the classes.

        Returns:
            float32 `[samples]` at 16 kHz without silence around the speech, at most `MAX_SPEECH_S`
            seconds long.

        Raises:
            CorpusError: the phrase is too long at every rate.
        """
        playback_hz = (
            espeak.SAMPLE_RATE if self._speaker.held_out else int(rng.choice(_FORMANT_SHIFT_RATES))
        )
        pitch_shift = playback_hz / espeak.SAMPLE_RATE  # makes speech faster and higher
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
            f"{phrase.text!r} takes more than {MAX_SPEECH_S} s at every rate; shorten its template"
        )

    def apply_channel(
        self, speech: NDArray[np.float32], rng: np.random.Generator
    ) -> NDArray[np.float32]:
        """Applies a random smooth frequency response to the speech of a training voice.

        Args:
            speech: float32 `[samples]` at 16 kHz.
            rng: the source of the random draws.

        Returns:
            float32 `[samples]`; the speech of a held-out voice is returned as it is.
        """
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
        """Returns the duration of a text in the accent's default voice, at 175 words per minute."""
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
        """Synthesizes a text at 16 kHz, `[samples]`, and removes the silence around it."""
        samples = self._synthesizer.say(
            text,
            language=self._accent,
            variant=variant,
            words_per_minute=words_per_minute,
            pitch=pitch,
            pitch_range=pitch_range,
        )
        waveform = resample(
            samples.astype(np.float32) / np.float32(32768), playback_hz, SAMPLE_RATE
        )
        return waveform[speech_span(waveform)]
