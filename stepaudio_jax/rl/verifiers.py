"""Rewards that a program can tell: the answer is right, the form is kept, the reply is not too long.

Answers are read by `stepaudio_jax.text.answers`, whose names are here too.
"""

import importlib
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType

from stepaudio_jax.text import ParsedReply
from stepaudio_jax.text.answers import (
    NumberRange,
    matches_choice,
    normalize_answer,
    parse_answer_letter,
    parse_answer_number,
    read_choice,
    read_number,
    read_yes_or_no,
)

__all__ = [
    "VERIFIERS",
    "NumberRange",
    "Verifier",
    "check_answer",
    "choice",
    "exact_text",
    "find_verifier",
    "format_reward",
    "matches_choice",
    "normalize_answer",
    "number",
    "overlong_penalty",
    "parse_answer_letter",
    "parse_answer_number",
    "pattern",
    "read_choice",
    "read_number",
    "read_yes_or_no",
    "yes_or_no",
]

Verifier = Callable[[str, str], float]
"""(reply, answer of the record) -> 1 or True where the reply is right, down to 0 or False where nothing of it is."""


def exact_text(reply: str, answer: str) -> bool:
    """Returns whether reply and answer are the same words.

    Capitals, white space, emphasis, the punctuation around them, and how a character is encoded or
    shaped do not matter.
    """
    return normalize_answer(reply) == normalize_answer(answer)


def number(reply: str, answer: str) -> bool:
    """Returns whether the number that the reply gives (see `read_number`) is the one of the answer, which may be a range."""
    return read_number(reply) == parse_answer_number(answer)


def choice(reply: str, answer: str) -> bool:
    """Returns whether the reply chooses the option of the answer, by its letter (see `read_choice`) or by its text."""
    return matches_choice(reply, answer)


def yes_or_no(reply: str, answer: str) -> bool:
    """Returns whether the reply says the same of yes and no as the answer (see `read_yes_or_no`)."""
    said = read_yes_or_no(reply)
    return said is not None and said == read_yes_or_no(answer)


def pattern(reply: str, answer: str) -> bool:
    """The answer is a regular expression, and all of the reply matches it."""
    return re.fullmatch(answer, reply.strip(), flags=re.DOTALL) is not None


VERIFIERS: Mapping[str, Verifier] = MappingProxyType(
    {
        "exact_text": exact_text,
        "number": number,
        "choice": choice,
        "yes_or_no": yes_or_no,
        "pattern": pattern,
    }
)


_ANSWER_PARSERS: Mapping[str, Callable[[str], object]] = MappingProxyType(
    {
        "exact_text": lambda answer: normalize_answer(answer) or None,
        "number": parse_answer_number,
        "choice": parse_answer_letter,
        "yes_or_no": read_yes_or_no,
        "pattern": re.compile,
    }
)
"""What each of `VERIFIERS` looks for in an answer: None, or an error, where there is nothing of the kind."""


def check_answer(name: str, answer: str) -> None:
    """Checks that a reply can be right: that an answer is of the kind that a verifier compares with.

    Raises:
        ValueError: it is not, and why.
    """
    try:
        found = _ANSWER_PARSERS.get(name, str)(
            answer
        )  # what a verifier of the user's takes is not known
    except re.error as error:
        raise ValueError(f"the answer {answer!r} is no regular expression: {error}") from None
    if found is None:
        raise ValueError(
            f"no reply can be right: verifier={name!r} finds nothing to compare with in the answer {answer!r}"
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
        raise ValueError(
            f"verifier={name!r} is none of {', '.join(VERIFIERS)}; write module:function for one of your own"
        )
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


def overlong_penalty(tokens: int, *, free_tokens: int, max_tokens: int) -> float:
    """0 up to `free_tokens` tokens, then falling evenly to -1 at `max_tokens` (soft overlong punishment: Yu et al. 2025, eq. 13)."""
    if not 0 <= free_tokens < max_tokens:
        raise ValueError(
            f"free_tokens={free_tokens} must lie between 0 and max_tokens={max_tokens}"
        )
    return -min(max(tokens - free_tokens, 0) / (max_tokens - free_tokens), 1.0)
