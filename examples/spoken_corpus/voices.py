"""The speakers of the corpus: espeak-ng's voice variants, split into training and held out."""

import dataclasses
import re
from typing import Literal

import numpy as np

Gender = Literal["female", "male"]
Language = Literal["English", "Mandarin"]

ACCENTS: dict[Language, tuple[str, ...]] = {
    "English": ("en-us", "en-gb-x-rp"),
    "Mandarin": ("cmn",),
}
"""Language -> espeak-ng's names of its accents."""


@dataclasses.dataclass(frozen=True)
class Speaker:
    """Identifies a voice variant, or a voice that is similar to one.

    Attributes:
        variant: espeak-ng's name of the variant.
        gender: the gender that the variant's file declares.
        held_out: whether the voice is excluded from training.
        similar_index: which of the similar voices (see `similar_voice`); 0 is the variant itself.
    """

    variant: str
    gender: Gender
    held_out: bool
    similar_index: int = 0

    @property
    def name(self) -> str:
        """Returns a name that is unique among the similar voices of all variants."""
        return f"{self.variant}-{self.similar_index}" if self.similar_index else self.variant


# Variants derived from one another sound alike, so a family of them is in one split. About a third
# of the families is held out. Excluded are variants without a declared gender, whispering ones
# (whisper, whisperf, Alicia), robotic ones (UniRobot, anikaRobot, Lee), Demonic, and two that drawl
# (AnxiousAndy, Marco).
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
    """Returns the families of one gender in one split."""
    split = _HELD_OUT if held_out else _TRAINING
    return tuple(
        tuple(Speaker(variant, gender, held_out) for variant in family) for family in split[gender]
    )


def speakers(*, held_out: bool) -> tuple[Speaker, ...]:
    """Returns all speakers of one split."""
    return tuple(
        speaker
        for gender in _TRAINING
        for family in families(gender, held_out=held_out)
        for speaker in family
    )


# Similar voices: random variations of a voice variant. espeak-ng has few variants, and a model
# needs many speakers to learn from.

_NUM_FORMANTS = 9
_DEFAULT_PERCENT = 100.0  # what a variant's file leaves out is as in the language's default voice
_VOCAL_TRACT = (0.95, 1.05)  # one factor for all formants: more would change a voice's gender
_FREQUENCY, _HEIGHT, _WIDTH = (0.96, 1.04), (0.65, 1.5), (0.8, 1.35)
_VOICING, _CONSONANTS = (0.6, 1.6), (0.6, 1.5)
_MAX_FLUTTER, _MAX_ROUGHNESS = 20, 4
_REPLACED_KEYS = ("formant", "voicing", "consonants", "flutter", "roughness")


def similar_voice(variant: str, rng: np.random.Generator) -> str:
    """Returns the file of a random voice that is similar to a voice variant.

    Pitch, intonation and timing are the variant's; formants, voicing, consonants, flutter and
    roughness are drawn near the variant's.

    Args:
        variant: the text of a variant's file (see `espeak.variant_file`).
        rng: the source of the random draws.
    """
    lines = [line for line in variant.splitlines() if line.split()]
    variant_fields = {}
    for line in lines:
        key, *fields = line.split()
        if key == "formant" and fields:
            key = f"formant {fields.pop(0)}"
        variant_fields[key] = fields

    def values(key: str, count: int) -> list[float]:
        fields = variant_fields.get(key, [])
        numbers = [float(field) for field in fields if re.fullmatch(r"-?\d+", field)]
        return [*numbers[:count], *[_DEFAULT_PERCENT] * (count - len(numbers))]

    vocal_tract = rng.uniform(*_VOCAL_TRACT)
    drawn = []
    for number in range(_NUM_FORMANTS):
        factors = (
            vocal_tract * rng.uniform(*_FREQUENCY),
            rng.uniform(*_HEIGHT),
            rng.uniform(*_WIDTH),
        )
        formant = (
            value * factor
            for value, factor in zip(values(f"formant {number}", 3), factors, strict=True)
        )
        drawn.append(f"formant {number} " + " ".join(f"{value:.0f}" for value in formant))
    drawn += [
        f"voicing {values('voicing', 1)[0] * rng.uniform(*_VOICING):.0f}",
        "consonants "
        + " ".join(f"{value * rng.uniform(*_CONSONANTS):.0f}" for value in values("consonants", 2)),
        f"flutter {rng.integers(_MAX_FLUTTER + 1)}",
        f"roughness {rng.integers(_MAX_ROUGHNESS + 1)}",
    ]
    kept = [line for line in lines if line.split()[0] not in _REPLACED_KEYS]
    return "\n".join([*kept, *drawn]) + "\n"
