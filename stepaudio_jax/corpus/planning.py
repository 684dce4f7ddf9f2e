"""Who says what: lines shared out among speakers, as the sessions to record."""

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np

from stepaudio_jax.corpus.booth import TARGET_PITCH_HZ
from stepaudio_jax.corpus.measurement import RATES, Rate
from stepaudio_jax.corpus.phrases import Kind, Phrase, draw_phrase
from stepaudio_jax.corpus.recording import Line, Session
from stepaudio_jax.corpus.splicing import draw_random_phrase
from stepaudio_jax.corpus.voices import ACCENTS, Gender, Speaker, families

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
