"""Pieces of a text: where each ends in it, whatever white space or punctuation is between them."""

import bisect
import itertools
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

_VISIBLE, _LETTERS = re.compile(r"\S+"), re.compile(r"[^\W_]+")
# What opens a bracket or a quotation belongs to the word behind it.
_OPENING = ("Ps", "Pi")


def find_piece_ends(text: str, pieces: Sequence[str]) -> list[int] | None:
    """Finds where each piece ends in a text that is these pieces, one after the other.

    White space and case do not count: pieces may be joined by a blank, a new line or nothing. Nor
    does punctuation where the pieces have none, as words with times often do; it stays with the
    word before it.

    Args:
        text: the text in one.
        pieces: its pieces, in order.

    Returns:
        The index in the text behind each piece, so that `text[ends[i - 1]:ends[i]]` is piece i with
        the white space around it. None if the text is not these pieces.
    """
    for pattern in (_VISIBLE, _LETTERS):
        found = [pattern.findall(piece) for piece in pieces]
        spans = [match.span() for match in pattern.finditer(text)]
        mine = "".join(text[start:end] for start, end in spans)
        theirs = "".join(itertools.chain(*found))
        # Characters are counted below: only a change of case that keeps their number is the same.
        if len(mine) != len(theirs) or mine.casefold() != theirs.casefold():
            continue
        totals = list(itertools.accumulate(end - start for start, end in spans))
        ends = [0] * len(pieces)
        for number, total in enumerate(itertools.accumulate(sum(map(len, run)) for run in found)):
            if total:
                span = bisect.bisect_left(totals, total)
                ends[number] = spans[span][1] - (totals[span] - total)
        return ends if pattern is _VISIBLE else [_behind_punctuation(text, end) for end in ends]
    return None


def cut_pieces(text: str, ends: Sequence[int], first: int, last: int) -> str:
    """Returns pieces `first` to `last` - 1 of a text, with all that stands between them.

    Args:
        text: all of it.
        ends: as `find_piece_ends` returns them.
        first, last: of the pieces.
    """
    start = ends[first - 1] if first else 0
    end = ends[last - 1] if last < len(ends) else len(text)
    return text[start:end].strip()


def find_difference(text: str, pieces: Sequence[str], characters: int = 20) -> tuple[str, str]:
    """Returns the places, white space aside, where a text and its pieces begin to differ."""
    mine, theirs = ("".join(value.split()) for value in (text, "".join(pieces)))
    pairs = zip(mine, theirs, strict=False)
    same = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
    first = max(same - characters // 2, 0)
    return mine[first : first + characters], theirs[first : first + characters]


def join_attributes(items: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """Returns the labels of several pieces, each value once, joined by commas."""
    values: dict[str, dict[str, None]] = {}
    for item in items:
        for key, value in item.items():
            values.setdefault(key, {})[value] = None
    return {key: ", ".join(texts) for key, texts in values.items()}


def _behind_punctuation(text: str, end: int) -> int:
    """Returns the index behind what closes a word that ends at `end`."""
    if not end:
        return 0
    while end < len(text) and not (
        text[end].isspace() or text[end].isalnum() or unicodedata.category(text[end]) in _OPENING
    ):
        end += 1
    return end
