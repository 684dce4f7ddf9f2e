"""Reads how many things a reply counts: the total, and not the numbers that it is made of."""

import dataclasses
import itertools
import re
from collections.abc import Iterator

from stepaudio_jax.text.answer_markup import boxed_answers, strip_markup, strip_reasoning
from stepaudio_jax.text.chinese_numerals import spell_chinese_digits
from stepaudio_jax.text.number_words import spell_digits

_LIST_MARK = re.compile(r"^[ \t]*(\d{1,2})[.)、][ \t]*(?=\S)", re.MULTILINE)

_NUMBER = re.compile(
    r"(?<![a-z0-9_.])(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?![\d%]|,\d|\.\d|[a-z]*\d)"
)
_DENIED = re.compile(
    r"(?:\b(?:not|never|rather than|instead of|nor)\b|n't\b|不是|并非|而非)\s*(?:[a-z]+\s+){0,2}$"
)
_HEDGED = re.compile(
    r"\b(?:at least|at most|more than|fewer than|less than|over|under|between|up to|either"
    r"|maybe|perhaps|possibly)\s+$|(?:至少|最多|超过|不到)\s*$"
)
# Between two numbers of which a reply does not choose one: 7 or 8, 7-8, 7 to 8.
_BETWEEN = re.compile(r"\bbetween\s+$")
_JOINS = re.compile(r"\s*(?:\bor\b|\bto\b|[-–~/]|或者|或|到|至)\s*")

_LINK = r"(?:is|are|was|were|be|equals|=|:|comes to|makes?|为|是|有)"
_SURELY = r"(?:\W|\b(?:therefore|thus|then|now|exactly|only|just|indeed|actually|a|an)\b){0,12}?"
_FINAL_BEFORE = re.compile(
    rf"(?:\bfinal (?:answer|count|total)\b|最终答案)[^.\n\d]{{0,24}}?{_SURELY}$"
)
_ANSWER_BEFORE = re.compile(
    rf"(?:\banswer\b[^.;\n\d]{{0,40}}?{_LINK}{_SURELY}|答案{_SURELY}(?:应该|应)?[是为:]?\s*)$"
)
_TOTAL_BEFORE = re.compile(
    rf"(?:(?<!in )\b(?:total|result|sum)\b[^.;\n\d]{{0,40}}?{_LINK}{_SURELY}"
    r"|\btotal(?:ing|s)?(?: number)? (?:of|to)\s+|\badd(?:s|ing)? up to\s+"
    rf"|(?:一共|总共|共计|合计|总计|结果|总数|共){_SURELY}(?:应该|应)?[是为有:]?\s*)$"
)
_TOTAL_AFTER = re.compile(
    r"(?:\s+[a-z]+){0,4}?\s+(?:in total|altogether|in all|all together|overall|total)\b"
    r"|\s*[个只件种样]?\s*(?:总共|一共)"
)
# "3 cats and 4 dogs in total" says what is counted, and not that there are 4.
_LISTED = re.compile(r"\d[^.;\n]{0,40}(?:\band|\bplus|,|和|、)\s*$")
_LISTS = re.compile(r"(?:\s+[a-z]+){1,4}\s*(?:,\s*(?:and\s+)?|\band\s+|\bplus\s+|&\s*)(?:an?\b|\d)")
_LENGTH = re.compile(r"\s*(?:seconds?|secs?|minutes?|hours?|秒|分钟)")
_EQUALS = re.compile(r"=\s*$")
_OPERATOR = re.compile(r"\s*[-+*/×=]\s*\d")
_AT_START = re.compile(r"[\W_]*$")
_ENDS = re.compile(r"\s*(?:[a-z]+\s*){0,3}(?:$|[.!?,;:。，；：(（\n]|\s-|\b(?:because|since|as)\b)")
_HAS = re.compile(
    r"(?:\b(?:have|has|had|are|got|get|gets|makes?|making|gives?|giving|count|counted|counting"
    r"|leaves?|so|therefore|thus|hence|is|equals)\b|'s\b)\s+"
    r"(?:(?:you|me|us|exactly|only|just|a total of)\s+)*$"
    r"|[有是]\s*$"
)
_SENTENCE_END = re.compile(r"[.!?。！？]+(?=\s|$)|\n+")

