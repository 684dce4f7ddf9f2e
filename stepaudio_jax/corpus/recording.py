"""Sessions: a speaker says a list of phrases, and each becomes a clip on disk with what it measures.

Every clip is between 2.1 and 2.2 s long, silence included, whatever is said: the number of its
audio tokens tells nothing.
"""

import dataclasses
import io
import pathlib
from collections.abc import Mapping

import numpy as np
import soundfile
from numpy.typing import NDArray

from stepaudio_jax.audio import SAMPLE_RATE
from stepaudio_jax.corpus import espeak
from stepaudio_jax.corpus.booth import CalibratedSpeaker
from stepaudio_jax.corpus.likeness import similar_voice
from stepaudio_jax.corpus.measurement import (
    PITCHES,
    RATES,
    Pitch,
    Rate,
    pitch_label,
    pitch_range,
    rate_label,
)
from stepaudio_jax.corpus.phrases import Phrase
from stepaudio_jax.corpus.voices import Speaker

ATTRIBUTES: Mapping[str, tuple[str, ...]] = {
    "gender": ("female", "male"),
    "rate": tuple(RATES),
    "pitch": tuple(PITCHES),
    "language": ("English", "Mandarin"),
}
"""What is known of a clip beside its words, and the values it can have: `auxiliary.attributes` of a run."""

MIN_SAMPLES, MAX_SAMPLES = int(2.1 * SAMPLE_RATE), int(2.2 * SAMPLE_RATE)
_EDGE_SAMPLES = int(0.02 * SAMPLE_RATE)  # of silence, at least, on either side
_PEAKS = (0.25, 0.95)


@dataclasses.dataclass(frozen=True)
class Line:
    """A phrase, and how it should be said (see `CalibratedSpeaker.say`). Lines with the same `group` belong together."""

    phrase: Phrase
    rate: Rate
    pitch: Pitch
    group: int


@dataclasses.dataclass(frozen=True)
class Clip:
    """A recorded line.

    Attributes:
        path: of the FLAC file, relative to the corpus.
        phrase: what is said.
        group: its line's.
        speaker: who says it.
        attributes: known ones among `ATTRIBUTES`; rate and pitch are what the clip measures, and
        absent between two classes.
        speech_s: duration of the speech in it.
    """

    path: str
    phrase: Phrase
    group: int
    speaker: Speaker
    attributes: Mapping[str, str]
    speech_s: float


@dataclasses.dataclass(frozen=True)
class Session:
    """What one speaker says, in order, in one accent.

    A clip depends on those before it in its session (see `espeak`), so a session is recorded as a
    whole.
    """

    name: str
    speaker: Speaker
    accent: str
    lines: tuple[Line, ...]
    seed: tuple[int, ...]


def record(session: Session, corpus: pathlib.Path) -> list[Clip]:
    """Records a session into `corpus/audio/NAME/`: 16 kHz, 16-bit FLAC, one file a line.

    The result is a function of the session. Sessions can be recorded at once on several threads.

    Raises:
        EspeakError: espeak-ng is not installed.
    """
    folder = pathlib.PurePosixPath("audio", session.name)
    (corpus / folder).mkdir(parents=True)
    rng = np.random.default_rng(session.seed)
    clips = []
    with espeak.Synthesizer(_similar_voice_files(session.speaker)) as synthesizer:
        calibrated = CalibratedSpeaker(
            synthesizer, session.speaker, session.accent, session.lines[0].phrase.language
        )
        for number, line in enumerate(session.lines):
            speech = calibrated.say(line.phrase, line.rate, line.pitch, rng)
            speech_s = len(speech) / SAMPLE_RATE
            labels = {
                "gender": session.speaker.gender,
                "rate": rate_label(calibrated.reference_seconds(line.phrase.text) / speech_s),
                "pitch": pitch_label(pitch_range(speech)),
                "language": line.phrase.language,
            }
            known = {name: value for name, value in labels.items() if value is not None}
            path = folder / f"{number:05d}.flac"
            (corpus / path).write_bytes(
                _encode_flac(_place_in_silence(calibrated.apply_channel(speech, rng), rng))
            )
            clips.append(Clip(str(path), line.phrase, line.group, session.speaker, known, speech_s))
    return clips


def _similar_voice_files(speaker: Speaker) -> Mapping[str, str]:
    """The voice that the library does not have: a function of the speaker."""
    if speaker.similar_index == 0:
        return {}
    rng = np.random.default_rng([speaker.similar_index, *speaker.variant.encode()])
    return {speaker.name: similar_voice(espeak.variant_file(speaker.variant), rng)}


def _place_in_silence(speech: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """The speech somewhere in a silence of the clip's length, at some level."""
    samples = int(rng.integers(MIN_SAMPLES, MAX_SAMPLES + 1))
    start = int(rng.integers(_EDGE_SAMPLES, samples - len(speech) - _EDGE_SAMPLES + 1))
    clip = np.zeros(samples, np.float32)
    clip[start : start + len(speech)] = speech * (rng.uniform(*_PEAKS) / np.abs(speech).max())
    return clip


def _encode_flac(clip: NDArray[np.float32]) -> bytes:
    """A clip as a 16-bit FLAC file. Encoded in memory, for soundfile waits for the disk after each file it writes."""
    file = io.BytesIO()
    soundfile.write(file, clip, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return file.getvalue()
