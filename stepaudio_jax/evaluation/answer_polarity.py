"""Reads yes or no, and valid or invalid, also where a reply only says what they mean."""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Literal

from stepaudio_jax.text.answer_markup import boxed_answers, strip_markup, strip_reasoning
from stepaudio_jax.text.answers import read_yes_or_no

Question = Literal["return", "truth"]
"""What a yes means: that one returns to the start, or that somebody tells the truth."""

_CLAUSE = r"[^.,;:!?\n，。；：！？]"
_CHANGES = re.compile(
    r"\b(?:wait|actually|correction|sorry|on second thoughts?|final(?:ly)?|after checking|hence"
    r"|so|therefore|thus|in conclusion|overall|instead|but)\b|等等|其实|更正|因此|所以|最终"
)
_ANSWER_IS = re.compile(
    r"(?:\b(?:answer|conclusion|verdict)\b[^.\n!?;]{0,40}?(?:\b(?:is|would be|should be)\b|[:=\-])"
    r"|\b(?:therefore|thus|hence|so)\b|答案(?:应该)?[是为:]|所以|因此)"
    rf"{_CLAUSE}{{0,60}}$"
)
_STARTS = re.compile(r"[\W_]*$")

_VALIDITY = re.compile(
    r"(?<![a-z-])(?P<no>in-?|un-?)?valid(?:ly)?(?![a-z])|(?P<not>无|無)效|有效|(?P<un>不)?成立"
)
_BOTH = re.compile(
    r"(?<![a-z])(?:in)?valid\W{0,3}(?:\s*(?:or|and|nor|versus|vs|还是|或)\b|/)\W{0,3}"
    r"(?:deductively\s+)?(?:in)?valid(?![a-z])|有效(?:还是|或者?|与|和)无效|成立(?:还是|与|或)不成立"
)
_NOT = re.compile(
    rf"(?:\b(?:not(?! only| just| merely| simply)|cannot|never|no|nor|neither|hardly|isn't|aren't"
    rf"|fails to be|far from)\b|n't\b)(?:\s+[\w-]+){{0,4}}?\s*(?:\b(?:an?|be|as)\s+)?$"
    rf"|(?:不是|并非|并不|不能算|不算|不具|不|没有){_CLAUSE}{{0,4}}$"
)
_DOUBT = re.compile(
    r"\b(?:if|whether|would|could|might|may|(?<!fails )to be|know|sure|decide|determine|question"
    rf"|unclear|when|considered)\b{_CLAUSE}{{0,60}}$|(?:是否|如果|假如|不知道|不确定){_CLAUSE}{{0,20}}$"
)
_DOUBT_AFTER = re.compile(
    r"\s*(?:arguments\b|argument\s+(?:would|must|needs?|requires?|is one|has to)\b)"
    r"|\s*(?:argument\s+)?(?:\?|\b(?:if|when|only if|provided|iff)\b)|吗"
)
_FOLLOWS = re.compile(
    rf"\bconclusion\b{_CLAUSE}{{0,60}}?\b(?P<not>not|n't|cannot|never|can't|doesn't|don't)?\s*"
    rf"(?:\w+\s+){{0,4}}?(?:follows?|deduced|derived|inferred|entailed|guaranteed|supported)\b"
    rf"|\bpremises\b{_CLAUSE}{{0,30}}?\b(?P<nor>not|n't|cannot|never|don't)?\s*(?:\w+\s+){{0,3}}?"
    r"(?:entail|imply|guarantee|support|prove|lead to|establish)\b"
    r"|结论(?P<un>并?不|无法|没有)?(?:能够?|可以)?(?:从前提)?(?:中)?(?P<un2>不)?(?:推出|得出|推导)"
)
_NOT_WITHIN = re.compile(r"\b(?:not|cannot|never)\b|n't\b|不|无法|没")
_FALLACY = re.compile(
    r"\b(?:non[ -]sequitur|fallacious|logically unsound|(?:commits?|is) an? (?:\w+\s+)*fallacy)\b"
)

