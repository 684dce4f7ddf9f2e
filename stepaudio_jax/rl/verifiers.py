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
_YES, _NO = ("yes", "true", "是", "对"), ("no", "false", "不是", "不对", "否")
_PUNCTUATION = " \t\n.,;:!?\"'()[]。，！？；：“”"


def exact_text(reply: str, answer: str) -> bool:
    """The same words: capitals, white space and the punctuation around them do not matter."""
    return _plain(reply) == _plain(answer)


def number(reply: str, answer: str) -> bool:
    """The last number in the reply is the answer; 1,000 is 1000, and 2.50 is 2.5."""
    found = _NUMBER.findall(reply)
    return bool(found) and _value(found[-1]) == _value(answer)


def choice(reply: str, answer: str) -> bool:
    """The last letter in the reply that stands alone, as B, (B) or B., is the answer."""
    found = _CHOICE.findall(reply)
    return bool(found) and found[-1] == answer.strip(_PUNCTUATION).upper()


def yes_or_no(reply: str, answer: str) -> bool:
    """The reply begins with yes or with no (English or Chinese), and the answer with the same one."""
    said, right = _polarity(reply), _polarity(answer)
    return said is not None and said == right


def pattern(reply: str, answer: str) -> bool:
    """The answer is a regular expression, and all of the reply matches it."""
    return re.fullmatch(answer, reply.strip(), flags=re.DOTALL) is not None


VERIFIERS: Mapping[str, Verifier] = MappingProxyType(
    {"exact_text": exact_text, "number": number, "choice": choice, "yes_or_no": yes_or_no, "pattern": pattern}
)


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


def _value(text: str) -> float | None:
    match = _NUMBER.fullmatch(text.strip(_PUNCTUATION))
    return None if match is None else float(match[0].replace(",", ""))


def _polarity(text: str) -> bool | None:
    said = _plain(text)
    for value, words in ((False, _NO), (True, _YES)):
        for word in words:
            if said == word or said.startswith((f"{word} ", f"{word},", f"{word}.", f"{word}，", f"{word}。")):
                return value
    return None
