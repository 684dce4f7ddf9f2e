"""Reads answers: choice letters, numbers, yes and no, exact text; None whenever it is not clear.

It serves the verifiers of reinforcement learning and the scoring of benchmarks. Options are read in
`answer_choices`, numbers in `answer_numbers`; `answer_markup` removes decoration first.
"""

import re
from collections.abc import Sequence

from stepaudio_jax.text.answer_choices import read_choice
from stepaudio_jax.text.answer_markup import (
    boxed_answers,
    normalize_answer,
    strip_markup,
    strip_reasoning,
)
from stepaudio_jax.text.answer_measures import NumberMatch, matches_number
from stepaudio_jax.text.answer_numbers import NumberRange, parse_answer_number, read_number
from stepaudio_jax.text.answer_options import strip_lead_in, words_only

__all__ = [
    "NumberMatch",
    "NumberRange",
    "matches_choice",
    "matches_number",
    "normalize_answer",
    "parse_answer_letter",
    "parse_answer_number",
    "read_choice",
    "read_number",
    "read_yes_or_no",
]

MAX_POLARITY_CHARACTERS = 200  # read to find a yes or a no
# No part of a longer word, no contraction, and not "yes/no".
_END_OF_WORD = r"(?![\w/]|'\w)"
_YES = re.compile(
    rf"(?:yes|yeah|yep|yup|true|indeed|absolutely|definitely|certainly|of course){_END_OF_WORD}"
    r"|是的|是|对的|对|對的|對|正确|没错|嗯|有的|有|会的|会|能|可以|当然|當然"
)
_NO = re.compile(
    rf"(?:no|nope|nah|false|not really|not at all|(?:absolutely|definitely|certainly"
    rf"|of course) not){_END_OF_WORD}"
    r"|不是的|不是|不对|不對|当然不是|并不是|并非|不正确|不会|不能|不可以|没有|沒有|没(?!错)|错误|错|否|不"
)
_PARTICLES = re.compile(r"(?:的|啊|呀|哦|喔|噢|哈|呢|了|滴|哒)*")
_BOUNDARY = re.compile(r"[\s\"')\]]*(?:$|\n|[^\w\s'/])")
_QUESTION = re.compile(r"[\s\"')\]]*(?:吗|嗎|么)?[?？]|(?:吗|嗎|吧)")
# After "no" without a comma: "No it is not" answers, "No problem", "No one", "No idea" do not.
_NO_GOES_ON = re.compile(
    r"\s+(?:it|he|she|they|there|this|that|these|those|the|an?|i|we|you|not|because"
    r"|since|as|definitely|absolutely|clearly|sir"
    r"|ma'?am|thanks|thank)\b"
)
_OTHER_WORD = re.compile(r"[\s\"'.,;:!\-|/(。，、；！…]*(?:(?:or|and)\b|/|或|还是|也)")
# `(B) A dog`, `B. A dog`, `b) a dog`, `B: A dog`, `B、狗叫`, `B - A dog`
_LABEL = re.compile(
    r"\s*(?:[(\[（【]\s*(?P<a>[A-Za-z])\s*[)\]）】][.:、：]?"
    r"|(?P<b>[A-Za-z])(?:[)）.:：、](?=\s|[^\x00-\x7f]|$)|[).:](?=[A-Z][a-z])"
    r"|\s+[-–—](?=\s)))\s*(?P<text>\S.*)?",
    re.DOTALL,
)
_ANSWER_IS = re.compile(
    r"(?:\b(?:answer|ans|conclusion|verdict)\b[^.\n!?;:]{0,40}?(?:\b(?:is|would be"
    r"|should be)\b|[:=\-]|'s)"
    r"|答案(?:应该)?(?:是|为|:)"
    r"|\b(?:so|therefore|thus|hence|i think|i believe|i would say|i'd say)\b)[\s:,\"'(\[]*(?=\w)"
)
_CHANGES = re.compile(r"\b(?:wait|actually|correction|sorry|on second thoughts?)\b|等等|其实|更正")


def read_yes_or_no(reply: str) -> bool | None:
    r"""Returns whether a reply says yes (True) or no (False); None if that is not clear.

    It counts as the first word, after "The answer is", "Answer:", 答案是, or in `\boxed{..}`: yes,
    no, true, false and the like, 是, 对, 没错, 有, 不是, 不对, 没有 with their particles (是的,
    不是的), within any emphasis, quotes or dashes. Unclear are questions ("Yes?", 是吗), both words
    ("yes or no"), words that only begin so ("Nobody", "No idea", 不知道, 对不起), and two answers
    that contradict each other without a change of mind ("wait").
    """
    answer_text = strip_reasoning(reply)
    if answer_text is None:
        return None
    marked = {_polarity(strip_markup(content).casefold()) for content in boxed_answers(answer_text)}
    if marked:
        return marked.pop() if len(marked) == 1 else None
    plain = strip_markup(answer_text).casefold()
    changed = list(_CHANGES.finditer(plain))
    polarities = [_polarity(plain.lstrip()[:MAX_POLARITY_CHARACTERS])]
    polarities += [
        _polarity(plain[match.end() : match.end() + MAX_POLARITY_CHARACTERS])
        for match in _ANSWER_IS.finditer(plain)
    ]
    if changed:
        after = _polarity(plain[changed[-1].end() : changed[-1].end() + MAX_POLARITY_CHARACTERS])
        if after is not None:
            return after
    values = {value for value in polarities if value is not None}
    return values.pop() if len(values) == 1 else None


