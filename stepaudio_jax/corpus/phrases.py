"""What is said: templates, the words that fill them, and which phrases no model hears in training.

A phrase is held out in two ways at once: its template is never used in training, and no template of
training is filled with its combination of the words that matter most (the operands of a sum, the
colour and the animal, the keyword and each companion).
"""

import dataclasses
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

import numpy as np

from stepaudio_jax.corpus import words
from stepaudio_jax.corpus.voices import Language

Kind = Literal["keyword", "sum", "statement", "question", "mandarin", "random", "random_mandarin"]

SLOT_VALUES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "keyword": words.KEYWORDS,
        "animal": words.ANIMALS,
        "colour": words.COLOURS,
        "a": words.DIGITS,
        "b": words.DIGITS,
        "name": words.NAMES,
        "adjective": words.ADJECTIVES,
        "subject": words.SUBJECTS,
        "verb": words.VERBS,
        "place": words.PLACES,
        "time": words.TIMES,
        "asked": ("colour", "animal"),
        "who": words.MANDARIN_SUBJECTS,
        "food": words.MANDARIN_FOOD,
        "thing": words.MANDARIN_THINGS,
        "where": words.MANDARIN_PLACES,
        "how": words.MANDARIN_ADJECTIVES,
        "when": words.MANDARIN_TIMES,
    }
)

# In each pair: the templates of training, then those held out.
_TEMPLATES: Mapping[Kind, tuple[tuple[str, ...], tuple[str, ...]]] = MappingProxyType(
    {
        "keyword": (
            (
                "the {keyword} is {adjective}",
                "the {keyword} was {adjective}",
                "my {keyword} is {adjective}",
                "is the {keyword} {adjective}",
                "this {keyword} is so {adjective}",
                "a {adjective} {keyword}",
                "look at the {adjective} {keyword}",
                "that is a {adjective} {keyword}",
                "{subject} {verb} the {keyword}",
                "{subject} {verb} a {keyword} {time}",
                "{subject} {verb} my {keyword}",
                "did {subject} see the {keyword}",
                "{name} {verb} the {keyword}",
                "{name} and the {keyword}",
                "where is the {keyword} {name}",
                "tell {name} about the {keyword}",
                "the {keyword} is {place}",
                "no {keyword} {place}",
                "not the {keyword} {time}",
                "{time} the {keyword} was {adjective}",
                "{place} is a {keyword}",
                "give {name} the {keyword}",
                "{name} said {keyword}",
            ),
            (
                "your {keyword} was {adjective}",
                "see the {adjective} {keyword}",
                "{subject} {verb} this {keyword}",
                "{name} {verb} a {keyword}",
                "tell me about the {keyword} {name}",
                "is the {keyword} {place}",
                "{time} the {keyword} is here",
                "did {name} see my {keyword}",
            ),
        ),
        "sum": (
            (
                "what is {a} plus {b}",
                "{a} plus {b}",
                "add {a} and {b}",
                "how much is {a} plus {b}",
                "{a} and {b} is what",
                "tell me {a} plus {b}",
                "the sum of {a} and {b}",
                "please add {a} to {b}",
                "give me {a} plus {b}",
                "what is the sum of {a} and {b}",
                "{a} plus {b} is",
                "now {a} plus {b}",
                "say {a} and {b} in all",
            ),
            (
                "how much is {a} and {b}",
                "add {a} to {b} please",
                "tell me the sum of {a} and {b}",
                "now add {a} and {b}",
                "what is {a} and {b}",
            ),
        ),
        "statement": (
            (
                "{subject} {verb} a {colour} {animal}",
                "a {colour} {animal} was {place}",
                "the {animal} is {colour}",
                "my {animal} was {colour}",
                "look at the {colour} {animal}",
                "there is a {colour} {animal}",
                "{name} {verb} a {colour} {animal}",
                "this {animal} is so {colour}",
                "a {colour} {animal} please",
                "your {animal} is {colour} {name}",
                "that is a {colour} {animal}",
                "one {colour} {animal} {time}",
                "{time} the {animal} is {colour}",
                "{name} and the {colour} {animal}",
            ),
            (
                "{subject} {verb} the {colour} {animal}",
                "the {animal} was {colour} {time}",
                "here is a {colour} {animal}",
                "{name} took my {colour} {animal}",
                "is this {animal} {colour}",
                "see the {colour} {animal} {place}",
            ),
        ),
        "question": (
            (
                "what {asked} was it",
                "which {asked} was it",
                "tell me the {asked}",
                "name the {asked}",
                "what was the {asked}",
                "and the {asked}",
                "which {asked} did {subject} say",
                "the {asked} please",
                "{name} what {asked} was it",
                "now say the {asked}",
            ),
            (
                "what {asked} did {subject} say",
                "please name the {asked}",
                "which {asked} was that",
                "tell {name} the {asked}",
            ),
        ),
        "mandarin": (
            (
                "{who} 喜欢 {food}",
                "{who} 想 吃 {food}",
                "{who} 看见 {thing}",
                "{who} 去 {where}",
                "{when} 天气 {how}",
                "{thing} {how}",
                "{when} {who} 去 {where}",
                "{who} 有 {food}",
                "{where} {how}",
                "{who} 没有 {thing}",
                "{food} 在 {where}",
            ),
            (
                "{who} 喜欢 {thing}",
                "{when} {who} 有 {food}",
                "{who} 在 {where}",
                "{food} {how}",
                "{when} 想 去 {where}",
            ),
        ),
    }
)

