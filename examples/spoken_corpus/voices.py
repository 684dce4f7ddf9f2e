"""Who speaks: the voice variants whose gender is known, and which of them no model hears in training."""

import dataclasses
import re
from typing import Literal

import numpy as np

# Voices alike: random relatives of a voice variant, so that a model hears many speakers and not the few that espeak-ng has.

_FORMANTS = 9
_DEFAULT = 100.0  # per cent: what a file leaves out is as in the language's own voice
_THROAT = (0.95, 1.05)  # one factor on all resonances: more would make a male voice a female one
_FREQUENCY, _HEIGHT, _WIDTH = (0.96, 1.04), (0.65, 1.5), (0.8, 1.35)
_VOICING, _CONSONANTS = (0.6, 1.6), (0.6, 1.5)
_MAX_FLUTTER, _MAX_ROUGHNESS = 20, 4
_REPLACED = ("formant", "voicing", "consonants", "flutter", "roughness")


def similar_voice(variant: str, rng: np.random.Generator) -> str:
    """The file of a voice that is alike: pitch, intonation and timing are the variant's, resonances and breath are near them.

    Args:
        variant: the text of a variant's file (see `espeak.variant_file`).
        rng: where the draws come from.
    """
    lines = [line for line in variant.splitlines() if line.split()]
    given = {}
    for line in lines:
        key, *fields = line.split()
        if key == "formant" and fields:
            key = f"formant {fields.pop(0)}"
        given[key] = fields

    def values(key: str, count: int) -> list[float]:
        numbers = [float(field) for field in given.get(key, []) if re.fullmatch(r"-?\d+", field)]
        return [*numbers[:count], *[_DEFAULT] * (count - len(numbers))]

    throat = rng.uniform(*_THROAT)
    drawn = []
    for number in range(_FORMANTS):
        near = (throat * rng.uniform(*_FREQUENCY), rng.uniform(*_HEIGHT), rng.uniform(*_WIDTH))
        resonance = (
            value * factor
            for value, factor in zip(values(f"formant {number}", 3), near, strict=True)
        )
        drawn.append(f"formant {number} " + " ".join(f"{value:.0f}" for value in resonance))
    drawn += [
        f"voicing {values('voicing', 1)[0] * rng.uniform(*_VOICING):.0f}",
        "consonants "
        + " ".join(f"{value * rng.uniform(*_CONSONANTS):.0f}" for value in values("consonants", 2)),
        f"flutter {rng.integers(_MAX_FLUTTER + 1)}",
        f"roughness {rng.integers(_MAX_ROUGHNESS + 1)}",
    ]
    kept = [line for line in lines if line.split()[0] not in _REPLACED]
    return "\n".join([*kept, *drawn]) + "\n"


Gender = Literal["female", "male"]
Language = Literal["English", "Mandarin"]

ACCENTS: dict[Language, tuple[str, ...]] = {
    "English": ("en-us", "en-gb-x-rp"),
    "Mandarin": ("cmn",),
}
"""espeak-ng's voices for each language."""


@dataclasses.dataclass(frozen=True)
class Speaker:
    """One voice variant, or one that is alike.

    Attributes:
        variant: espeak-ng's name of it.
        gender: which its file declares.
        held_out: whether no model hears it in training.
        similar_index: which of the voices alike (see `likeness`); 0 is the variant itself.
    """

    variant: str
    gender: Gender
    held_out: bool
    similar_index: int = 0

    @property
    def name(self) -> str:
        """Its own, among all that are alike."""
        return f"{self.variant}-{self.similar_index}" if self.similar_index else self.variant


# Variants made from one another sound alike and stay together. About a third of the families is
# held out. Left out are variants that declare no gender, whispers (Alicia, more breath than voice,
# is nearly one), robots (Lee, whose third resonance is at a tenth of its place, is nearly one),
# Demonic, and two that drawl (AnxiousAndy, Marco).
_TRAINING: dict[Gender, tuple[tuple[str, ...], ...]] = {
    "female": (
        ("Andrea", "anika"),
        ("Annie",),
        ("f1",),
        ("f2", "f5"),
        ("grandma",),
        ("steph", "steph2", "steph3"),
    ),
    "male": (
        ("Denis", "Storm", "victor"),
        ("Diogo", "Henrique", "Hugo", "michel", "miguel"),
        ("croak",),
        ("m1",),
        ("m3",),
        ("m4",),
        ("m6",),
        ("m7", "m8"),
        ("travis",),
    ),
}
_HELD_OUT: dict[Gender, tuple[tuple[str, ...], ...]] = {
    "female": (("aunty", "belinda", "f4", "linda"), ("f3",)),
    "male": (("Andy",), ("antonio",), ("m2",), ("m5",), ("sandro",)),
}


def families(gender: Gender, *, held_out: bool) -> tuple[tuple[Speaker, ...], ...]:
    """The families of one gender in one split."""
    split = _HELD_OUT if held_out else _TRAINING
    return tuple(
        tuple(Speaker(variant, gender, held_out) for variant in family) for family in split[gender]
    )


def speakers(*, held_out: bool) -> tuple[Speaker, ...]:
    """All speakers of one split."""
    return tuple(
        speaker
        for gender in _TRAINING
        for family in families(gender, held_out=held_out)
        for speaker in family
    )
