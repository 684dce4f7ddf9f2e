"""Sessions: a speaker says a list of phrases, and each becomes a clip on disk with what it measures.

Every clip is between 2.1 and 2.2 s long, silence included, whatever is said: the number of its
audio tokens tells nothing.
"""

import collections
import dataclasses
import io
import pathlib
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
import soundfile
from numpy.typing import NDArray

from examples.spoken_corpus import espeak
from examples.spoken_corpus.measurement import (
    PITCHES,
    RATES,
    Pitch,
    Rate,
    pitch_label,
    pitch_range,
    rate_label,
)
from examples.spoken_corpus.phrases import Kind, Phrase, draw_phrase, draw_random_phrase
from examples.spoken_corpus.speaker import TARGET_PITCH_HZ, CalibratedSpeaker
from examples.spoken_corpus.voices import ACCENTS, Gender, Speaker, families, similar_voice
from stepaudio_jax.audio import SAMPLE_RATE

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
        CorpusError: espeak-ng is not installed.
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


# Who says what: lines shared out among speakers, as the sessions to record.

_RATE_SHARES: Mapping[Rate, float] = MappingProxyType({"slow": 0.42, "normal": 0.27, "fast": 0.31})
"""Of the lines. More than a third are asked to be slow because some of them are too long for a clip, and are said faster."""

_RANDOM_PHRASE_LENGTHS = (
    1,
    1,
    2,
    2,
    3,
    4,
    5,
    6,
)  # words; a decoder first learns to read short clips
_MAX_SIMILAR_VOICES, _LINES_PER_SIMILAR_VOICE = (
    10,
    1000,
)  # voices alike for each variant, and the lines that each of them is worth


class SpeakerSampler:
    """Draws speakers: genders equally often, then families, then the variants of a family."""

    def __init__(self, *, held_out: bool):
        genders: tuple[Gender, ...] = ("female", "male")
        self._families = [families(gender, held_out=held_out) for gender in genders]

    def draw(self, rng: np.random.Generator) -> Speaker:
        """A speaker."""
        gender = self._families[rng.integers(len(self._families))]
        family = gender[rng.integers(len(gender))]
        return family[rng.integers(len(family))]


def training_sessions(lines: int, shares: Mapping[Kind, float], seed: int) -> list[Session]:
    """Sessions of the training speakers, and of voices alike, the more of them the more lines there are.

    Args:
        lines: how many in all.
        shares: of each kind of phrase, which sum to one.
        seed: of every draw.
    """
    rng = np.random.default_rng((seed, 0))
    cast = SpeakerSampler(held_out=False)
    num_similar = min(_MAX_SIMILAR_VOICES, lines // _LINES_PER_SIMILAR_VOICE)
    kinds = rng.choice(np.array(list(shares)), size=lines, p=list(shares.values()))
    spoken = []
    for kind in kinds.tolist():
        if kind in ("random", "random_mandarin"):
            phrase = draw_random_phrase(kind, rng, int(rng.choice(_RANDOM_PHRASE_LENGTHS)))
        else:
            phrase = draw_phrase(kind, rng, held_out=False)
        speaker = cast.draw(rng)
        spoken.append(
            (phrase, dataclasses.replace(speaker, similar_index=int(rng.integers(num_similar + 1))))
        )
    return _sessions([[pair] for pair in spoken], "train", (seed, 1), rng)


def evaluation_sessions(phrase_groups: Sequence[Sequence[Phrase]], seed: int) -> list[Session]:
    """Sessions of the held-out speakers. The phrases of one group are said by one speaker, one after the other."""
    rng = np.random.default_rng((seed, 2))
    cast = SpeakerSampler(held_out=True)
    spoken = []
    for group in phrase_groups:
        speaker = cast.draw(rng)
        spoken.append([(phrase, speaker) for phrase in group])
    return _sessions(spoken, "evaluation", (seed, 3), rng)


def _sessions(
    phrase_groups: Sequence[Sequence[tuple[Phrase, Speaker]]],
    split: str,
    seed: tuple[int, ...],
    rng: np.random.Generator,
) -> list[Session]:
    """One session for each speaker in each accent, in the order of their names."""
    rates: list[Rate] = list(RATES)
    rate_shares = [_RATE_SHARES[rate] for rate in rates]
    lines: dict[tuple[str, str], list[Line]] = collections.defaultdict(list)
    cast: dict[str, Speaker] = {}
    for number, group in enumerate(phrase_groups):
        phrase, speaker = group[0]
        cast[speaker.name] = speaker
        accents = ACCENTS[phrase.language]
        accent = accents[rng.integers(len(accents))]
        pitches = tuple(TARGET_PITCH_HZ[speaker.gender])
        for phrase, _ in group:
            rate = rates[rng.choice(len(rates), p=rate_shares)]
            lines[speaker.name, accent].append(
                Line(phrase, rate, pitches[rng.integers(len(pitches))], number)
            )
    return [
        Session(f"{split}-{name}-{accent}", cast[name], accent, tuple(said), (*seed, number))
        for number, ((name, accent), said) in enumerate(sorted(lines.items()))
    ]