# Pairs of slots whose combinations are split between training and evaluation; a template may lack
# one of a pair.
_SPLIT_SLOT_PAIRS: Mapping[Kind, tuple[tuple[str, str], ...]] = MappingProxyType(
    {
        "keyword": tuple(
            ("keyword", other) for other in ("adjective", "name", "verb", "place", "time")
        ),
        "statement": (("colour", "animal"),),
        "sum": (("a", "b"),),
    }
)


@dataclasses.dataclass(frozen=True)
class Phrase:
    """Something to say.

    Attributes:
        kind: which templates it comes from.
        transcript: its words, lower-case, separated by spaces.
        slots: what was filled in: {"keyword": "river", "adjective": "cold"}.
        held_out: whether it belongs to evaluation.
    """

    kind: Kind
    transcript: str
    slots: Mapping[str, str]
    held_out: bool

    @property
    def language(self) -> Language:
        return "Mandarin" if self.kind in ("mandarin", "random_mandarin") else "English"

    @property
    def text(self) -> str:
        """The transcript as it is written: Mandarin without spaces."""
        return self.transcript.replace(" ", "") if self.language == "Mandarin" else self.transcript

    @property
    def answer(self) -> str:
        """Of a sum, its result in figures."""
        return str(number(self.slots["a"]) + number(self.slots["b"]))


def number(digit: str) -> int:
    """The value of a spoken digit ("one" .. "nine")."""
    return words.DIGITS.index(digit) + 1


SUM_RESULTS = tuple(range(4, 17))
"""The results that are asked for. Each has at least three pairs of operands, so that one can be held out."""


def vocabulary() -> tuple[str, ...]:
    """Every word that a transcript can have, sorted: `auxiliary.ctc_words` of a run."""
    texts = [text for filling in SLOT_VALUES.values() for text in filling]
    texts += [
        re.sub(r"\{\w+\}", " ", text)
        for split in _TEMPLATES.values()
        for templates in split
        for text in templates
    ]
    return tuple(sorted({word for text in texts for word in text.split()}))


def held_out_templates() -> tuple[str, ...]:
    """Every template that belongs to evaluation, with its slots in braces."""
    return tuple(template for _, held_out in _TEMPLATES.values() for template in held_out)


def draw_phrase(
    kind: Kind,
    rng: np.random.Generator,
    *,
    held_out: bool,
    fixed: Mapping[str, str] = MappingProxyType({}),
) -> Phrase:
    """Draws a phrase: a template, then words that may be combined in this split.

    Args:
        kind: one that has templates.
        rng: where the draws come from.
        held_out: the split.
        fixed: slots that are already decided, and must be in every template of this kind.
    """
    templates = _TEMPLATES[kind][held_out]
    template = templates[rng.integers(len(templates))]
    names = re.findall(r"\{(\w+)\}", template)
    while True:  # either split has a good share of the combinations, whatever is fixed
        slots = {
            name: fixed.get(name) or SLOT_VALUES[name][rng.integers(len(SLOT_VALUES[name]))]
            for name in names
        }
        if _allowed(kind, slots, held_out):
            return Phrase(kind, template.format(**slots), MappingProxyType(slots), held_out)


def _allowed(kind: Kind, slots: Mapping[str, str], held_out: bool) -> bool:
    """Whether these words may be combined in this split."""
    if kind == "sum":
        a, b = number(slots["a"]), number(slots["b"])
        if a + b not in SUM_RESULTS:
            return False
        # Of three neighbouring pairs with the same sum exactly one is held out; training has the
        # same two digits the other way.
        return ((a - b) % 3 == 2) == held_out
    return all(
        (
            (SLOT_VALUES[first].index(slots[first]) + SLOT_VALUES[second].index(slots[second])) % 4
            == 0
        )
        == held_out
        for first, second in _SPLIT_SLOT_PAIRS.get(kind, ())
        if first in slots and second in slots
    )
