"""Rewrites Chinese numerals as digits: 二百零六 is 206, 百分之三十五 is 35%, 三分之二 is 2/3."""

import re

_DIGITS = {char: value for value, char in enumerate("零一二三四五六七八九")}
_DIGITS |= {"〇": 0, "两": 2, "兩": 2}
_SCALES = {"十": 10, "百": 100, "千": 1000}
_MYRIADS = {"万": 10**4, "萬": 10**4, "亿": 10**8, "億": 10**8}
_MAX_CHARACTERS = 40  # of one number

_DIGIT = f"[{''.join(_DIGITS)}]"
_NUMERAL = (
    rf"[{''.join((*_DIGITS, *_SCALES, *_MYRIADS))}]{{1,{_MAX_CHARACTERS}}}"
    rf"(?:点{_DIGIT}{{1,{_MAX_CHARACTERS}}})?"
)
_NUMBER = re.compile(
    rf"百分之(?P<percent>{_NUMERAL})|(?P<divisor>{_NUMERAL})分之(?P<dividend>{_NUMERAL})"
    rf"|(?<![第周期\d.])(?P<number>{_NUMERAL})"
)
# Words that have a numeral in them and are no numbers: "in case", "very", "together".
_WORD = re.compile(
    r"万一|十分(?!之|钟)|千万(?=[不别要])|(?<=[统唯])一|一(?=[样起些定直般旦边致切下会])"
)
# What a number of one character must stand before, if another Chinese character follows it.
_MEASURES = frozenset(
    "个個只小元块角分米克斤吨升秒天日年月岁次人张本支枚条台辆件头匹颗棵名位种座公千厘毫平立度倍页"
    "层步组排行列杯瓶箱袋盒包朵把双对套间站美英"
)
_BEFORE_ANSWER = ("是", "为", "：", ":", "得", "等于")


def spell_chinese_digits(text: str) -> str:
    """Returns a text in which Chinese numerals are digits.

    Ordinals (第一) and words that only have a numeral in them (一起, 万一) stay. A numeral of one
    character is a number where it ends the text or a clause, before a measure word (三个), or after
    是 and the like.
    """
    return _NUMBER.sub(_digits, text)


def _digits(match: re.Match[str]) -> str:
    if match["percent"]:
        return f"{_value(match['percent'])}%"
    if match["divisor"]:
        return f"{_value(match['dividend'])}/{_value(match['divisor'])}"
    numeral, text = match["number"], match.string
    if any(
        match.start() <= word.start() < match.end()
        for word in _WORD.finditer(text, max(match.start() - 1, 0), match.end() + 2)
    ):
        return numeral
    following = text[match.end() : match.end() + 1]
    is_chinese = "\u4e00" <= following <= "\u9fff"
    if len(numeral) == 1 and is_chinese and following not in _MEASURES:
        before = text[max(match.start() - 2, 0) : match.start()]
        return _value(numeral) if before.endswith(_BEFORE_ANSWER) else numeral
    return _value(numeral)


def _value(numeral: str) -> str:
    """Returns a numeral in digits: 二百零六, 二零二四, 三点一四."""
    whole, _, decimals = numeral.partition("点")
    if all(char in _DIGITS for char in whole):
        value = int("".join(str(_DIGITS[char]) for char in whole))
    else:
        total = section = digit = 0
        for char in whole:
            if char in _DIGITS:
                digit = _DIGITS[char]
            elif char in _SCALES:
                section += (digit or 1) * _SCALES[char]
                digit = 0
            else:
                total = (total + section + digit or 1) * _MYRIADS[char]
                section = digit = 0
        value = total + section + digit
    places = "".join(str(_DIGITS[char]) for char in decimals)
    return f"{value}.{places}" if places else str(value)
