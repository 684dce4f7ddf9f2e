"""Rewards that a program can tell: the answer is right, the form is kept, the reply is not too long."""

import importlib
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType

from stepaudio_jax.text import ParsedReply

Verifier = Callable[[str, str], float]
"""(reply, answer of the record) -> 1 or True where the reply is right, down to 0 or False where nothing of it is."""

_NUMBER = re.compile(r"-?\d+(?:,\d{3})*(?:\.\d+)?")
_CHOICE = re.compile(r"(?<![A-Za-z])\(?([A-Z])\)?(?![A-Za-z'])")
_YES, _NO = ("yes", "true", "是的", "是", "对的", "对"), ("no", "false", "不是", "不对", "不", "否")
_PUNCTUATION = " \t\n.,;:!?\"'()[]。，！？；：“”"


def exact_text(reply: str, answer: str) -> bool:
    """The same words: capitals, white space and the punctuation around them do not matter."""
    return _plain(reply) == _plain(answer)


def number(reply: str, answer: str) -> bool:
    """The last number in the reply is the one in the answer; 1,000 is 1000, 2.50 is 2.5, and units do not matter."""
    found = _NUMBER.findall(reply)
    return bool(found) and _value(found[-1]) == _value(_only(_NUMBER, answer, "number"))


def choice(reply: str, answer: str) -> bool:
    """The last letter in the reply that stands alone, as B, (B) or B., is the one in the answer."""
    found = _CHOICE.findall(reply)
    return bool(found) and found[-1] == _chosen(answer)


def yes_or_no(reply: str, answer: str) -> bool:
    """The reply begins with yes or with no (English or Chinese), and the answer with the same one."""
    said = _polarity(reply)
    return said is not None and said == _polarity(answer)


def pattern(reply: str, answer: str) -> bool:
    """The answer is a regular expression, and all of the reply matches it."""
    return re.fullmatch(answer, reply.strip(), flags=re.DOTALL) is not None


VERIFIERS: Mapping[str, Verifier] = MappingProxyType(
    {"exact_text": exact_text, "number": number, "choice": choice, "yes_or_no": yes_or_no, "pattern": pattern}
)


_ANSWERS: Mapping[str, Callable[[str], object]] = MappingProxyType(
    {
        "exact_text": lambda answer: _plain(answer) or None,
        "number": lambda answer: _only(_NUMBER, answer, "number"),
        "choice": lambda answer: _chosen(answer),
        "yes_or_no": lambda answer: _polarity(answer),
        "pattern": re.compile,
    }
)
"""What each of `VERIFIERS` looks for in an answer: None, or an error, where there is nothing of the kind."""


def require_answer(name: str, answer: str) -> None:
    """Checks that a reply can be right: that an answer is of the kind that a verifier compares with.

    Raises:
        ValueError: it is not, and why.
    """
    try:
        found = _ANSWERS.get(name, str)(answer)  # what a verifier of the user's takes is not known
    except re.error as error:
        raise ValueError(f"the answer {answer!r} is no regular expression: {error}") from None
    if found is None:
        raise ValueError(f"no reply can be right: verifier={name!r} finds nothing to compare with in the answer {answer!r}")


def find_verifier(name: str) -> Verifier:
    """A verifier by name, or a function of the user's as "module:function".

    Raises:
        ValueError: there is none of that name, or the module or function cannot be found.
    """
    if name in VERIFIERS:
        return VERIFIERS[name]
    module, colon, function = name.partition(":")
    if not colon:
        raise ValueError(f"verifier={name!r} is none of {', '.join(VERIFIERS)}; write module:function for one of your own")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"verifier={name!r}: {error}") from None
    if not callable(found):
        raise ValueError(f"verifier={name!r} is not a function")
    return found


def format_reward(written: ParsedReply) -> float:
    """1 where the reply is of the form and has a reasoning that is not empty, else 0 (Step-Audio-R1, section 3.3)."""
    return float(written.well_formed and bool(written.reasoning.strip()))


def overlong_penalty(tokens: int, *, free: int, most: int) -> float:
    """0 up to `free` tokens, then falling evenly to -1 at `most` (soft overlong punishment: Yu et al. 2025, eq. 13)."""
    if not 0 <= free < most:
        raise ValueError(f"free={free} must lie between 0 and most={most}")
    return -min(max(tokens - free, 0) / (most - free), 1.0)


def _plain(text: str) -> str:
    return " ".join(text.strip(_PUNCTUATION).lower().split())


def _value(text: str) -> float:
    return float(text.replace(",", ""))


def _only(kind: re.Pattern[str], answer: str, name: str) -> str:
    """The one thing of its kind in an answer."""
    found: list[str] = kind.findall(answer)
    if len(found) != 1:
        raise ValueError(f"the answer {answer!r} must have one {name}, and has {len(found)}")
    return found[0]


def _chosen(answer: str) -> str:
    """The letter of an answer; one that is nothing else may be small."""
    bare = answer.strip(_PUNCTUATION)
    return bare.upper() if len(bare) == 1 and bare.isascii() and bare.isalpha() else _only(_CHOICE, answer, "letter")


def _polarity(text: str) -> bool | None:
    said = _plain(text)
    for value, words in ((False, _NO), (True, _YES)):
        if any(said == word or (said.startswith(word) and said[len(word)] in _PUNCTUATION) for word in words):
            return value
    return None
