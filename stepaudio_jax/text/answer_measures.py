"""Compares numbers in any notation: spelled out, as a percentage, in another unit, in two units."""

import dataclasses
import math
import re
from collections.abc import Iterator
from fractions import Fraction

from stepaudio_jax.text.answer_markup import normalize_answer, strip_reasoning
from stepaudio_jax.text.answer_numbers import (
    NumberItem,
    NumberRange,
    NumberReading,
    Quantity,
    parse_answer_number,
    read_number_item,
)
from stepaudio_jax.text.chinese_numerals import spell_chinese_digits
from stepaudio_jax.text.number_words import spell_digits

# {dimension: {unit: (size in the dimension's base unit, names)}}
_UNITS: dict[str, dict[str, tuple[Fraction, str]]] = {
    "length": {
        "km": (Fraction(1000), "km kms kilometer kilometers kilometre kilometres 千米 公里"),
        "m": (Fraction(1), "m meter meters metre metres 米"),
        "cm": (Fraction(1, 100), "cm centimeter centimeters centimetre centimetres 厘米"),
        "mm": (Fraction(1, 1000), "mm millimeter millimeters millimetre millimetres 毫米"),
    },
    "mass": {
        "kg": (Fraction(1000), "kg kgs kilo kilos kilogram kilograms 千克 公斤"),
        "g": (Fraction(1), "g gram grams 克"),
        "mg": (Fraction(1, 1000), "mg milligram milligrams 毫克"),
    },
    "volume": {
        "l": (Fraction(1), "l liter liters litre litres 升"),
        "ml": (Fraction(1, 1000), "ml milliliter milliliters millilitre millilitres 毫升"),
    },
    "feet": {
        "mi": (Fraction(63360), "mile miles"),
        "yd": (Fraction(36), "yd yard yards"),
        "ft": (Fraction(12), "ft foot feet"),
        "in": (Fraction(1), "inch inches"),
    },
    "pounds": {"lb": (Fraction(16), "lb lbs pound pounds"), "oz": (Fraction(1), "oz ounce ounces")},
    "time": {
        "week": (Fraction(604800), "week weeks 周 星期"),
        "day": (Fraction(86400), "day days 天"),
        "h": (Fraction(3600), "h hr hrs hour hours 小时 个小时"),
        "min": (Fraction(60), "min mins minute minutes 分钟"),
        "s": (Fraction(1), "s sec secs second seconds 秒 秒钟"),
    },
    "years": {
        "year": (Fraction(12), "year years 年"),
        "month": (Fraction(1), "month months 个月"),
    },
    "money": {
        "dollar": (Fraction(100), "dollar dollars euro euros 元"),
        "cent": (Fraction(1), "cent cents 分"),
    },
}
# Dimensions in which another unit than the question's is always meant to be converted.
_METRIC = ("length", "mass", "volume")
_BY_NAME = {
    name: (dimension, unit)
    for dimension, units in _UNITS.items()
    for unit, (_, names) in units.items()
    for name in names.split()
}
# Not in m2 or meter-long words; Chinese has no such ends.
_NAMES = "|".join(
    name + (r"(?![A-Za-z\d²³^'])" if name.isascii() else "")
    for name in sorted(_BY_NAME, key=len, reverse=True)
)
_UNIT_AFTER = re.compile(rf"\s?-?\s?({_NAMES})", re.IGNORECASE)
_UNIT_WORD = re.compile(rf"(?<![A-Za-z])({_NAMES})", re.IGNORECASE)
_PERCENT_AFTER = re.compile(r"\s?(?:%|per\s?cent\b|个百分点)", re.IGNORECASE)
_ASKS_PERCENT = re.compile(r"%|per\s?cent|百分", re.IGNORECASE)
_BETWEEN_UNITS = re.compile(r"\s*,?\s*(?:and|又|零)?\s*", re.IGNORECASE)
# Digits that are read one by one: "1 0 1".
_SPACED_DIGITS = re.compile(r"(?<![\d.,/:+*=-])(?<![\d.,/:+*=-] )\d(?: \d){2,30}(?! ?[\d/:+*=-])")


@dataclasses.dataclass(frozen=True)
class NumberMatch:
    """Says whether a reply's number is the right one, and which number was read.

    Attributes:
        is_match: whether they are equal.
        read: the number as text; None where the reply gives none, or not clearly which.
    """

    is_match: bool
    read: str | None


@dataclasses.dataclass(frozen=True)
class _Measure:
    """Holds a number with its unit.

    Attributes:
        value: as the reply gives it.
        dimension, unit: of the table; "" without a unit that is known, and "percent".
        item: where it is.
        end: of the number with its unit.
    """

    value: Quantity | None
    dimension: str
    unit: str
    item: NumberItem
    end: int

    @property
    def amount(self) -> Fraction | None:
        """Returns the value in the base unit of its dimension; None without a unit."""
        if self.dimension not in _UNITS or not isinstance(self.value, Fraction):
            return None
        return self.value * _UNITS[self.dimension][self.unit][0]


