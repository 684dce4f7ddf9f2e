"""The phrases of the corpus: vocabulary, templates, and their split into training and held out.

A held-out phrase differs from every training phrase in two ways: its template is not used in
training, and training never combines the words that matter most in the same way (the operands of a
sum, the colour and the animal, the keyword and the word beside it).
"""

import dataclasses
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

import numpy as np

from examples.spoken_corpus.voices import Language

# A closed vocabulary: the CTC head of a training run needs one.

KEYWORDS = (
    "river", "garden", "window", "music", "paper", "summer", "doctor", "mountain", "kitchen",
    "money", "station", "letter", "dinner", "pocket", "bottle", "forest", "village", "coffee",
    "teacher", "question",
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
"""The values of a template's slots; a value may have several words."""

# Transcripts separate Mandarin words by spaces, but not the characters of one word.
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

# Kind -> (templates for training, held-out templates).
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

# Pairs of slots whose combinations are split between training and evaluation. A template may have
# only one slot of a pair.
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
    """Describes a phrase to be spoken.

    Attributes:
        kind: the kind of template that it comes from.
        transcript: its words in lower case, separated by spaces.
        slots: the values of the template's slots: {"keyword": "river", "adjective": "cold"}.
        held_out: whether it belongs to the evaluation.
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
        """Returns the transcript as it is written: Mandarin without spaces."""
        return self.transcript.replace(" ", "") if self.language == "Mandarin" else self.transcript

    @property
    def answer(self) -> str:
        """Returns the result of a sum in figures."""
        return str(number(self.slots["a"]) + number(self.slots["b"]))


def number(digit: str) -> int:
    """Returns the value of a digit in words ("one" to "nine")."""
    return DIGITS.index(digit) + 1


SUM_RESULTS = tuple(range(4, 17))
"""Results of the sums. Each has at least three pairs of operands, so that one can be held out."""


def vocabulary() -> tuple[str, ...]:
    """Returns every word of the transcripts, sorted: the `auxiliary.ctc_words` of a run."""
    texts = [text for values in SLOT_VALUES.values() for text in values]
    texts += [
        re.sub(r"\{\w+\}", " ", text)
        for split in _TEMPLATES.values()
        for templates in split
        for text in templates
    ]
    return tuple(sorted({word for text in texts for word in text.split()}))


def held_out_templates() -> tuple[str, ...]:
    """Returns the templates of the evaluation, with their slots in braces."""
    return tuple(template for _, held_out in _TEMPLATES.values() for template in held_out)


def draw_phrase(
    kind: Kind,
    rng: np.random.Generator,
    *,
    held_out: bool,
    fixed: Mapping[str, str] = MappingProxyType({}),
) -> Phrase:
    """Draws a phrase: a template, and a combination of words that its split allows.

    Args:
        kind: a kind that has templates.
        rng: the source of the random draws.
        held_out: whether the phrase belongs to the evaluation.
        fixed: values of slots that every template of this kind has.
    """
    templates = _TEMPLATES[kind][held_out]
    template = templates[rng.integers(len(templates))]
    names = re.findall(r"\{(\w+)\}", template)
    while True:  # each split allows many of the combinations, whatever is fixed
        slots = {
            name: fixed.get(name) or SLOT_VALUES[name][rng.integers(len(SLOT_VALUES[name]))]
            for name in names
        }
        if _is_in_split(kind, slots, held_out):
            return Phrase(kind, template.format(**slots), MappingProxyType(slots), held_out)


def _is_in_split(kind: Kind, slots: Mapping[str, str], held_out: bool) -> bool:
    """Returns whether a combination of words belongs to a split."""
    if kind == "sum":
        a, b = number(slots["a"]), number(slots["b"])
        if a + b not in SUM_RESULTS:
            return False
        # Exactly one of three neighbouring pairs with the same sum is held out; training has the
        # same two digits in the other order.
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


# Random phrases follow no template: they join parts of training phrases and single words.

_SOURCE_KINDS: Mapping[Kind, tuple[Kind, ...]] = MappingProxyType(
    {"random": ("keyword", "sum", "sum", "statement", "question"), "random_mandarin": ("mandarin",)}
)
_SINGLE_WORD_PROBABILITY = 0.4
_PART_WORDS = (1, 4)  # half-open
# Longer phrases may not fit into a clip.
_MAX_LETTERS: Mapping[Kind, int] = MappingProxyType({"random": 27, "random_mandarin": 9})


def draw_random_phrase(kind: Kind, rng: np.random.Generator, length: int) -> Phrase:
    """Draws a random phrase for training; it never equals a held-out phrase.

    Args:
        kind: "random" (English) or "random_mandarin".
        rng: the source of the random draws.
        length: the number of words; fewer if that many do not fit into a clip.
    """
    sources = _SOURCE_KINDS[kind]
    singles = [word for word in vocabulary() if word.isascii() == (kind == "random")]
    while True:
        words: list[str] = []
        while len(words) < length:
            if rng.random() < _SINGLE_WORD_PROBABILITY:
                words.append(singles[rng.integers(len(singles))])
                continue
            source = sources[rng.integers(len(sources))]
            phrase = draw_phrase(source, rng, held_out=False).transcript.split()
            count = min(int(rng.integers(*_PART_WORDS)), len(phrase))
            start = int(rng.integers(len(phrase) - count + 1))
            words += phrase[start : start + count]
        words = words[:length]
        while len("".join(words)) > _MAX_LETTERS[kind]:
            words.pop()
        transcript = " ".join(words)
        if not _HELD_OUT.fullmatch(transcript):
            return Phrase(kind, transcript, MappingProxyType({}), False)


def _template_pattern(template: str) -> str:
    """Returns a regular expression that matches every phrase of a template."""
    return re.sub(r"\{(\w+)\}", lambda slot: f"(?:{'|'.join(SLOT_VALUES[slot[1]])})", template)


_HELD_OUT = re.compile("|".join(_template_pattern(template) for template in held_out_templates()))
