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

from examples.spoken_corpus.voices import Language

# The words that the corpus says: a closed vocabulary, which the CTC head of a training run needs.

KEYWORDS = (
    "river", "garden", "window", "music", "paper", "summer", "doctor", "mountain", "kitchen", "money",
    "station", "letter", "dinner", "pocket", "bottle", "forest", "village", "coffee", "teacher", "question",
)  # fmt: skip
ANIMALS = ("tiger", "monkey", "rabbit", "lion", "dolphin", "zebra", "penguin", "camel")
COLOURS = ("red", "green", "yellow", "purple", "white", "black", "golden", "silver")
DIGITS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
NAMES = ("anna", "peter", "maria", "oscar", "laura", "david", "sophie", "robert")
ADJECTIVES = ("cold", "warm", "big", "small", "new", "quiet", "lovely", "heavy", "dirty", "strange")
SUBJECTS = ("i", "you", "we", "they", "she", "he")
VERBS = ("saw", "found", "liked", "lost", "wanted", "needed", "took", "left")
PLACES = ("here", "there", "outside", "at home", "in town")
TIMES = ("today", "now", "again", "this time", "at night")
"""What a template's slots are filled with. A filling may be several words."""

# Mandarin words are separated as they are spoken; the characters of one word are not.
MANDARIN_SUBJECTS = ("我", "你", "他们", "我们", "妈妈", "老师", "朋友", "学生")
MANDARIN_FOOD = ("苹果", "米饭", "面条", "牛奶", "咖啡", "红茶")
MANDARIN_THINGS = ("电影", "音乐", "飞机", "小猫", "花园", "月亮")
MANDARIN_PLACES = ("学校", "北京", "公园", "家里")
MANDARIN_ADJECTIVES = ("很好", "很冷", "很大", "漂亮")
MANDARIN_TIMES = ("今天", "明天", "昨天", "现在")


Kind = Literal["keyword", "sum", "statement", "question", "mandarin", "random", "random_mandarin"]

SLOT_VALUES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "keyword": KEYWORDS,
        "animal": ANIMALS,
        "colour": COLOURS,
        "a": DIGITS,
        "b": DIGITS,
        "name": NAMES,
        "adjective": ADJECTIVES,
        "subject": SUBJECTS,
        "verb": VERBS,
        "place": PLACES,
        "time": TIMES,
        "asked": ("colour", "animal"),
        "who": MANDARIN_SUBJECTS,
        "food": MANDARIN_FOOD,
        "thing": MANDARIN_THINGS,
        "where": MANDARIN_PLACES,
        "how": MANDARIN_ADJECTIVES,
        "when": MANDARIN_TIMES,
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
    return DIGITS.index(digit) + 1


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


# Speech that follows no template: pieces of phrases and single words, one after the other.

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