_FINAL_RANK, _ANSWER_RANK, _TOTAL_RANK, _START_RANK = 6, 5, 4, 3
_SUM_RANK, _HAS_RANK, _PLAIN_RANK = 2, 1, 0


@dataclasses.dataclass(frozen=True)
class _Number:
    value: float
    start: int
    end: int


def read_count(reply: str) -> float | None:
    r"""Returns the number of things that a reply states; None where it states none, or not which.

    In this order: what is in `\boxed{..}`; "the final answer is 7"; "the answer is 7", "a total of
    7", "7 in total", 一共7; a number that the reply begins with; the result of an equation; "you
    have 7"; the only number of the reply. Numbers may be words (seven, twenty-one, a dozen, 十二).
    What is denied ("not 7") or left open ("7 or 8", "at least 7") does not count, nor do marks of a
    numbered list. Two sentences that are nothing but different numbers contradict each other.
    """
    visible = strip_reasoning(reply)
    if visible is None:
        return None
    boxes = {_only_number(content) for content in boxed_answers(visible)}
    if boxes:
        return boxes.pop() if len(boxes) == 1 else None
    text = _prepared(visible)
    numbers = list(_stated(text))
    bare = {
        float(sentence.replace(",", ""))
        for sentence in (part.strip(" \"'*") for part in _SENTENCE_END.split(text))
        if _NUMBER.fullmatch(sentence)
    }
    if len(bare) > 1:
        return None
    ranked = [(_rank(text, number), number) for number in numbers]
    if not ranked:
        return None
    best = max(rank for rank, _ in ranked)
    chosen = [number.value for rank, number in ranked if rank == best]
    # Of several totals or results the last is what the others lead to.
    return chosen[-1] if best >= _SUM_RANK or len(set(chosen)) == 1 else None


def _only_number(text: str) -> float | None:
    numbers = list(_stated(_prepared(text)))
    return numbers[0].value if len(numbers) == 1 else None


def _prepared(text: str) -> str:
    """Returns a text in small letters with its numbers as digits, without marks of a list."""
    plain = spell_chinese_digits(spell_digits(strip_markup(text).casefold()))
    marks = [int(mark) for mark in _LIST_MARK.findall(plain)]
    is_list = len(marks) > 1 and marks == list(range(1, len(marks) + 1))
    return _LIST_MARK.sub("", plain) if is_list else plain


def _stated(text: str) -> Iterator[_Number]:
    """Yields the numbers that a text neither denies nor leaves open."""
    matches = list(_NUMBER.finditer(text))
    joined = set[int]()
    for index, (first, second) in enumerate(itertools.pairwise(matches)):
        between = text[first.end() : second.start()]
        is_range = between.strip() == "and" and _BETWEEN.search(
            text[max(0, first.start() - 12) : first.start()]
        )
        if len(between) < 12 and (is_range or _JOINS.fullmatch(between)):
            joined |= {index, index + 1}
    for index, match in enumerate(matches):
        before = text[max(0, match.start() - 40) : match.start()]
        if _LENGTH.match(text, match.end()):
            continue
        if index not in joined and not _DENIED.search(before) and not _HEDGED.search(before):
            yield _Number(float(match[0].replace(",", "")), *match.span())


def _rank(text: str, number: _Number) -> int:
    """Returns how clearly a text states a number as its answer."""
    before, after = text[max(0, number.start - 100) : number.start], text[number.end :][:60]
    if _OPERATOR.match(after):  # a part of a sum
        return _PLAIN_RANK
    if _FINAL_BEFORE.search(before):
        return _FINAL_RANK
    if _ANSWER_BEFORE.search(before):
        return _ANSWER_RANK
    if _TOTAL_BEFORE.search(before) or (_TOTAL_AFTER.match(after) and not _LISTED.search(before)):
        return _TOTAL_RANK
    if _EQUALS.search(before):
        return _SUM_RANK
    if _LISTS.match(after):
        return _PLAIN_RANK
    if _AT_START.fullmatch(text, 0, number.start) and _ENDS.match(after):
        return _START_RANK
    return _HAS_RANK if _HAS.search(before) else _PLAIN_RANK