_WORD = re.compile(r"\b(yes|no)\b")
_NOT_BUT = re.compile(
    r"\W*(?:it(?:'s| is)\s+|the answer is\s+)?not\s+\W?(?P<denied>yes|no)\b\W*"
    r"(?:it(?:'s| is)\s+|but\s+(?:rather\s+)?|rather\s+)?\W?(?P<value>yes|no)\b"
)
_REPLIES = re.compile(
    r"\b(?:(?:answer|say|respond|reply|conclude)(?:\s+with)?(?:\s+an?)?(?:\s+\w+)?"
    r"|(?:it's|that's|it is|that is|this is)\s+an?(?:\s+\w+)?)\s+\W?(?P<value>yes|no)\b"
)
_SENTENCES = re.compile(r"(?<=[.!?。！？])\s*|\n+")
_START = (
    r"(?:start(?:ing)?\b|origin\b|original (?:position|point|place)|(?:you|i|we) (?:began|started)"
    r"|back\b|beginning)"
)
_RETURNS = re.compile(
    r"\breturn(?:s|ed|ing)?\b|\b(?:brings?|leads?|end(?:s|ed)?(?: up)?|finish(?:es|ed)?|comes?"
    rf"|gets?|arrives?|are|is|am|'re|be|land|wind up|stand)\b{_CLAUSE}{{0,40}}?{_START}"
    r"|(?:回到|返回)\S{0,4}(?:起点|原点|原处|原地|出发点|原来的?位置)"
)
_AWAY = re.compile(
    rf"\b(?:steps?|blocks?|meters?|units?|away|short|off|distant|far|differs?|different)\b"
    rf"{_CLAUSE}{{0,40}}?\b(?:from|of|past|beyond|behind)\b{_CLAUSE}{{0,20}}?{_START}"
    r"|\b(?:a different|another) (?:place|point|location|position|spot)\b"
)
_ZERO = re.compile(r"\b(?:0|zero|no) steps?\b")
_TRUTH = re.compile(
    r"\b(?P<true>tell(?:s|ing)? the truth|truthful|honest|truth-?teller)\b"
    r"|\b(?:lies?|lying|liar|lied|dishonest|untruthful)\b"
    r"|(?P<honest>[说讲](?:的是|的)?(?:真话|实话)|诚实)|说谎|撒谎|骗人"
)
# Who says what of whom, doubts, and questions: not what the reply itself holds to be true.
_NOT_SURE = re.compile(
    r"\b(?:says?|said|claims?|if|whether|who|not true|untrue|false|impossible|know|determine)\b"
    r"|[?？]|是否|不知道|无法"
)
_NEGATES = re.compile(r"(?:\b(?:not|never|cannot)\b|n't\b|不|没有?|并非)(?:\s*\w+){0,2}\s*$")


def read_validity(reply: str) -> bool | None:
    """Returns whether a reply calls an argument valid (True) or invalid; None if it is not clear.

    The words count, negated or not ("not invalid" is valid); without them, that a conclusion
    follows or does not. "Valid or invalid", conditions ("valid if") and doubts do not count. Of
    statements that contradict each other the last is taken where the reply says that it concludes
    or changes.
    """
    return _read(reply, _validity_mentions, _follows)


def read_polarity(reply: str, question: Question | None = None) -> bool | None:
    """Returns whether a reply says yes (True) or no; None if it is not clear.

    It is read by `text.read_yes_or_no` first. What that leaves open may be "not yes, but no", the
    only such word of a reply at the end of it, or what yes and no mean for the question.
    """
    value = read_yes_or_no(reply)
    visible = strip_reasoning(reply)
    if value is not None or visible is None:
        return value
    if boxed_answers(visible):
        return None
    text = strip_markup(visible).casefold()
    if (match := _NOT_BUT.match(text)) and match["denied"] != match["value"]:
        return match["value"] == "yes"
    words = _WORD.findall(text)
    if words:
        if len(set(words)) > 1:
            return None
        replies = _REPLIES.search(text)
        ends = _WORD.search(text.rstrip(" .!\"'*\n"), len(text.rstrip(" .!\"'*\n")) - 3)
        return words[0] == "yes" if replies or (ends and len(words) == 1) else None
    meaning = _MEANINGS[question] if question else None
    return None if meaning is None else meaning(text)


