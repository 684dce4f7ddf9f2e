"""Voices alike: random relatives of a voice variant, so that a model hears many speakers and not the few that espeak-ng has."""

import re

import numpy as np

_FORMANTS = 9
_DEFAULT = 100.0  # per cent: what a file leaves out is as in the language's own voice
_THROAT = (0.93, 1.07)  # one factor on all resonances: more would make a male voice a female one
_FREQUENCY, _HEIGHT, _WIDTH = (0.92, 1.08), (0.5, 1.6), (0.7, 1.6)
_LOST = 0.2  # probability that one of the higher resonances is missing
_VOICING, _LEAST_VOICING, _CONSONANTS = (0.4, 1.6), 35, (0.3, 1.6)
_BREATHY, _MOST_BREATH, _BREATH_WIDTHS = 0.4, 5, (100, 600)  # probability; height; hertz
_ECHOING, _ECHO_MS, _MOST_ECHO = 0.3, (10, 130), 50  # probability; delay; loudness
_MOST_FLUTTER, _MOST_ROUGHNESS = 20, 4
_REPLACED = ("formant", "voicing", "consonants", "flutter", "roughness", "breath", "breathw", "echo")


def alike_voice(variant: str, rng: np.random.Generator) -> str:
    """The file of a voice that is alike: pitch, intonation and timing are the variant's, resonances are near its own.

    How much breath and echo there is, and whether one of the higher resonances is missing, does not follow from the variant.

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
    lost = rng.integers(3, _FORMANTS) if rng.random() < _LOST else None
    drawn = []
    for number in range(_FORMANTS):
        near = (throat * rng.uniform(*_FREQUENCY), rng.uniform(*_HEIGHT) * (number != lost), rng.uniform(*_WIDTH))
        resonance = (value * factor for value, factor in zip(values(f"formant {number}", 3), near, strict=True))
        drawn.append(f"formant {number} " + " ".join(f"{value:.0f}" for value in resonance))
    voicing = max(values("voicing", 1)[0] * rng.uniform(*_VOICING), _LEAST_VOICING)
    drawn += [
        f"voicing {voicing:.0f}",
        "consonants " + " ".join(f"{value * rng.uniform(*_CONSONANTS):.0f}" for value in values("consonants", 2)),
        f"flutter {rng.integers(_MOST_FLUTTER + 1)}",
        f"roughness {rng.integers(_MOST_ROUGHNESS + 1)}",
    ]
    if rng.random() < _BREATHY:
        heights, widths = rng.integers(_MOST_BREATH + 1, size=8), rng.integers(*_BREATH_WIDTHS, size=8)
        drawn += ["breath " + " ".join(map(str, heights)), "breathw " + " ".join(map(str, widths))]
    if rng.random() < _ECHOING:
        drawn.append(f"echo {rng.integers(*_ECHO_MS)} {rng.integers(_MOST_ECHO + 1)}")
    kept = [line for line in lines if line.split()[0] not in _REPLACED]
    return "\n".join([*kept, *drawn]) + "\n"
