"""Reads ages: ranges of years in digits or words, and the names of ages."""

import dataclasses
import re

from stepaudio_jax.evaluation.voice_terms import find_terms, is_denied
from stepaudio_jax.text.answer_markup import unify_characters
from stepaudio_jax.text.chinese_numerals import spell_chinese_digits

MAX_AGE = 120
MAX_BARE_CHARACTERS = 12  # of a text whose number without a unit is an age
# Years that the names of ages stand for; neighbours overlap, as their borders are no sharp ones.
YEARS = {
    "child": (0, 12),
    "teen": (11, 18),
    "youth": (17, 44),
    "middle": (36, 64),
    "old": (56, 120),
}
# The middle of each, where a name is all that is said.
_MIDDLES = {"child": 7.0, "teen": 15.0, "youth": 27.0, "middle": 47.0, "old": 70.0}
_OPEN_ENDED = 20  # years that "50 and above" reaches up

_DIGITS = {char: value for value, char in enumerate("零一二三四五六七八九")} | {"两": 2}
_ONES = "一二两三四五六七八九"
# 七八岁, 四五十岁, 四十五六岁, 十几岁
_HAN_RANGE = re.compile(
    rf"(?P<before>[{_ONES}]?十)?(?P<first>[{_ONES}])(?P<second>[{_ONES}])(?P<ten>十)?(?=多?几?岁)"
)
_TEENS = re.compile(rf"(?<![{_ONES}])十[几多](?=岁)")
_DECADES = {
    word: 10 * tens
    for tens, word in enumerate(
        [
            "twenties",
            "thirties",
            "forties",
            "fifties",
            "sixties",
            "seventies",
            "eighties",
            "nineties",
        ],
        2,
    )
}
_AGE = re.compile(
    r"(?<![\d.])(?P<low>\d{1,3})\s*岁?\s*(?:-|~|〜|到|至|\bto\b|\band\b|、)\s*(?P<high>\d{1,3})(?!\d)"
    r"|(?:(?P<decade>early|mid|late)[-\s]{0,3})?(?:"
    r"(?<![\d.])(?P<tens>[2-9]0)['’]?s\b|\b(?P<word>" + "|".join(_DECADES) + r")\b)"
    r"|(?<![\d.])(?P<several>\d{1,2})(?:多|几)\s*岁"
    r"|(?<![\d.])(?P<age>\d{1,3})\s*(?:(?P<unit>周?岁|[-\s]?years?|[-\s]?yrs?)\s*)?"
    r"(?P<open>以上|以下|and above|or older|\+)?(?!\d)"
)


@dataclasses.dataclass(frozen=True)
class AgeRange:
    """Holds ages between two numbers of years."""

    low: float
    high: float

    @property
    def middle(self) -> float:
        """Returns the midpoint."""
        return (self.low + self.high) / 2


def find_ages(text: str, *, bare: bool) -> list[AgeRange]:
    """Returns the ages in years that a text asserts.

    Args:
        text: Chinese or English; numbers may be written in words, as 四五十岁.
        bare: whether numbers without a unit are ages too, in a text that has little else.
    """
    plain = _HAN_RANGE.sub(_range_digits, unify_characters(text).casefold())
    plain = spell_chinese_digits(_TEENS.sub("10-19", plain))
    bare = bare and len(plain.strip()) <= MAX_BARE_CHARACTERS
    ages = []
    for match in _AGE.finditer(plain):
        if is_denied(plain, match.start()):
            continue
        age = _as_range(match)
        has_unit = match["age"] is None or match["unit"] or match["open"]
        if match["low"] and not re.match(r"\s*(?:多?岁|years?|yrs?)", plain[match.end() :]):
            has_unit = False
        if age is not None and age.high <= MAX_AGE and (bare or has_unit):
            ages.append(age)
    return ages


def age_middles(text: str, *, bare: bool) -> list[float]:
    """Returns the midpoints of the ages that a text asserts: of numbers, or else of names."""
    numbers = [age.middle for age in find_ages(text, bare=bare)]
    if numbers:
        return numbers
    names = _names_of(text)
    return [_MIDDLES[name] for name in names] if len(names) == 1 else []


def age_names(text: str) -> frozenset[str]:
    """Returns the names of ages that fit all that a text says; several where it leaves it open."""
    fitting = [
        frozenset(name for name, (low, high) in YEARS.items() if low <= age.middle <= high)
        for age in find_ages(text, bare=False)
    ]
    named = _names_of(text)
    sets = [each for each in (*fitting, named) if each]
    common = frozenset.intersection(*sets) if sets else frozenset[str]()
    return common or frozenset().union(*sets)


def _names_of(text: str) -> frozenset[str]:
    sets = [mention.concepts for mention in find_terms(text, "age")]
    common = frozenset.intersection(*sets) if sets else frozenset[str]()
    return common or frozenset().union(*sets)


def _as_range(match: re.Match[str]) -> AgeRange | None:
    if match["low"]:
        low, high = float(match["low"]), float(match["high"])
        return AgeRange(low, high) if low <= high else None
    if match["tens"] or match["word"]:
        tens = float(match["tens"] or _DECADES[match["word"]])
        first, last = {"early": (0, 3), "mid": (4, 6), "late": (7, 9)}.get(
            match["decade"] or "", (0, 9)
        )
        return AgeRange(tens + first, tens + last)
    if match["several"]:
        age = float(match["several"])
        return AgeRange(age, age + (9 if age % 10 == 0 else 0))
    age = float(match["age"])
    if match["open"] == "以下":
        return AgeRange(max(age - _OPEN_ENDED, 0), age)
    return AgeRange(age, age + _OPEN_ENDED) if match["open"] else AgeRange(age, age)


def _range_digits(match: re.Match[str]) -> str:
    """Returns 七八 as 7-8, 四五十 as 40-50, and 四十五六 as 45-46."""
    scale = 10 if match["ten"] else 1
    first, second = (_DIGITS[match[name]] * scale for name in ("first", "second"))
    if first >= second or (match["before"] and match["ten"]):
        return match[0]
    tens = 0
    if match["before"]:
        tens = 10 * _DIGITS[match["before"].removesuffix("十") or "一"]
    return f"{tens + first}-{tens + second}"
