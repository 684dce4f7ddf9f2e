"""A code that occurs nowhere in the material a judge is shown, and what of the material could be quoted as a verdict."""

import hashlib
import itertools
import json
import re
import unicodedata
from collections.abc import Iterable, Sequence

MIN_FENCE_DIGITS = 4
_NOT_ALPHANUMERIC = re.compile(r"[^a-z0-9]+")
_UNICODE_ESCAPE = re.compile(r"\\u([0-9a-fA-F]{4})")


def make_fence(material: Sequence[str]) -> str:
    """Returns hexadecimal digits of a hash of the material that occur nowhere in it, whatever it holds.

    The same material always gives the same digits, so a question that is asked again is the same
    question. Who writes a part of the material cannot write the digits into it: they depend on that
    part. Spelling them in capitals, in full-width letters or with something in between does not
    make them another code. After each hit the hash is made anew and one digit longer.
    """
    haystack = _alphanumeric("".join(material))
    encoded = json.dumps(list(material))  # ASCII, also where a text has half a surrogate pair
    for attempt in itertools.count():
        digest = hashlib.sha256(f"{attempt} {encoded}".encode()).hexdigest()
        fence = digest[: MIN_FENCE_DIGITS + attempt]
        if fence not in haystack:
            return fence
    raise AssertionError("unreachable: the count has no end")


def comparisons_in_material(material: Iterable[str], comparisons: Iterable[str]) -> frozenset[str]:
    """Returns those comparisons that a judge could quote as a verdict from the material, in whatever spelling."""
    text = _UNICODE_ESCAPE.sub(lambda match: chr(int(match[1], 16)), "\n".join(material))
    plain = _alphanumeric(text)
    if "comparison" not in plain:
        return frozenset()
    return frozenset(comparison for comparison in comparisons if _alphanumeric(comparison) in plain)


def _alphanumeric(text: str) -> str:
    """Returns the text's letters and digits alone, in lower case and without their compatibility forms (NFKC)."""
    # Character by character: normalizing a long run of combining marks as one takes quadratic time.
    forms = {
        ord(char): unicodedata.normalize("NFKC", char).casefold()
        for char in set(text)
        if not char.isascii()
    }
    return _NOT_ALPHANUMERIC.sub("", text.translate(forms).lower() if forms else text.lower())
