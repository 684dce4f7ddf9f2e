"""Who speaks: the voice variants whose gender is known, and which of them no model hears in training."""

import dataclasses
from typing import Literal

Gender = Literal["female", "male"]
Language = Literal["English", "Mandarin"]

ACCENTS: dict[Language, tuple[str, ...]] = {"English": ("en-us", "en-gb-x-rp"), "Mandarin": ("cmn",)}
"""espeak-ng's voices for each language."""


@dataclasses.dataclass(frozen=True)
class Speaker:
    """One voice variant, or one that is alike.

    Attributes:
        variant: espeak-ng's name of it.
        gender: which its file declares.
        held_out: whether no model hears it in training.
        alike: which of the voices alike (see `likeness`); 0 is the variant itself.
    """

    variant: str
    gender: Gender
    held_out: bool
    alike: int = 0

    @property
    def name(self) -> str:
        """Its own, among all that are alike."""
        return f"{self.variant}-{self.alike}" if self.alike else self.variant


# Variants made from one another sound alike and stay together. Every third family is held out, from the first one on.
# Left out are variants that declare no gender, whispers, robots, Demonic, and two that drawl (AnxiousAndy, Marco).
_FAMILIES: dict[Gender, tuple[tuple[str, ...], ...]] = {
    "female": (
        ("Alicia",),
        ("Andrea", "anika"),
        ("Annie",),
        ("aunty", "belinda", "f4", "linda"),
        ("f1",),
        ("f2", "f5"),
        ("f3",),
        ("grandma",),
        ("steph", "steph2", "steph3"),
    ),
    "male": (
        ("Andy", "Lee"),
        ("Denis", "Storm", "victor"),
        ("Diogo", "Henrique", "Hugo", "michel", "miguel"),
        ("antonio",),
        ("croak",),
        ("m1",),
        ("m2",),
        ("m3",),
        ("m4",),
        ("m5",),
        ("m6",),
        ("m7", "m8"),
        ("sandro",),
        ("travis",),
    ),
}


def families(gender: Gender, *, held_out: bool) -> tuple[tuple[Speaker, ...], ...]:
    """The families of one gender in one split."""
    return tuple(
        tuple(Speaker(variant, gender, held_out) for variant in family)
        for number, family in enumerate(_FAMILIES[gender], 1)
        if (number % 3 == 1) == held_out
    )


def speakers(*, held_out: bool) -> tuple[Speaker, ...]:
    """All speakers of one split."""
    return tuple(speaker for gender in _FAMILIES for family in families(gender, held_out=held_out) for speaker in family)
