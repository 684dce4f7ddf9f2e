"""Numbers in words: tables, and every number that a second implementation spells."""

import random
import re

import pytest

from stepaudio_jax.text.chinese_numerals import spell_chinese_digits
from stepaudio_jax.text.number_words import spell_digits

UNITS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen"),
    "nineteen",
)
TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
CHINESE = "零一二三四五六七八九"

ENGLISH = {
    "Minus twenty-two point four two.": "Minus 22.42.",
    "one hundred and one": "101",
    "one thousand, nine hundred and ninety-two": "1992",
    "nineteen ninety": "1990",
    "twenty twenty-four": "2024",
    "nineteen oh five": "1905",
    "twenty five": "25",
    "eleven hundred": "1100",
    "a hundred and five": "105",
    "a million": "1000000",
    "a dozen eggs": "12 eggs",
    "two dozen": "24",
    "half a dozen": "6",
    "three eighths": "3/8",
    "one-third": "1/3",
    "two and a half": "2 1/2",
    "two and three quarters": "2 3/4",
    "point five": "0.5",
    "twelve point oh five": "12.05",
    "five hundred and six thousand": "506000",
    "one zero one": "101",
    "six and eight make fourteen": "6 and 8 make 14",
    "four, five, nine": "4, 5, 9",
    "thirty-five percent": "35 percent",
    "five-minute": "5-minute",
    "One.": "1.",
    "no one knows": "no one knows",
    "this one": "this one",
    "one of them has five": "one of them has 5",
    "the second half": "the second half",
    "twenty-third": "twenty-third",
    "the third": "the third",
    "hundreds": "hundreds",
    "someone, bone, weight, often": "someone, bone, weight, often",
    "": "",
}
CHINESE_TEXTS = {
    "答案是十四": "答案是14",
    "三千二百零六点四一": "3206.41",
    "负五": "负5",
    "两百": "200",
    "一万二千三百四十五": "12345",
    "一亿": "100000000",
    "百分之三十五": "35%",
    "三分之二": "2/3",
    "一共十四个": "一共14个",
    "二零二四年": "2024年",
    "三个苹果": "3个苹果",
    "答案：五": "答案：5",
    "先算第一步": "先算第一步",
    "一起": "一起",
    "万一": "万一",
    "十分好": "十分好",
    "千万不要": "千万不要",
    "一定是九": "一定是9",
}


def spelled(number):
    """An independent speller of whole numbers, without "and"."""
    for value, scale in ((10**9, "billion"), (10**6, "million"), (1000, "thousand")):
        if number >= value:
            rest = f" {spelled(number % value)}" if number % value else ""
            return f"{spelled(number // value)} {scale}{rest}"
    if number >= 100:
        rest = f" {spelled(number % 100)}" if number % 100 else ""
        return f"{UNITS[number // 100]} hundred{rest}"
    if number < 20:
        return UNITS[number]
    return TENS[number // 10] + (f"-{UNITS[number % 10]}" if number % 10 else "")


def spelled_in_chinese(number):
    """An independent speller of numbers below ten thousand."""
    digits = [int(digit) for digit in f"{number:04d}"]
    text = ""
    for digit, scale in zip(digits, ("千", "百", "十", ""), strict=True):
        if digit:
            text += CHINESE[digit] + scale
        elif text and not text.endswith("零"):
            text += "零"
    return text.rstrip("零") or "零"


@pytest.mark.parametrize(("text", "digits"), ENGLISH.items())
def test_english_numbers_become_digits(text, digits):
    assert spell_digits(text) == digits


@pytest.mark.parametrize(("text", "digits"), CHINESE_TEXTS.items())
def test_chinese_numerals_become_digits(text, digits):
    assert spell_chinese_digits(text) == digits


def test_every_spelled_number_is_read_back():
    rng = random.Random(3)
    numbers = [*range(1001), *(rng.randrange(10 ** rng.randint(3, 12)) for _ in range(1000))]
    assert [spell_digits(spelled(number)) for number in numbers] == list(map(str, numbers))
    with_and = [
        re.sub("hundred (?!thousand|million|billion)", "hundred and ", spelled(number))
        for number in numbers
    ]
    assert [spell_digits(text) for text in with_and] == list(map(str, numbers))
    small = range(10_000)
    in_chinese = [spell_chinese_digits(spelled_in_chinese(number)) for number in small]
    assert in_chinese == list(map(str, small))
