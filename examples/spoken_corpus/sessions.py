"""Recording sessions: a speaker speaks a list of phrases, and each becomes a labelled clip on disk.

Every clip lasts 2.1 to 2.2 s with its silence, whatever is said, so that the number of its audio
tokens carries no information.
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
"""The attributes of a clip and their values: the `auxiliary.attributes` of a run."""

MIN_SAMPLES, MAX_SAMPLES = int(2.1 * SAMPLE_RATE), int(2.2 * SAMPLE_RATE)
_EDGE_SAMPLES = int(0.02 * SAMPLE_RATE)  # minimum silence on either side of the speech
_PEAKS = (0.25, 0.95)


@dataclasses.dataclass(frozen=True)
class Line:
    """Describes a phrase and how to speak it (see `CalibratedSpeaker.say`).

    Lines with the same `group` belong to one question of the evaluation.
    """

    phrase: Phrase
    rate: Rate
    pitch: Pitch
    group: int


@dataclasses.dataclass(frozen=True)
class Clip:
    """Describes a recorded line.

    Attributes:
        path: the FLAC file, relative to the corpus folder.
        phrase: the phrase that is spoken.
        group: the group of the line.
        speaker: the speaker.
        attributes: values of `ATTRIBUTES`. Rate and pitch are measured, and absent for a clip that
            lies between two classes.
        speech_s: the duration of the speech in seconds.
    """

    path: str
    phrase: Phrase
    group: int
    speaker: Speaker
    attributes: Mapping[str, str]
    speech_s: float


@dataclasses.dataclass(frozen=True)
class Session:
    """Lists what one speaker says in one accent, in order.

    A clip depends on the clips before it in its session (see `espeak`), so a session is recorded in
    one piece.
    """

    name: str
    speaker: Speaker
    accent: str
    lines: tuple[Line, ...]
    seed: tuple[int, ...]


def record(session: Session, corpus: pathlib.Path) -> list[Clip]:
    """Records a session into `corpus/audio/NAME/`: one 16-bit FLAC file of 16 kHz per line.

    The clips depend on the session only, so sessions can be recorded on several threads at once.

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
    """Returns the variant file of a similar voice (name -> text); nothing for a library voice."""
    if speaker.similar_index == 0:
        return {}
    rng = np.random.default_rng([speaker.similar_index, *speaker.variant.encode()])
    return {speaker.name: similar_voice(espeak.variant_file(speaker.variant), rng)}


def _place_in_silence(speech: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Places speech `[speech_samples]` at a random position in a silent clip, at a random level."""
    samples = int(rng.integers(MIN_SAMPLES, MAX_SAMPLES + 1))
    start = int(rng.integers(_EDGE_SAMPLES, samples - len(speech) - _EDGE_SAMPLES + 1))
    clip = np.zeros(samples, np.float32)
    clip[start : start + len(speech)] = speech * (rng.uniform(*_PEAKS) / np.abs(speech).max())
    return clip


def _encode_flac(clip: NDArray[np.float32]) -> bytes:
    """Encodes a clip `[samples]` as a 16-bit FLAC file.

    In memory, since soundfile waits for the disk after each file that it writes.
    """
    file = io.BytesIO()
    soundfile.write(file, clip, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return file.getvalue()


# Drawing who says what.

# Share of the lines at each rate. More than a third are slow since some of those are too long for a
# clip and end up faster.
_RATE_SHARES: Mapping[Rate, float] = MappingProxyType({"slow": 0.42, "normal": 0.27, "fast": 0.31})
# In words; a decoder first learns to read short clips.
_RANDOM_PHRASE_LENGTHS = 1, 1, 2, 2, 3, 4, 5, 6
# Each variant gets one similar voice per 1000 lines of the corpus, up to 10.
_MAX_SIMILAR_VOICES, _LINES_PER_SIMILAR_VOICE = 10, 1000


class SpeakerSampler:
    """Draws speakers: a gender first, then a family of variants, then a variant, each uniformly."""

    def __init__(self, *, held_out: bool):
        genders: tuple[Gender, ...] = ("female", "male")
        self._families = [families(gender, held_out=held_out) for gender in genders]

    def draw(self, rng: np.random.Generator) -> Speaker:
        """Draws a speaker."""
        gender = self._families[rng.integers(len(self._families))]
        family = gender[rng.integers(len(gender))]
        return family[rng.integers(len(family))]


def training_sessions(lines: int, shares: Mapping[Kind, float], seed: int) -> list[Session]:
    """Draws the sessions of the training speakers and of voices that are similar to them.

    Args:
        lines: the number of lines of all sessions.
        shares: kind of phrase -> its share of the lines; the shares sum to one.
        seed: the seed of all draws.
    """
    rng = np.random.default_rng((seed, 0))
    sampler = SpeakerSampler(held_out=False)
    num_similar = min(_MAX_SIMILAR_VOICES, lines // _LINES_PER_SIMILAR_VOICE)
    kinds = rng.choice(np.array(list(shares)), size=lines, p=list(shares.values()))
    assigned = []
    for kind in kinds.tolist():
        if kind in ("random", "random_mandarin"):
            phrase = draw_random_phrase(kind, rng, int(rng.choice(_RANDOM_PHRASE_LENGTHS)))
        else:
            phrase = draw_phrase(kind, rng, held_out=False)
        speaker = sampler.draw(rng)
        similar_index = int(rng.integers(num_similar + 1))
        assigned.append([(phrase, dataclasses.replace(speaker, similar_index=similar_index))])
    return _sessions(assigned, "train", (seed, 1), rng)


def evaluation_sessions(phrase_groups: Sequence[Sequence[Phrase]], seed: int) -> list[Session]:
    """Draws the sessions of the held-out speakers; one speaker says all phrases of a group."""
    rng = np.random.default_rng((seed, 2))
    sampler = SpeakerSampler(held_out=True)
    assigned = []
    for group in phrase_groups:
        speaker = sampler.draw(rng)
        assigned.append([(phrase, speaker) for phrase in group])
    return _sessions(assigned, "evaluation", (seed, 3), rng)


def _sessions(
    phrase_groups: Sequence[Sequence[tuple[Phrase, Speaker]]],
    split: str,
    seed: tuple[int, ...],
    rng: np.random.Generator,
) -> list[Session]:
    """Draws accent, rate and pitch of each phrase.

    Returns:
        One session for each speaker and accent, sorted by the names of both.
    """
    rates: list[Rate] = list(RATES)
    rate_shares = [_RATE_SHARES[rate] for rate in rates]
    lines: dict[tuple[str, str], list[Line]] = collections.defaultdict(list)
    speakers: dict[str, Speaker] = {}
    for number, group in enumerate(phrase_groups):
        phrase, speaker = group[0]
        speakers[speaker.name] = speaker
        accents = ACCENTS[phrase.language]
        accent = accents[rng.integers(len(accents))]
        pitches = tuple(TARGET_PITCH_HZ[speaker.gender])
        for phrase, _ in group:
            rate = rates[rng.choice(len(rates), p=rate_shares)]
            lines[speaker.name, accent].append(
                Line(phrase, rate, pitches[rng.integers(len(pitches))], number)
            )
    return [
        Session(
            f"{split}-{name}-{accent}",
            speakers[name],
            accent,
            tuple(session_lines),
            (*seed, number),
        )
        for number, ((name, accent), session_lines) in enumerate(sorted(lines.items()))
    ]
