"""Finds where a text asserts words that describe voices and sounds, in Chinese and English.

The words of a dimension stand for concepts; what a text denies ("不是女性", "没有笑声"), asks or
cannot tell does not count.
"""

import dataclasses
import functools
import pathlib
import re
from collections.abc import Mapping, Sequence

from stepaudio_jax.text.answer_markup import unify_characters

_WORDS_FILE = pathlib.Path(__file__).with_name("voice_terms.txt")
_OTHER = "-"  # the concept of words that are none of the dimension
_ENGLISH = re.compile(r"[a-z]")

_NOT = r"(?:而不是|并不是|不是|并非|而非|不算|不属于|不像|没有|没|无|未|不|非|排除|缺乏|缺少)"
_BETWEEN = (
    r"(?:明显|任何|什么|太|很|那么|这么|特别|怎么|十分|非常|听到|听见|出现|发出|是|的|地|一个|一位|一名"
    r"|显得|那种|这种|属于|表现出|其他|其它|说话者|说话人|声音|能|会)"
)
_DENIED = re.compile(
    rf"(?:{_NOT}{_BETWEEN}{{0,4}}"
    r"|(?:无法|难以|不能|很难|没法|不好|不易)(?:准确|确切|明确)?(?:判断|确定|分辨|区分|听出|识别)"
    r"[^，。；,.;]{0,10}"
    r"|(?:不确定|不清楚|不知道|听不出|看不出|判断不了|是否|是不是)[^，。；,.;]{0,10}"
    r"|\b(?:not|no|without|never|neither|nor|unlikely|rather than|instead of)\b"
    r"(?:\s+[\w-]+){0,3}\s*"
    r"|n't\b(?:\s+[\w-]+){0,3}\s*)$"
)
_OR = re.compile(r"[\s的声音性]*(?:或者|或是|或|还是|抑或|/|\bor\b)[\s是]*(?:an?\s+|the\s+)?")


@dataclasses.dataclass(frozen=True)
class Mention:
    """Locates a word in a text.

    Attributes:
        concepts: what it may stand for.
        start, end: of the word.
        is_alternative: whether the text joins it to another word by "or".
    """

    concepts: frozenset[str]
    start: int
    end: int
    is_alternative: bool = False


def find_terms(text: str, dimension: str) -> list[Mention]:
    """Returns the words of a dimension that a text asserts, in order.

    Args:
        text: without markup; Chinese or English.
        dimension: of `read_terms`.
    """
    plain = unify_characters(text).casefold()
    pattern, concepts = _compiled(dimension)
    matches = [
        match for match in pattern.finditer(plain) if _OTHER not in concepts[str(match.lastgroup)]
    ]
    mentions = []
    for index, match in enumerate(matches):
        before = plain[max(0, match.start() - 40) : match.start()]
        if _DENIED.search(before):
            continue
        neighbours = []
        if index:
            neighbours.append(plain[matches[index - 1].end() : match.start()])
        if index + 1 < len(matches):
            neighbours.append(plain[match.end() : matches[index + 1].start()])
        is_alternative = any(len(gap) < 16 and _OR.fullmatch(gap) for gap in neighbours)
        names = concepts[str(match.lastgroup)]
        mentions.append(Mention(names, match.start(), match.end(), is_alternative))
    return mentions


def is_denied(text: str, start: int) -> bool:
    """Returns whether a text denies, or cannot tell, what begins at `start`."""
    return _DENIED.search(text[max(0, start - 40) : start]) is not None


def covers_label(label: str, dimension: str) -> bool:
    """Returns whether the words of a dimension are all that a label consists of."""
    plain = unify_characters(label).casefold()
    for mention in reversed(find_terms(plain, dimension)):
        plain = plain[: mention.start] + plain[mention.end :]
    return plain != unify_characters(label).casefold() and not re.sub(
        r"[\W_]|型|声|的|类|性|音|着|地|感|式", "", plain
    )


@functools.cache
def read_terms() -> Mapping[str, Mapping[str, Sequence[str]]]:
    """Returns {dimension: {concept: its words}} from `voice_terms.txt`, which explains the form."""
    terms: dict[str, dict[str, Sequence[str]]] = {}
    dimension = ""
    for line in _WORDS_FILE.read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            dimension = line.strip("[]")
            terms[dimension] = {}
        elif line and not line.startswith("#"):
            concept, _, words = line.partition(": ")
            terms[dimension][concept] = words.split(", ")
    return terms


@functools.cache
def _compiled(dimension: str) -> tuple[re.Pattern[str], dict[str, frozenset[str]]]:
    """Returns the pattern of a dimension's words, a group for each, and their concepts."""
    by_word: dict[str, set[str]] = {}
    for concept, words in read_terms()[dimension].items():
        for word in words:
            by_word.setdefault(word, set()).add(concept)
    ordered = sorted(by_word, key=len, reverse=True)
    groups = [f"(?P<w{index}>{_word_pattern(word)})" for index, word in enumerate(ordered)]
    concepts = {f"w{index}": frozenset(by_word[word]) for index, word in enumerate(ordered)}
    return re.compile("|".join(groups)), concepts


def _word_pattern(word: str) -> str:
    if not _ENGLISH.search(word):
        return re.escape(word)
    parts = [
        re.escape(part.removesuffix("*")) + (r"[a-z-]*" if part.endswith("*") else "")
        for part in word.split()
    ]
    return rf"(?<![a-z])(?:{r'[ ]+'.join(parts)})(?![a-z])"