def _read(
    reply: str,
    mentions: Callable[[str], Iterator[tuple[bool, int, int]]],
    paraphrase: Callable[[str], bool | None],
) -> bool | None:
    visible = strip_reasoning(reply)
    if visible is None:
        return None
    boxes: set[bool | None] = set()
    for content in boxed_answers(visible):
        boxes |= {value for value, _, _ in mentions(strip_markup(content).casefold())} or {None}
    if boxes:
        return boxes.pop() if len(boxes) == 1 else None
    text = strip_markup(visible).casefold()
    stated = list(mentions(text))
    if not stated:
        return paraphrase(text)
    answers = [each for each in stated if _ANSWER_IS.search(text[max(0, each[1] - 120) : each[1]])]
    for chosen in (answers, stated):
        values = {value for value, _, _ in chosen}
        if len(values) == 1:
            return values.pop()
        if values:
            last = chosen[-1]
            other = [each for each in chosen if each[0] != last[0]][-1]
            return last[0] if _CHANGES.search(text, other[2], last[1]) else None
    return None


def _validity_mentions(text: str) -> Iterator[tuple[bool, int, int]]:
    """Yields (valid, start, end) of each place that calls an argument valid or invalid."""
    plain = _BOTH.sub(lambda match: " " * len(match[0]), text)
    for match in _VALIDITY.finditer(plain):
        before = plain[max(0, match.start() - 80) : match.start()]
        if _DOUBT.search(before) or _DOUBT_AFTER.match(plain, match.end()):
            continue
        value = not (match["no"] or match["not"] or match["un"])
        yield value != bool(_NOT.search(before)), *match.span()


def _follows(text: str) -> bool | None:
    """Returns whether a text says that the conclusion follows; None if it says neither."""
    values = set()
    for sentence in _SENTENCES.split(text):
        if sentence.rstrip().endswith("?") or re.search(r"\b(?:if|whether)\b|是否", sentence):
            continue
        if _FALLACY.search(sentence):
            values.add(bool(re.search(r"\bnot\b|n't\b|\bno\b", sentence)))
        elif match := _FOLLOWS.search(sentence):
            values.add(not _NOT_WITHIN.search(match[0]))
    return values.pop() if len(values) == 1 else None


def _returns(text: str) -> bool | None:
    """Returns whether the last sentence about it says that one is back at the start."""
    for sentence in reversed(_SENTENCES.split(text)):
        if sentence.rstrip().endswith(("?", "？")) or re.search(r"\b(?:if|whether)\b", sentence):
            continue
        if _AWAY.search(sentence):
            return bool(_ZERO.search(sentence))
        if match := _RETURNS.search(sentence):
            return not _NOT_WITHIN.search(sentence[max(0, match.start() - 20) : match.end()])
    return None


def _tells_truth(text: str) -> bool | None:
    """Returns whether the last sentence says that somebody tells the truth, and nobody else."""
    sentences = [sentence for sentence in _SENTENCES.split(text) if sentence.strip()]
    last = sentences[-1] if sentences else ""
    if _NOT_SURE.search(last):
        return None
    values = {
        bool(match["true"] or match["honest"])
        != bool(_NEGATES.search(last[max(0, match.start() - 24) : match.start()]))
        for match in _TRUTH.finditer(last)
    }
    return values.pop() if len(values) == 1 else None


_MEANINGS: Mapping[Question, Callable[[str], bool | None]] = {
    "return": _returns,
    "truth": _tells_truth,
}
