"""Reads the exact number that a reply gives; None if it gives none, or not clearly which."""

import dataclasses
import re
from fractions import Fraction

from stepaudio_jax.text.answer_markup import boxed_answers, strip_markup, strip_reasoning

MAX_DIGITS = 200  # of a number; what is longer is none
MAX_EXPONENT = 200  # of 1e5 and 10^5
MAX_GAP = 24  # characters between two numbers that belong together

# 1,000 and 1,00,000 and 1_000
_INTEGER = r"(?:\d{1,3}(?:,\d{3})+|\d{1,2}(?:,\d{2})+,\d{3}|\d+(?:_\d{3})+|\d+)(?!,?\d)"
_PLAIN = rf"(?:{_INTEGER}(?:\.\d+)?|\d+\.\d+|\d+|\.\d+)"
_SCALE = {
    **{"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12},
    **{"百": 10**2, "千": 10**3, "万": 10**4, "萬": 10**4, "亿": 10**8, "億": 10**8},
}
_CURRENCY = r"(?:US\$|[$€£¥₹])"
# A hyphen is a minus only where nothing stands right before it: not in 5-10, 1990-1995, COVID-19.
_NUMBER = re.compile(
    r"(?P<sign>(?<![\w)\].%-])(?:-|\+)|\b(?:minus|negative)\s+|负|負|零下)?"
    rf"(?:{_CURRENCY}\s?)?(?P<inner>(?<=[$€£¥₹])-)?"
    rf"(?:(?P<whole>\d{{1,9}})\s+(?=\d+/\d))?(?P<value>{_PLAIN})"
    r"(?:[eE](?P<exponent>[+-]?\d+)(?!\w)"
    r"|\s?(?:[×x*·])\s?10\s?(?:\^|\*\*)\s?\(?(?P<power>-?\d+)\)?)?"
    rf"(?:\s?/\s?(?P<divisor>{_PLAIN}))?"
    rf"(?:\s?(?P<scale>{'|'.join(_SCALE)})(?![a-z]))?",
    re.IGNORECASE,
)
_TEN_TO = re.compile(r"10\s?(?:\^|\*\*)\s?\(?(-?\d{1,4})\)?(?![\w.])")
_POWER_AFTER = re.compile(r"\s?(?:\^|\*\*)\s?\(?-?\d+\)?")
_LETTER = r"(?:(?![\u2e80-\u9fff\uac00-\ud7af\d_])\w)"
_WORD_BEFORE = re.compile(rf"(?:{_LETTER}'?|{_LETTER}-|_)$")  # mp3, COVID-19
_WORD_AFTER = re.compile(rf"(?:st|nd|rd|th)\b|[A-Za-z]+\d|_{_LETTER}")  # 2nd, 3x4
_CODE_AFTER = re.compile(r"[DGKMB](?!\w)")  # 3D, 4K, 5G
_UNIT = r"\s*(?:%|percent|°[CF]?|[$€£¥]|[A-Za-z]{1,3})?"
_RANGE_GAP = re.compile(
    rf"{_UNIT}\s*(?:-{{1,2}}|~|〜|\bto\b|\bthrough\b|到|至)\s*|\s+", re.IGNORECASE
)
_OR_GAP = re.compile(rf"{_UNIT}\s*(?:\bor\b|\band\b|或者|或|和)\s*", re.IGNORECASE)
_CHAIN_GAP = re.compile(r"[:,/.]|[-/]|")  # 10:30, 1,2,3, 1.2.3
_DENIED = re.compile(
    r"(?:\b(?:not|cannot|never|neither|nor)\b|n't\b|不是|无法)\s*(?:[^\W\d]+\s+){0,2}$",
    re.IGNORECASE,
)
_LIST_MARK = re.compile(r"^[ \t]*(\d{1,2})[.)][ \t]+(?=\S)", re.MULTILINE)
_ANSWER_IS = re.compile(
    r"(?:\b(?:answer|result|ans)\b[^.\n!?;\d]{0,40}?(?:\b(?:is|are|be|equals)\b|[:=]|'s)"
    r"|####|答案|结果|結果)"
    r"(?:\s|[:=~\"'(]|\b(?:about|approximately|roughly|exactly|around|only|just|therefore|thus|now"
    r"|[a-z]\s*=)|应该|应|是|为|等于)*"
    rf"(?={_CURRENCY}?\s?[-+.]?\s?{_CURRENCY}?[\d.]|minus\s|negative\s|负)",
    re.IGNORECASE,
)
_CHANGES = re.compile(
    r"\b(?:wait|actually|no|correction|sorry|on second thoughts?|instead|but)\b|不对|其实|更正",
    re.IGNORECASE,
)
_CONCLUDES = re.compile(
    r"\b(?:so|therefore|thus|hence|total|altogether|makes?|equals|result|answer)\b|=|所以|因此|一共|共",
    re.IGNORECASE,
)
_GOES_ON = re.compile(
    r"\s*(?:%|°[CF]?|[A-Za-z]{1,12})?[\"')\]]?(?:[.!。]\s+(?=\w)|\n[ \t]{0,4}\n(?=[^\W\d])|\s+\()"
)
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_VULGAR = {
    **{
        "½": "1/2",
        "⅓": "1/3",
        "⅔": "2/3",
        "¼": "1/4",
        "¾": "3/4",
        "⅕": "1/5",
        "⅖": "2/5",
        "⅗": "3/5",
        "⅘": "4/5",
    },
    **{"⅙": "1/6", "⅚": "5/6", "⅛": "1/8", "⅜": "3/8", "⅝": "5/8", "⅞": "7/8"},
}


@dataclasses.dataclass(frozen=True)
class NumberRange:
    """Holds two numbers between which a text does not choose: 10-12, 10 to 12."""

    first: Fraction
    last: Fraction


Quantity = Fraction | NumberRange


@dataclasses.dataclass(frozen=True)
class NumberItem:
    """Locates digits in a text; `value` is None for several numbers or none (7 or 8, 10:30)."""

    value: Quantity | None
    start: int
    end: int
    count: int = 1


@dataclasses.dataclass(frozen=True)
class NumberReading:
    """Holds the number that a reply gives, and where.

    Attributes:
        plain: the text in which it was read: of the reply, or of a box in it.
        items: all numbers of that text that are not denied, in order.
        item: the one that the reply gives.
        is_stated: whether it is in a box or follows "answer is" and the like.
    """

    plain: str
    items: tuple[NumberItem, ...]
    item: NumberItem
    is_stated: bool


def read_number(reply: str) -> Quantity | None:
    r"""Returns the number that a reply gives; None if there is none, or none that is clear.

    In this order: a number in `\boxed{..}`; the last one that follows "answer is", "Answer:",
    "####", 答案是, unless the reply then changes its mind ("wait", "no"); one that the reply gives
    first and then explains ("7. I counted 3 and 4."); the last number of the reply. An equation
    gives its result. Denied numbers ("not 7") and those in the reasoning do not count.

    Accepted are 1,000, 1 000 (no-break space), 2.50, .5, 1e3, 2×10³, 3/4, 1½, `\frac{3}{4}`, 1.5
    million, 3万, full-width digits, and any minus sign that is not a hyphen (-5, −5, minus 5).
    Currency, percent sign and unit do not matter. 5-10 is the same range as 5 to 10. Digits within
    words (B2, mp3, COVID-19, 4K), ordinals (2nd), marks of a numbered list, and words (seven) are
    no numbers. Unclear are 7 or 8, 10:30, 2024-05-06, and 3,5.
    """
    answer_text = strip_reasoning(reply)
    reading = None if answer_text is None else read_number_item(answer_text)
    return None if reading is None else reading.item.value


def read_number_item(text: str) -> NumberReading | None:
    """Returns which number a reply gives, see `read_number`; None if there is none.

    Args:
        text: of the reply, without its reasoning.
    """
    boxes = [(plain, items) for plain, items in map(_numbers, boxed_answers(text)) if items]
    if boxes:
        plain, items = boxes[0]
        item = items[-1]
        if len({items[-1].value for _, items in boxes}) > 1:
            item = dataclasses.replace(item, value=None)
        return NumberReading(plain, tuple(items), item, is_stated=True)
    plain, items = _numbers(text)
    items = [
        item for item in items if not _DENIED.search(plain[max(0, item.start - 60) : item.start])
    ]
    if not items:
        return None
    item, is_stated = _choose(plain, items)
    return NumberReading(plain, tuple(items), item, is_stated)


def parse_answer_number(answer: str) -> Quantity:
    """Returns the one number of a record's answer.

    Raises:
        ValueError: there is none, or there are several.
    """
    items = _items(_prepared(answer))
    if len(items) != 1 or items[0].value is None:
        count = sum(item.count for item in items)
        raise ValueError(f"the answer {answer!r} must have one number, and has {count}")
    return items[0].value


def _numbers(text: str) -> tuple[str, list[NumberItem]]:
    """Returns a text as the patterns read it, and its numbers."""
    plain = _prepared(text)
    return plain, _items(plain)


def _choose(plain: str, items: list[NumberItem]) -> tuple[NumberItem, bool]:
    """Returns the number that a reply without a box gives, and whether it states it as such."""
    stated = list(_ANSWER_IS.finditer(plain))
    if stated and not _CHANGES.search(plain, stated[-1].end()):
        following = [item for item in items if item.start >= stated[-1].end()]
        if following:
            return _result(plain, following, stated[-1].end()), True
    # "7. I counted 3 and 4.": what a reply says first and then explains.
    rest = (
        _GOES_ON.match(plain, items[0].end)
        if not re.search(r"\w", plain[: items[0].start])
        else None
    )
    if rest and not _CHANGES.search(plain, rest.end()) and not _CONCLUDES.search(plain, rest.end()):
        return items[0], False
    line_start = plain.rfind("\n", 0, items[-1].start) + 1
    in_line = [item for item in items if item.start >= line_start]
    return _result(plain, in_line, line_start, last=True), False


def _result(plain: str, items: list[NumberItem], start: int, *, last: bool = False) -> NumberItem:
    """Returns the number in the sentence at `start`: first, last, or the result of an equation."""
    sentence_end = re.compile(r"\n|[.;!?](?:\s|$)|。").search(plain, items[0].end)
    end = len(plain) if last or not sentence_end else sentence_end.start()
    signs = [match.start() for match in re.finditer("=", plain[start:end])]
    if signs:
        before = [item for item in items if item.start < start + signs[-1]]
        after = [item for item in items if start + signs[-1] < item.start < end]
        if len(signs) == 1 and len(before) == 1 and sum(item.count for item in after) > 1:
            return before[0]  # 7 = 3 + 4
        if after:
            return after[-1]
    return items[-1 if last else 0]


def _prepared(text: str) -> str:
    """Returns the text in characters that the patterns know, without marks of numbered lists."""
    text = re.sub("(?<=\\d)[\u00a0\u2009\u202f](?=\\d{3})", "", text)
    for char, fraction in _VULGAR.items():
        if char in text:
            text = text.replace(char, f" {fraction}")
    text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+", lambda match: "^" + match[0].translate(_SUPERSCRIPTS), text)
    text = strip_markup(text.replace("\\times", "×").replace("\\cdot", "×"))
    marks = [int(mark) for mark in _LIST_MARK.findall(text)]
    return (
        _LIST_MARK.sub("", text)
        if len(marks) > 1 and marks == list(range(1, len(marks) + 1))
        else text
    )


def _items(plain: str) -> list[NumberItem]:
    """Returns the numbers of a text in order; those that belong together as one."""
    items: list[NumberItem] = []
    for match in _NUMBER.finditer(plain):
        start, end = match.span()
        if items and start < items[-1].end:  # the exponent of a power
            continue
        after = plain[end : end + 12]
        if not match["sign"] and _WORD_BEFORE.search(plain[max(0, start - 2) : start]):
            continue
        if _WORD_AFTER.match(after) or _CODE_AFTER.match(after):
            continue
        power = _POWER_AFTER.match(after)
        item = NumberItem(_value(match, after), start, end + (power.end() if power else 0))
        if items and (joined := _joined(plain, items[-1], item)):
            items[-1] = joined
        else:
            items.append(item)
    return items


def _joined(plain: str, first: NumberItem, second: NumberItem) -> NumberItem | None:
    """Joins two neighbours that are a range, alternatives, or parts of a whole; else None."""
    gap = plain[first.end : second.start]
    if len(gap) > MAX_GAP:
        return None
    signed = plain[second.start : second.start + 1] == "-"

    def unclear(count: int) -> NumberItem:
        return NumberItem(None, first.start, second.end, count)

    if _CHAIN_GAP.fullmatch(gap) and not (gap == "-" and isinstance(first.value, Fraction)):
        return unclear(first.count + second.count)
    if (
        gap == " "
        and re.fullmatch(r"\d{1,3} \d{3}", plain[first.start : second.end])
        and first.value != second.value
    ):
        return unclear(1)  # 1 500 may be one number or two
    if _OR_GAP.fullmatch(gap):
        if gap.strip().endswith("and") and re.search(
            r"\bbetween\s*$", plain[max(0, first.start - 12) : first.start], re.IGNORECASE
        ):
            return _range(first, second) or unclear(2)
        return unclear(first.count + second.count)
    if _RANGE_GAP.fullmatch(gap) and (gap.strip() or signed):
        return _range(first, second) or unclear(first.count + second.count)
    return None


def _range(first: NumberItem, second: NumberItem) -> NumberItem | None:
    if not isinstance(first.value, Fraction) or not isinstance(second.value, Fraction):
        return None
    return NumberItem(NumberRange(first.value, abs(second.value)), first.start, second.end)


def _value(match: re.Match[str], after: str) -> Quantity | None:
    if len(match[0]) > MAX_DIGITS or _POWER_AFTER.match(after):
        return _power(match, after)
    value = Fraction(match["value"].replace(",", "").replace("_", ""))
    exponent = int(match["exponent"] or match["power"] or 0)
    if abs(exponent) > MAX_EXPONENT:
        return None
    value *= Fraction(10) ** exponent
    if match["divisor"]:
        divisor = Fraction(match["divisor"].replace(",", "").replace("_", ""))
        if not divisor:
            return None
        value /= divisor
    value += int(match["whole"] or 0)
    value *= _SCALE[match["scale"].lower()] if match["scale"] else 1
    is_negative = bool(match["inner"]) or (match["sign"] or "+").strip() != "+"
    return -value if is_negative else value


def _power(match: re.Match[str], after: str) -> Fraction | None:
    """Returns the value of 10^3 or 10**3; other powers give None."""
    ten = _TEN_TO.match(match[0].lstrip("-+") + after)
    if not ten or abs(int(ten[1])) > MAX_EXPONENT:
        return None
    return (-1 if match[0].startswith("-") else 1) * Fraction(10) ** int(ten[1])
