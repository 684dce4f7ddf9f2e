"""Finds the option that a short reply gives in other words: "growling" for "A dog growling"."""

import re
from collections.abc import Callable, Mapping, Sequence

from stepaudio_jax.text.answer_markup import normalize_answer, unify_characters

MAX_WORDS = 8  # of a reply that is compared word by word
MAX_INSERTED = 2  # words of a reply between those of an option

_FILLERS = frozenset(
    (
        *("a", "an", "the", "of", "to", "in", "on", "at", "by", "with", "for", "from", "and", "is"),
        *("are", "was", "were", "be", "being", "it", "its", "there", "this", "that", "some", "s"),
        *("he", "she", "they", "his", "her", "their", "i", "hear", "think", "sounds", "like"),
    )
)
# Words that turn a statement around, or say that nothing is decided.
_TURNS = frozenset(
    (
        *("not", "no", "never", "neither", "nor", "none", "nothing", "without", "except", "but"),
        *("all", "both", "any", "each", "either", "or", "if", "whether", "maybe", "perhaps"),
        *("cannot", "can", "could", "might", "may", "unclear", "unsure", "know", "sorry", "than"),
        *("less", "more", "almost", "nearly", "over", "under", "before", "after", "instead"),
        *("rather", "only", "too", "t", "don", "doesn", "isn", "wasn", "wrong", "false", "true"),
        *("yes", "other", "another", "same", "different"),
    )
)
# A list in which the order of the parts does not matter.
_AND = re.compile(r"\s+and\s+|\s*&\s*|[和与跟及、]|以及", re.IGNORECASE)
_IN_ORDER = re.compile(
    r"\b(?:then|first|second|third|before|after|next|last|finally|followed|from|to)\b|先|再|然后|之后|接着"
    r"|从|到",
    re.IGNORECASE,
)
_MAX_LIST_CHARACTERS = 80


def option_in_other_words(text: str, text_by_letter: Mapping[str, str]) -> str | None:
    """Returns the letter of the only option that a short reply comes close to; None otherwise.

    It does where, up to endings (barks, barking) and words that say little (a, the, with), the
    reply has some of the option's words in their order, and no others ("growling"); or where it has
    all of them in order and at most two others between ("at a birthday party" for "At a party").
    Digits and words that turn a statement around are no such difference.

    Args:
        text: of the reply, without what leads in.
        text_by_letter: the options' texts.
    """
    words = _words(text)
    if not 0 < len(words) <= MAX_WORDS or any(char.isdigit() for char in text) or "?" in text:
        return None
    if _TURNS.intersection(words):
        return None
    stems = _stems(words)
    letter = _only_option(text_by_letter, lambda option: stems == _stems(_words(option)))
    letter = letter or _only_option(text_by_letter, lambda option: _is_part(stems, option))
    if letter is not None:
        return letter
    foreign = {word for option in text_by_letter.values() for word in _words(option)}
    return _only_option(
        text_by_letter,
        lambda option: _has_all(words, _words(option)) and not _extra(words, option) & foreign,
    )


def option_in_other_order(text: str, text_by_letter: Mapping[str, str]) -> str | None:
    """Returns the letter of the only option that is the same list: "apples and pears"; or None.

    Args:
        text: of the reply, without what leads in.
        text_by_letter: the options' texts.
    """
    return _only_option(text_by_letter, lambda option: _is_same_list(text, option))


def _only_option(text_by_letter: Mapping[str, str], is_close: Callable[[str], bool]) -> str | None:
    """Returns the first letter of the close options, where these all have the same text."""
    close = [letter for letter, option in text_by_letter.items() if is_close(option)]
    texts = {normalize_answer(text_by_letter[letter]) for letter in close}
    return close[0] if len(texts) == 1 else None


def _is_part(stems: Sequence[str], option: str) -> bool:
    """Returns whether some words of an option, in their order, are all that a reply has."""
    return bool(stems) and _is_subsequence(stems, _stems(_words(option)))


def _has_all(words: Sequence[str], option: Sequence[str]) -> bool:
    """Returns whether a reply has all words of an option in order, and few others."""
    has_meaning = any(word not in _FILLERS for word in option)
    is_near = len(words) - len(option) <= MAX_INSERTED
    return has_meaning and is_near and _is_subsequence(option, words)


def _extra(words: Sequence[str], option: str) -> set[str]:
    return set(words) - set(_words(option)) - _FILLERS


def _is_same_list(text: str, option: str) -> bool:
    if len(text) > _MAX_LIST_CHARACTERS or _IN_ORDER.search(text) or _IN_ORDER.search(option):
        return False
    parts, others = (
        {normalize_answer(part) for part in _AND.split(unify_characters(each))}
        for each in (text, option)
    )
    return len(parts) > 1 and parts == others


def _is_subsequence(part: Sequence[str], words: Sequence[str]) -> bool:
    remaining = iter(words)
    return all(word in remaining for word in part)


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", unify_characters(text).casefold())


def _stems(words: Sequence[str]) -> list[str]:
    return [_stem(word) for word in words if word not in _FILLERS]


def _stem(word: str) -> str:
    """Returns a word without an English ending: barks, barked and barking are bark."""
    for ending in ("ing", "ed", "es", "s"):
        stem = word.removesuffix(ending)
        if stem != word and len(stem) > 2:
            return stem[:-1] if len(stem) > 3 and stem[-1] == stem[-2] else stem.removesuffix("e")
    return word.removesuffix("e") if len(word) > 3 else word