def parse_answer_letter(answer: str) -> str:
    """Returns the letter of a record's answer: `B`, `b`, `(B)`, `B. A dog`, `(B) A dog barking`.

    Raises:
        ValueError: it has no letter, or it is not clear which.
    """
    labelled = _LABEL.match(answer)
    letter = (labelled["a"] or labelled["b"]).upper() if labelled else read_choice(answer)
    if letter is None:
        raise ValueError(
            f"the answer {answer!r} must have one letter, and has none that is clear;"
            " write B, (B), or (B) with "
            "the option's text"
        )
    return letter


def matches_choice(reply: str, answer: str, choices: Sequence[str | None] | None = None) -> bool:
    """Returns whether a reply chooses the option of an answer, by its letter or by its text.

    Args:
        reply: of a model.
        answer: with a letter, see `parse_answer_letter`; where `choices` are known, also an
        option's text.
        choices: the options' texts in the order of their letters. Of two with the same text, either
            letter is right.

    Raises:
        ValueError: the answer has no letter, and is none of the choices.
    """
    if choices is None:
        letter, text, chosen = (
            parse_answer_letter(answer),
            _text_of_answer(answer),
            read_choice(reply),
        )
        return chosen == letter or bool(text and _repeats_option(reply, text, loose=chosen is None))
    texts = [normalize_answer(choice or "") for choice in choices]
    right = {
        chr(ord("A") + index)
        for index, text in enumerate(texts)
        if text and text == normalize_answer(answer)
    }
    return read_choice(reply, choices) in (right or {parse_answer_letter(answer)})


def _text_of_answer(answer: str) -> str:
    """Returns the option's text behind the letter of an answer; "" for a letter alone."""
    match = _LABEL.match(answer)
    text = (match["text"] or "").strip() if match else ""
    return "" if len(text) == 1 and text.isascii() and text.isalpha() else text


def _repeats_option(reply: str, text: str, *, loose: bool) -> bool:
    """Returns whether a reply is only an option's text: "The answer is a dog barking"."""
    answer_text = strip_reasoning(reply)
    if answer_text is None:
        return False
    contents = [strip_markup(content) for content in boxed_answers(answer_text)]
    if not contents:
        plain = strip_markup(answer_text)
        return any(
            _texts_match(text, candidate, loose=loose)
            for candidate in (plain, strip_lead_in(plain))
        )
    return all(_texts_match(text, content, loose=loose) for content in contents)


def _texts_match(text: str, other: str, *, loose: bool) -> bool:
    """Returns whether two texts are equal; if `loose`, separators between words do not count."""
    return normalize_answer(text) == normalize_answer(other) or (
        loose and " " in words_only(text) and words_only(text) == words_only(other)
    )


def _polarity(text: str) -> bool | None:
    """Returns whether a text, in small letters, begins with yes or no."""
    start = re.search(r"[^\W_]", text)
    if not start:
        return None
    answer_text = text[start.start() :]
    for value, words in ((False, _NO), (True, _YES)):
        match = words.match(answer_text)
        if not match:
            continue
        end = match.end()
        if not match[0].isascii():
            while answer_text.startswith(match[0], end):  # 不不不, 对对
                end += len(match[0])
            end = _PARTICLES.match(answer_text, end).end()  # type: ignore[union-attr]
        after = answer_text[end:]
        if _QUESTION.match(after) or _OTHER_WORD.match(after):
            return None
        if not _BOUNDARY.match(after) and not (match[0].isascii() and _goes_on(match[0], after)):
            continue
        return value if _following_polarity(after) in (None, value) else None
    return None


def _goes_on(word: str, after: str) -> bool:
    """Returns whether a word is an answer though another follows without comma: "Yes it is"."""
    if word in ("yes", "yeah", "yep", "yup"):
        return bool(re.match(r"\s+(?!if\b|man\b)", after))
    return word in ("no", "nope", "nah") and bool(_NO_GOES_ON.match(after))


def _following_polarity(after: str) -> bool | None:
    """Returns what the word right after the first one says: "Yes, no" says both."""
    following = re.match(r"[\s\"'.,;:!\-|(。，、；！…]*(.*)", after, re.DOTALL)
    answer_text = following[1] if following else ""
    for value, words in ((False, _NO), (True, _YES)):
        match = words.match(answer_text)
        if match and _BOUNDARY.match(answer_text[match.end() :]):
            return value
    return None
