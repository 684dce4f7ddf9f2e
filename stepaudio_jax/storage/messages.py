"""Words error messages: quotes values of users, which may be of any length, and proposes names."""

import difflib
import re
from collections.abc import Iterable, Sequence

MAX_SHOWN_CHARACTERS = 200
_LONG_WORD = re.compile(rf"\S{{{MAX_SHOWN_CHARACTERS + 1},}}")
_MAX_PATH_CHARACTERS = 500
_PATH_END_CHARACTERS = 60


def truncate(text: str, limit: int = MAX_SHOWN_CHARACTERS, *, count: bool = True) -> str:
    """Returns the beginning of a text that is longer than `limit` characters; others as they are.

    Args:
        text: any.
        limit: the number of characters that are kept.
        count: whether to add the length of the whole text.
    """
    if len(text) <= limit:
        return text
    return f"{text[:limit]}.. ({len(text)} characters)" if count else f"{text[:limit]}.."


def truncate_words(text: str) -> str:
    """Truncates the words of a text that are longer than a path can reasonably be, as data URIs."""
    return _LONG_WORD.sub(lambda word: truncate(word[0], MAX_SHOWN_CHARACTERS // 2), text)


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """Returns the end of an error message: the known name nearest to a misspelt one, or nothing.

    Args:
        word: what was given, of any type and length; its case does not matter.
        known: the names that would have been right.
    """
    names = {name.casefold(): name for name in known}
    text = str(word)[:MAX_SHOWN_CHARACTERS].casefold()
    nearest = difflib.get_close_matches(text, names, n=1)
    return f"; did you mean {names[nearest[0]]!r}?" if nearest else ""


def format_path(path: str) -> str:
    """Returns a path on one line; of a very long one (a base64 clip in its place) both ends."""
    if len(path) > _MAX_PATH_CHARACTERS:
        beginning = path[: _MAX_PATH_CHARACTERS - _PATH_END_CHARACTERS]
        path = f"{beginning}..{path[-_PATH_END_CHARACTERS:]}"
    return path if path.isprintable() else ascii(path)


def first_few(items: Sequence[str], separator: str = ", ", *, limit: int = 4) -> str:
    """Joins the first items of a list, and says how many more there are."""
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return separator.join(items[:limit]) + more
