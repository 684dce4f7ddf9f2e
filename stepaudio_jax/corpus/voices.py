"""Who speaks: the voice variants whose gender is known, and which of them no model hears in training."""

import dataclasses
from typing import Literal

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
