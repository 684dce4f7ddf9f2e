"""Finds the option whose text a reply repeats: exactly, in a sentence, as number or ordinal."""

import functools
import re

from stepaudio_jax.text.answer_markup import normalize_answer, unify_characters
from stepaudio_jax.text.chinese_numerals import spell_chinese_digits
from stepaudio_jax.text.number_words import spell_digits
from stepaudio_jax.text.option_words import option_in_other_order, option_in_other_words

_IN_WORD = r"[0-9A-Za-z\u00c0-\u024f\u0370-\u04ff]"  # of a script that has spaces between words
_ORDINALS = {
    **{
        "first": 0,
        "second": 1,
        "third": 2,
        "fourth": 3,
        "fifth": 4,
        "sixth": 5,
        "seventh": 6,
        "eighth": 7,
    },
    **{"1st": 0, "2nd": 1, "3rd": 2, "4th": 3, "5th": 4, "6th": 5, "7th": 6, "8th": 7},
}
_CHINESE_DIGITS = {char: index % 8 for index, char in enumerate("一二三四五六七八12345678")}
_ORDINAL = re.compile(
    rf"\b({'|'.join(_ORDINALS)})\s+(?:option|choice|answer)\b|第\s*([一二三四五六七八1-8])\s*(?:个|項|项)"
)
_NUMBER = re.compile(rf"(?<!{_IN_WORD})(?<!\.)\d[\d,]*(?:\.\d+)?(?!{_IN_WORD})")
_LETTER_THEN_TEXT = re.compile(r"[\W_]*([A-Za-z])[\W_]+(.{1,400})", re.DOTALL)
_DENIED = re.compile(
    r"(?:\b(?:not|cannot|never|neither|nor|without|except|excluding|than|instead of"
    r"|opposed to|unlike|rule out|ruled out)\b"
    r"|n't\b|不是|并非|不选|排除|而非|没有|不会)(?:(?!\bbut\b|而是)[^.;!?\n。；])*$",
    re.IGNORECASE,
)
_DENIED_AFTER = re.compile(
    r"[\s\"']*(?:is|are|was|seems)\s+(?:\w+\s+){0,2}?(?:not|wrong|incorrect|false"
    r"|ruled out)\b|\s*(?:不对|错)"
)
_CHANGES = re.compile(
    r"\b(?:wait|actually|no|correction|on second thoughts?|so|hence|therefore|thus"
    r"|finally|in conclusion)\b"
    r"|不对|其实|所以|因此",
    re.IGNORECASE,
)
_LEAD_IN = re.compile(
    r"^[\s\"'(]*(?:(?:so|well|okay|ok|hmm|then|therefore|thus)\b[\s,]*)*"
    r"(?:(?:i (?:think|believe|guess|would say|hear|heard|choose|pick"
    r"|say)(?: that)?(?: (?:it is|it's|is))?"
    r"|(?:my|the)? ?(?:final |correct |right |best )*(?:answer|option|choice)(?: is|:| -)"
    r"|it is|it's|it was|this is|that is|there is|it must be|it sounds like)\b"
    r"|(?:我(?:认为|觉得|猜)?)?(?:正确|最终|正确的)?答案(?:应该)?(?:是|为|:)|我?(?:应该)?选(?:择|项)?"
    r"|我?(?:认为|觉得)(?:应该)?是?|(?:应该)?是|我听到(?:的是)?)?[\s:\"'(-]*",
    re.IGNORECASE,
)


def strip_lead_in(text: str) -> str:
    """Returns what follows "The answer is", "I think it is" and the like at the start of a text."""
    return text[_LEAD_IN.match(text).end() :]  # type: ignore[union-attr]


def option_alone(plain: str, options: list[str]) -> str | None:
    """Returns the letter of the option that is all that a text has; None for none.

    Args:
        plain: the reply, see `strip_markup`.
        options: texts in the order of their letters; the first of equal ones is taken.
    """
    text_by_letter = _by_letter(options)
    for form in (normalize_answer, words_only, _joined_letters):
        by_form: dict[str, list[str]] = {}
        for letter, option in text_by_letter.items():
            by_form.setdefault(form(option), []).append(letter)
        for text in (plain, strip_lead_in(plain)):
            letters = by_form.get(form(text), []) if form(text) else []
            if (
                letters
                and len({normalize_answer(text_by_letter[letter]) for letter in letters}) == 1
            ):
                return letters[0]
    return None


def letter_and_text(plain: str, options: list[str]) -> str | None:
    """Returns the letter of a text that is one with its option's text, as "C, D" if C is D."""
    match = _LETTER_THEN_TEXT.fullmatch(strip_lead_in(plain))
    if match is None:
        return None
    letter = match[1].upper()
    option = _by_letter(options).get(letter)
    return letter if option and normalize_answer(option) == normalize_answer(match[2]) else None


def around_option_list(plain: str, options: list[str]) -> tuple[str, str] | None:
    """Returns what a reply says before and after it repeats all options; None where it does not."""
    text_by_letter = _by_letter(options)
    repeated = _options_in(plain, text_by_letter)
    if len(repeated) < max(len(text_by_letter), 2):
        return None
    pattern = _option_list(repeated)
    matches = list(pattern.finditer(plain)) if pattern is not None else []
    return (plain[: matches[0].start()], plain[matches[-1].end() :]) if matches else None