def matches_number(reply: str, answer: str, *, question: str = "") -> NumberMatch:
    """Returns whether the number that a reply gives is the answer, in whatever notation.

    The number is read as `read_number` does. Beside its notations count: words ("nineteen", 十九),
    also digit by digit ("one zero one"); a percentage, which is a hundredth too unless the question
    asks for one ("37.5%" and 0.375); a unit that the question does not name, converted into the one
    that it does ("250 cm" where it speaks of meters); the same amount in two units ("2.5 m = 250
    cm"), or in units that add up ("1 hour and 30 minutes").

    Args:
        reply: of a model.
        answer: the right number; of an answer that is no number, the text is compared.
        question: as text, where it is known; only the units that it names are read.
    """
    text = strip_reasoning(reply)
    if text is None:
        return NumberMatch(is_match=False, read=None)
    reading = _read(text)
    try:
        expected = parse_answer_number(_spelled(answer))
    except ValueError:
        normalized = normalize_answer(text)
        return NumberMatch(normalized == normalize_answer(answer), normalized or None)
    if reading is None or reading.item.value is None:
        return NumberMatch(is_match=False, read=None)
    values = set(_values(reading, question))
    return NumberMatch(expected in values, _shown(reading.item.value))


def _read(text: str) -> NumberReading | None:
    """Reads digits, or numbers in words where there are no digits or where these are stated."""
    in_digits = read_number_item(_SPACED_DIGITS.sub(_without_spaces, text))
    spelled = _spelled(text)
    if spelled == text or (in_digits is not None and in_digits.is_stated):
        return in_digits
    in_words = read_number_item(_SPACED_DIGITS.sub(_without_spaces, spelled))
    if in_digits is None or (in_words is not None and in_words.is_stated):
        return in_words
    return in_digits


def _spelled(text: str) -> str:
    return spell_chinese_digits(spell_digits(text))


def _without_spaces(match: re.Match[str]) -> str:
    return match[0].replace(" ", "")


def _values(reading: NumberReading, question: str) -> Iterator[Quantity]:
    """Yields the values that the number of a reply has in the notations that count."""
    measures = [_measure(reading.plain, item) for item in reading.items]
    chosen = next(each for each in measures if each.item.start == reading.item.start)
    asked = _units_of(question)
    chain = _chain(reading.plain, measures, chosen)
    if len(chain) > 1:
        total = sum((each.amount or Fraction(0) for each in chain), Fraction(0))
        for unit in {*(each.unit for each in chain), *asked.get(chosen.dimension, ())}:
            yield total / _UNITS[chosen.dimension][unit][0]
        return
    yield from _in_units_of_question(chosen, question, asked)
    for other in measures:
        if other.amount is not None and other.amount == chosen.amount and other != chosen:
            yield from _in_units_of_question(other, question, asked)


def _in_units_of_question(
    measure: _Measure, question: str, asked: dict[str, set[str]]
) -> Iterator[Quantity]:
    if measure.value is None:
        return
    if measure.dimension == "percent" and isinstance(measure.value, Fraction):
        yield measure.value
        if not _ASKS_PERCENT.search(question):
            yield measure.value / 100
        return
    units = asked.get(measure.dimension, set())
    amount = measure.amount
    if amount is None or not units or measure.unit in units:
        yield measure.value
        return
    if measure.dimension not in _METRIC:
        yield measure.value
    for unit in units:
        yield amount / _UNITS[measure.dimension][unit][0]


def _measure(plain: str, item: NumberItem) -> _Measure:
    percent = _PERCENT_AFTER.match(plain, item.end)
    if percent:
        return _Measure(item.value, "percent", "%", item, percent.end())
    unit = _UNIT_AFTER.match(plain, item.end)
    if unit is None:
        return _Measure(item.value, "", "", item, item.end)
    dimension, name = _BY_NAME[unit[1].lower()]
    return _Measure(item.value, dimension, name, item, unit.end())


def _chain(plain: str, measures: list[_Measure], chosen: _Measure) -> list[_Measure]:
    """Returns the measures around one that add up with it: 1 hour, 30 minutes and 5 seconds."""
    index = measures.index(chosen)
    first = last = index
    while first > 0 and _adds_up(plain, measures[first - 1], measures[first]):
        first -= 1
    while last + 1 < len(measures) and _adds_up(plain, measures[last], measures[last + 1]):
        last += 1
    return measures[first : last + 1]


def _adds_up(plain: str, larger: _Measure, smaller: _Measure) -> bool:
    if larger.dimension != smaller.dimension or larger.amount is None or smaller.amount is None:
        return False
    units = _UNITS[larger.dimension]
    if units[larger.unit][0] <= units[smaller.unit][0]:
        return False
    is_below_one = smaller.amount < units[larger.unit][0]
    gap = _BETWEEN_UNITS.fullmatch(plain, larger.end, smaller.item.start)
    return is_below_one and gap is not None


def _units_of(question: str) -> dict[str, set[str]]:
    """Returns {dimension: units that a question names}."""
    units: dict[str, set[str]] = {}
    for match in _UNIT_WORD.finditer(question):
        if len(match[1]) > 1 or not match[1].isascii():  # "m" or "s" alone is no word of a question
            dimension, unit = _BY_NAME[match[1].lower()]
            units.setdefault(dimension, set()).add(unit)
    return units


def _shown(value: Quantity) -> str:
    """Returns a number as text: in decimals where they end, else as a fraction."""
    if isinstance(value, NumberRange):
        return f"{_shown(value.first)} to {_shown(value.last)}"
    divisor, places = value.denominator, 0
    while divisor % 2 == 0 or divisor % 5 == 0:  # each decimal place takes a factor of 2 and of 5
        divisor //= math.gcd(divisor, 10)
        places += 1
    if divisor != 1:
        return f"{value.numerator}/{value.denominator}"
    digits = f"{abs(value.numerator) * 10**places // value.denominator:0{places + 1}d}"
    sign = "-" if value < 0 else ""
    whole, decimals = (digits[:-places], digits[-places:].rstrip("0")) if places else (digits, "")
    return f"{sign}{whole}.{decimals}" if decimals else f"{sign}{whole}"
