"""Speech that follows no template: pieces of phrases and single words, one after the other.

A small decoder learns a few dozen templates by heart, and then recognises which of them a clip is
instead of hearing its words. Where any word may follow any other, it has to listen.
"""

import re
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from stepaudio_jax.corpus.phrases import (
    SLOT_VALUES,
    Kind,
    Phrase,
    draw_phrase,
    held_out_templates,
    vocabulary,
)

_SOURCES: Mapping[Kind, tuple[Kind, ...]] = MappingProxyType(
    {"random": ("keyword", "sum", "sum", "statement", "question"), "random_mandarin": ("mandarin",)}
)
_SINGLE_WORDS = 0.4  # of the pieces
_PIECE_WORDS = (1, 4)
_MAX_LETTERS: Mapping[Kind, int] = MappingProxyType(
    {"random": 27, "random_mandarin": 9}
)  # more may not fit into a clip


def draw_random_phrase(kind: Kind, rng: np.random.Generator, length: int) -> Phrase:
    """Draws words of one language, for training. Pieces are cut from training phrases, and no held-out phrase comes out.

    Args:
        kind: "random" (English) or "random_mandarin".
        rng: where the draws come from.
        length: in words, if they are short enough to be said in one clip.
    """
    sources = _SOURCES[kind]
    singles = [word for word in vocabulary() if word.isascii() == (kind == "random")]
    while True:
        said: list[str] = []
        while len(said) < length:
            if rng.random() < _SINGLE_WORDS:
                said.append(singles[rng.integers(len(singles))])
                continue
            piece = draw_phrase(
                sources[rng.integers(len(sources))], rng, held_out=False
            ).transcript.split()
            words = min(int(rng.integers(*_PIECE_WORDS)), len(piece))
            start = int(rng.integers(len(piece) - words + 1))
            said += piece[start : start + words]
        said = said[:length]
        while len("".join(said)) > _MAX_LETTERS[kind]:
            said.pop()
        transcript = " ".join(said)
        if not _HELD_OUT.fullmatch(transcript):
            return Phrase(kind, transcript, MappingProxyType({}), False)


def _pattern(template: str) -> str:
    return re.sub(r"\{(\w+)\}", lambda slot: f"(?:{'|'.join(SLOT_VALUES[slot[1]])})", template)


_HELD_OUT = re.compile("|".join(_pattern(template) for template in held_out_templates()))
