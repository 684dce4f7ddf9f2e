"""Rewrites numbers that are spelled out in English as digits: "two hundred six" is 206."""

import dataclasses
import re
from fractions import Fraction

_UNITS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    *("ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen"),
    *("eighteen", "nineteen"),
)
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_VALUES = {
    **{word: value for value, word in enumerate(_UNITS)},
    **{word: 10 * value for value, word in enumerate(_TENS, 2)},
    "fourty": 40,
}
_DIGITS = {**{word: str(value) for value, word in enumerate(_UNITS[:10])}, "oh": "0", "o": "0"}
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_ORDINALS = ("third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth")
_FRACTIONS = {
    **{"half": 2, "halves": 2, "quarter": 4, "quarters": 4},
    **{word: value for value, word in enumerate(_ORDINALS, 3)},
    **{f"{word}s": value for value, word in enumerate(_ORDINALS, 3)},
    **{"tenth": 10, "tenths": 10, "twelfth": 12, "twelfths": 12},
    **{"sixteenth": 16, "sixteenths": 16, "twentieth": 20, "twentieths": 20},
    **{"hundredth": 100, "hundredths": 100, "thousandth": 1000, "thousandths": 1000},
}
# Before "one" or "half" that counts nothing: "no one", "this one", "the first half".
_NAMES_NOTHING_AFTER = frozenset(
    (
        *("no", "any", "every", "some", "each", "this", "that", "which", "the", "another", "first"),
        *("last", "second", "right", "correct", "same", "only", "other", "wrong", "best"),
    )
)
# After "one" that stands for somebody.
_NAMES_SOMEBODY = frozenset(("of", "another", "who", "can", "could", "would", "should", "must"))

_WORD = re.compile(r"(?<![\w.])[^\W\d_]+(?:'\w+)?")
_BETWEEN = re.compile(r"\s*-\s*|\s+")  # between words of a group: "twenty-two", "two hundred"
_BETWEEN_GROUPS = re.compile(r",?\s+")  # "one thousand, nine hundred"


@dataclasses.dataclass(frozen=True)
class _Parsed:
    """Holds a number as it is written in digits, and the index of the word after it."""

    digits: str
    end: int


@dataclasses.dataclass(frozen=True)
class _Words:
    """Gives the words of a text in lower case, and what stands between them."""

    text: str
    matches: tuple[re.Match[str], ...]

    def word(self, index: int) -> str:
        """Returns a word; "" after the last."""
        return self.matches[index][0].lower() if 0 <= index < len(self.matches) else ""

    def follows(self, index: int, gap: re.Pattern[str] = _BETWEEN) -> bool:
        """Returns whether a word follows the one before it with nothing but a gap between them."""
        if not 0 < index < len(self.matches):
            return False
        start, end = self.matches[index - 1].end(), self.matches[index].start()
        return gap.fullmatch(self.text, start, end) is not None

    def joined(self, index: int) -> str:
        """Returns a word that follows directly; "" where it does not."""
        return self.word(index) if self.follows(index) else ""


def spell_digits(text: str) -> str:
    """Returns a text in which spelled numbers are digits.

    "Minus twenty-two point five" becomes "Minus 22.5", "three eighths" 3/8, "two and a half" 2 1/2,
    "nineteen ninety" 1990, and digits that are read one by one ("one zero one") 101. Ordinals stay,
    and so does "one" where it counts nothing ("no one", "one of them").
    """
    words = _Words(text, tuple(_WORD.finditer(text)))
    pieces, position, index = [], 0, 0
    while index < len(words.matches):
        parsed = _parse(words, index)
        if parsed is None:
            index += 1
            continue
        pieces += [text[position : words.matches[index].start()], parsed.digits]
        position = words.matches[parsed.end - 1].end()
        index = parsed.end
    return "".join([*pieces, text[position:]])


def _parse(words: _Words, index: int) -> _Parsed | None:
    """Returns the number that begins at a word; None where none does."""
    first = words.word(index)
    if first in _FRACTIONS:
        return _half(words, index)
    if first in ("a", "an"):
        return _after_article(words, index)
    if first == "point":
        decimals = _decimals(words, index)
        return None if decimals is None else _Parsed(f"0{decimals.digits}", decimals.end)
    if first not in _VALUES or (first == "one" and _counts_nothing(words, index)):
        return None
    if first in _TENS and words.joined(index + 1) in ("first", "second", *_ORDINALS):
        return None  # "twenty-third"
    whole = _digit_by_digit(words, index) or _year(words, index) or _cardinal(words, index)
    if words.joined(whole.end) == "point" and (decimals := _decimals(words, whole.end)):
        whole = _Parsed(whole.digits + decimals.digits, decimals.end)
    return _with_fraction(words, whole)


def _cardinal(words: _Words, index: int) -> _Parsed:
    """Reads groups of falling scales: "two million, one hundred thousand and six"."""
    total, limit = 0, 10**15
    end = index
    while True:
        start = end + 1 if total and words.word(end) == "and" else end
        is_linked = end == index or words.follows(end, _BETWEEN_GROUPS)
        if start != end:
            is_linked = is_linked and words.follows(start)
        group = _group(words, start) if is_linked else None
        if group is None:
            return _Parsed(str(total), end)
        value, after = group
        scale = _SCALES.get(words.joined(after), 1)
        if total and (value * scale >= limit or (scale == 1 and limit == 1)):
            return _Parsed(str(total), end)
        total += value * scale
        end, limit = (after + 1, scale) if scale > 1 else (after, 1)
        if scale == 1:
            return _Parsed(str(total), end)


