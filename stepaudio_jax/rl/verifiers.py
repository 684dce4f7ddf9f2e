"""Rewards by rule: the answer is correct, the form is kept, the reply is not too long.

Answers are parsed by `stepaudio_jax.text.answers`, whose names are importable from here too.
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
"""(reply, answer of the record) -> score from 0 or False (wrong) to 1 or True (correct).

A function of the user's may be async: the replies of a step are then scored concurrently.
"""


def exact_text(reply: str, answer: str) -> bool:
    """Returns whether reply and answer are the same words.

    Capitals, white space, emphasis, surrounding punctuation, and the encoding or shape of
    characters do not matter.
    """
    return normalize_answer(reply) == normalize_answer(answer)


def number(reply: str, answer: str) -> bool:
    """Returns whether the reply's number (`read_number`) is the answer's, which may be a range."""
    return read_number(reply) == parse_answer_number(answer)


def choice(reply: str, answer: str) -> bool:
    """Returns whether the reply chooses the answer's option, by letter (`read_choice`) or text."""
    return matches_choice(reply, answer)


def yes_or_no(reply: str, answer: str) -> bool:
    """Returns whether the reply says yes where the answer does, and no where it does not.

    See `read_yes_or_no`; a reply that says neither is wrong.
    """
    is_yes = read_yes_or_no(reply)
    return is_yes is not None and is_yes == read_yes_or_no(answer)


def pattern(reply: str, answer: str) -> bool:
    """Returns whether the whole reply matches the answer, a regular expression."""
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
"""Finds what each of `VERIFIERS` compares with in an answer; None or an error without that."""


def check_answer(name: str, answer: str) -> None:
    """Checks that a reply can be correct: the answer is of the kind that the verifier compares.

    Answers of custom verifiers may be anything.

    Raises:
        ValueError: no reply can match the answer.
    """
    try:
        parsed = _ANSWER_PARSERS.get(name, str)(answer)
    except re.error as error:
        raise ValueError(f"the answer {answer!r} is no regular expression: {error}") from None
    if parsed is None:
        raise ValueError(
            f"no reply can be right: verifier={name!r} finds nothing to compare with in the answer "
            f"{answer!r}"
        )


def find_verifier(name: str) -> Verifier:
    """Returns a verifier by name, or a custom one by "module:function".

    Raises:
        ValueError: there is none of that name, or the function cannot be imported.
    """
    if name in VERIFIERS:
        return VERIFIERS[name]
    module, colon, function = name.partition(":")
    if not colon:
        raise ValueError(
            f"verifier={name!r} is none of {', '.join(VERIFIERS)}; write module:function for one "
            "of your own"
        )
    try:
        verifier = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"verifier={name!r}: {error}") from None
    if not callable(verifier):
        raise ValueError(f"verifier={name!r} is not a function")
    return verifier


def format_reward(reply: ParsedReply) -> float:
    """Returns 1 for a well-formed reply with a reasoning, else 0 (Step-Audio-R1, section 3.3)."""
    return float(reply.well_formed and bool(reply.reasoning.strip()))


def overlong_penalty(tokens: int, *, free_tokens: int, max_tokens: int) -> float:
    """Returns 0 up to `free_tokens` tokens, falling linearly to -1 at `max_tokens`.

    The soft overlong punishment of DAPO (Yu et al. 2025, eq. 13).

    Raises:
        ValueError: the limits are not in order.
    """
    if not 0 <= free_tokens < max_tokens:
        raise ValueError(
            f"free_tokens={free_tokens} must lie between 0 and max_tokens={max_tokens}"
        )
    return -min(max(tokens - free_tokens, 0) / (max_tokens - free_tokens), 1.0)