def option_within(plain: str, options: list[str]) -> str | None:
    """Returns the letter of the option that a text names among other words; None if unclear.

    In this order: an option that is the same list in another order; the only option whose text is
    there and not denied; an option's number, in digits or words; "the third option"; an option in
    nearly the same words, see `option_words`.

    Args:
        plain: the reply, see `strip_markup`.
        options: texts in the order of their letters; the first of equal ones is taken.
    """
    text_by_letter = _by_letter(options)
    text = strip_lead_in(plain)
    listed = option_in_other_order(text, text_by_letter)
    within = listed or _option_within(plain, text_by_letter)
    if within is not None:
        return within or None
    named = (
        _option_by_number(plain, text_by_letter)
        or letter_by_ordinal(plain)
        or option_in_other_words(text, text_by_letter)
    )
    return named if named in text_by_letter else None


def _by_letter(options: list[str]) -> dict[str, str]:
    return {chr(ord("A") + index): option for index, option in enumerate(options) if option.strip()}


def _option_within(plain: str, text_by_letter: dict[str, str]) -> str | None:
    """Returns the only option whose text is there, not denied; "" for several, None for none."""
    text = unify_characters(plain)
    any_option = _any_option(_options_in(text, text_by_letter))
    spans = (
        [(*match.span(), str(match.lastgroup)) for match in any_option.finditer(text)]
        if any_option is not None
        else []
    )
    asserted = [span for span in spans if not _is_denied(text, span)]
    if not asserted:
        return "" if spans else None
    last = asserted[-1]
    same = normalize_answer(text_by_letter[last[2]])
    others = [span for span in asserted if normalize_answer(text_by_letter[span[2]]) != same]
    if others and not _CHANGES.search(text, others[-1][1], last[0]):
        return ""
    return min(
        letter for letter, option in text_by_letter.items() if normalize_answer(option) == same
    )


def _options_in(text: str, text_by_letter: dict[str, str]) -> tuple[tuple[str, str], ...]:
    """Returns the letters and texts of the options that may be in a text: it has their words.

    Looking for these alone is much faster than compiling what finds any option.
    """
    plain = re.sub(r"[\W_]+", "", text).casefold()
    return tuple(
        (letter, option)
        for letter, option in text_by_letter.items()
        if re.sub(r"[\W_]+", "", unify_characters(option)).casefold() in plain
    )


@functools.lru_cache(maxsize=256)
def _any_option(options: tuple[tuple[str, str], ...]) -> re.Pattern[str] | None:
    """Returns what finds any option's text, the longest first, in a group named by its letter."""
    patterns = {letter: pattern for letter, option in options if (pattern := _pattern(option))}
    longest_first = sorted(patterns, key=lambda letter: len(patterns[letter]), reverse=True)
    groups = "|".join(f"(?P<{letter}>{patterns[letter]})" for letter in longest_first)
    return re.compile(groups, re.IGNORECASE) if groups else None


@functools.lru_cache(maxsize=256)
def _option_list(options: tuple[tuple[str, str], ...]) -> re.Pattern[str] | None:
    """Returns what finds all options with their letters, one after the other."""
    lines = [
        rf"{letter}[\W_]{{1,8}}{words}" for letter, option in options if (words := _pattern(option))
    ]
    if len(lines) < 2 or len(lines) < len(options):
        return None
    return re.compile(rf"(?<!{_IN_WORD})" + r"[\W_]{1,16}".join(lines), re.IGNORECASE)


def _pattern(option: str) -> str:
    """Returns what finds an option's text among other words, whatever stands between its own."""
    words = re.findall(r"[^\W_]+", unify_characters(option))
    if not words:
        return ""
    # Chinese has no spaces around a word, other texts do; a word of theirs may stand in Chinese.
    before = rf"(?<!{_IN_WORD})" if words[0][0].isascii() else ""
    after = rf"(?!{_IN_WORD})" if words[-1][-1].isascii() else ""
    return before + r"[\W_]{1,8}".join(map(re.escape, words)) + after


def _is_denied(text: str, span: tuple[int, int, str]) -> bool:
    start, end, _ = span
    clause = re.split(r"[.;!?\n。；]|,\s*(?:so|but|it|this)\b", text[max(0, start - 160) : start])[
        -1
    ]
    return bool(_DENIED.search(clause) or _DENIED_AFTER.match(text[end : end + 60]))


def _option_by_number(plain: str, text_by_letter: dict[str, str]) -> str | None:
    numbers = _numbers(plain)
    letters = [
        letter
        for letter, option in text_by_letter.items()
        if len(numbers) == 1 and _numbers(option) == numbers
    ]
    return (
        letters[0]
        if len(letters) == 1
        or len({normalize_answer(text_by_letter[letter]) for letter in letters}) == 1
        else None
    )


def _numbers(text: str) -> list[str]:
    """Returns the numbers of a text, digits or words: `$1,500` is 1500, and ten is 10."""
    spelled = spell_chinese_digits(spell_digits(unify_characters(text)))
    return [number.replace(",", "") for number in _NUMBER.findall(spelled)]


def letter_by_ordinal(plain: str) -> str | None:
    """Returns the letter of "the third option", 第三个选项; None for no or several such phrases."""
    text = plain.lower()
    if re.search(
        r"\b(?:not|neither|nor|wrong|incorrect|false|than)\b|n't\b|\brul|elimin|不是|不选|不对|排除|\?",
        text,
    ):
        return None
    places = {
        _ORDINALS[match[1]] if match[1] else _CHINESE_DIGITS.get(match[2], 0)
        for match in _ORDINAL.finditer(text)
    }
    return chr(ord("A") + places.pop()) if len(places) == 1 else None


def words_only(text: str) -> str:
    """Returns the words of a text, in lower case, with single spaces between them."""
    return " ".join(re.findall(r"[^\W_]+", unify_characters(text).casefold()))


def _joined_letters(text: str) -> str:
    """Returns a word that is written letter by letter, B E N G A L I, or in one; "" for others."""
    words = words_only(text).split()
    if len(words) > 2 and all(len(word) == 1 for word in words):
        return "".join(words)
    return words[0] if len(words) == 1 else ""
