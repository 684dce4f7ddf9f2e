"""Voices alike: random relatives of a voice variant, so that a model hears many speakers and not the few that espeak-ng has."""

import re

import numpy as np

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