def _group(words: _Words, index: int) -> tuple[int, int] | None:
    """Returns the value below a scale, "nine hundred and ninety", and the index after it."""
    small = _below_hundred(words, index)
    if small is None:
        return None
    value, end = small
    if value and words.joined(end) == "dozen":
        return 12 * value, end + 1
    if not value or words.joined(end) != "hundred":
        return value, end
    value, end = 100 * value, end + 1
    start = end + 1 if words.joined(end) == "and" else end
    rest = _below_hundred(words, start) if words.follows(start) else None
    return (value, end) if rest is None else (value + rest[0], rest[1])


def _below_hundred(words: _Words, index: int) -> tuple[int, int] | None:
    value = _VALUES.get(words.word(index))
    if value is None:
        return None
    unit = _VALUES.get(words.joined(index + 1), 0)
    if value >= 20 and 0 < unit < 10:
        return value + unit, index + 2
    return value, index + 1


def _digit_by_digit(words: _Words, index: int) -> _Parsed | None:
    """Reads three digits or more: "one zero one"; None where a scale follows."""
    end, digits = index, ""
    while words.word(end) in _DIGITS and (end == index or words.follows(end)):
        digits += _DIGITS[words.word(end)]
        end += 1
    if len(digits) < 3 or words.joined(end) in (*_SCALES, "hundred", "dozen"):
        return None
    return _Parsed(digits, end)


def _year(words: _Words, index: int) -> _Parsed | None:
    """Reads a year in two halves: "nineteen ninety", "twenty twenty-four", "nineteen oh five"."""
    century = _VALUES.get(words.word(index), 0)
    if not 11 <= century <= 20:
        return None
    if words.joined(index + 1) in ("oh", "o") and words.joined(index + 2) in _DIGITS:
        return _Parsed(f"{century}0{_DIGITS[words.word(index + 2)]}", index + 3)
    rest = _below_hundred(words, index + 1) if words.follows(index + 1) else None
    if rest is None or rest[0] < 10 or words.joined(rest[1]) in (*_SCALES, "hundred"):
        return None
    return _Parsed(f"{century}{rest[0]}", rest[1])


def _decimals(words: _Words, index: int) -> _Parsed | None:
    """Reads "point two five" and "point twenty-five" from the word "point" on."""
    end, digits = index + 1, ""
    while words.joined(end) in _DIGITS:
        digits += _DIGITS[words.word(end)]
        end += 1
    if not digits and words.follows(end) and (small := _below_hundred(words, end)):
        digits, end = str(small[0]), small[1]
    return _Parsed(f".{digits}", end) if digits else None


def _with_fraction(words: _Words, number: _Parsed) -> _Parsed:
    """Reads what may follow a number: "three eighths", "two and a half"; not "five third"."""
    end = number.end
    divisor = _FRACTIONS.get(words.joined(end))
    if divisor is not None:
        if words.word(end).endswith("s") or number.digits == "1":
            return _Parsed(f"{number.digits}/{divisor}", end + 1)
        return number
    if words.joined(end) == "and" and words.follows(end + 1):
        part = _parse_fraction(words, end + 1)
        if part is not None:
            return _Parsed(f"{number.digits} {part.digits}", part.end)
    return number


def _parse_fraction(words: _Words, index: int) -> _Parsed | None:
    """Reads "a half", "one third", "three quarters"; None for anything else."""
    dividend = 1 if words.word(index) in ("a", "an") else _VALUES.get(words.word(index), 0)
    divisor = _FRACTIONS.get(words.joined(index + 1))
    if not dividend or divisor is None:
        return None
    fraction = Fraction(dividend, divisor)
    return _Parsed(f"{fraction.numerator}/{fraction.denominator}", index + 2)


def _after_article(words: _Words, index: int) -> _Parsed | None:
    """Reads "a half", "a hundred and five", "a dozen"."""
    following = words.joined(index + 1)
    if following in ("half", "quarter", "third", "fifth", "eighth", "tenth"):
        return _parse_fraction(words, index)
    if following == "dozen":
        return _Parsed("12", index + 2)
    value = 100 if following == "hundred" else _SCALES.get(following)
    if value is None:
        return None
    end = index + 2
    start = end + 1 if words.joined(end) == "and" else end
    rest = _group(words, start) if words.follows(start) else None
    if rest is None or rest[0] >= value or words.joined(rest[1]) in _SCALES:
        return _Parsed(str(value), end)
    return _Parsed(str(value + rest[0]), rest[1])


def _half(words: _Words, index: int) -> _Parsed | None:
    """Reads "half" and "half a dozen"; other fractions without a number before are ordinals."""
    if words.word(index) != "half" or words.word(index - 1) in _NAMES_NOTHING_AFTER:
        return None
    if words.joined(index + 1) == "a" and words.joined(index + 2) == "dozen":
        return _Parsed("6", index + 3)
    return _Parsed("1/2", index + 1)


def _counts_nothing(words: _Words, index: int) -> bool:
    """Returns whether "one" is a pronoun."""
    is_named = words.follows(index) and words.word(index - 1) in _NAMES_NOTHING_AFTER
    return is_named or words.joined(index + 1) in _NAMES_SOMEBODY
