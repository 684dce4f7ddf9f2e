"""Reads what judges reply in benchmarks: one word, a JSON object, or MMAR-Rubrics' list.

Whatever is not the form that was asked for is no verdict: the functions return None, and never
raise, however long or deep a reply is.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from stepaudio_jax.text.dialogue import THINK_END_TAG, THINK_START_TAG

# JSON of a judge has some thousand characters; this bounds the time that reading takes.
MAX_JSON_CHARACTERS = 1 << 20
_FENCE = "```"
_OPENING = re.compile(r"\[\s*\{")
_REVERSED_CLOSING = re.compile(r"\]\s*\}")
# Around a word that is all of a reply: quotes, emphasis, a full stop.
_AROUND_WORD = " \t\r\n\"'`*_.“”‘’。"


def remove_reasoning(text: str) -> str:
    """Returns a reply without its reasoning; "" where the reasoning has no end.

    What precedes the last `</think>` is reasoning, also without a `<think>`, which chat templates
    write themselves.
    """
    after = text.rpartition(THINK_END_TAG)[2]
    return "" if after.lstrip().startswith(THINK_START_TAG) else after


def read_word(text: str | None, words: Sequence[str]) -> str | None:
    """Returns which of some words is all that a judge replies; None for anything else.

    Args:
        text: of the judge; None where it had no answer.
        words: in capitals. The reply's case, and quotes, emphasis and a full stop around it, do
            not matter.
    """
    if text is None:
        return None
    word = remove_reasoning(text).strip(_AROUND_WORD).upper()
    return word if word in words else None


def read_object(text: str | None, key: str) -> dict[str, Any] | None:
    """Returns the JSON object with a key in a judge's reply; None where there is none.

    The object stands in a Markdown fence, or else from the first `{` to the last `}`. Of several
    fenced ones, all must say the same of the key: a judge that contradicts itself says nothing.
    The same holds for a key that is given twice.
    """
    if text is None or len(text) > MAX_JSON_CHARACTERS:
        return None
    after = remove_reasoning(text)
    # A reply may quote `</think>` inside its object.
    parts = [after] if text.lstrip().startswith(THINK_START_TAG) else [after, text]
    for part in dict.fromkeys(parts):
        fenced = [value for block in _fenced(part) if (value := _parse_object(block, key))]
        if fenced:
            same = all(_is_same(value[key], fenced[0][key]) for value in fenced)
            return fenced[0] if same else None
        start, end = part.find("{"), part.rfind("}")
        value = _parse_object(part[start : end + 1], key) if 0 <= start < end else None
        if value is not None:
            return value
    return None


def read_truth(value: Any) -> bool | None:
    """Returns a JSON value as true or false, also one written as the text "true" or "false"."""
    if isinstance(value, bool):
        return value
    text = value.strip().lower() if isinstance(value, str) else ""
    return {"true": True, "false": False}.get(text)


def read_share(value: Any) -> float | None:
    """Returns a JSON number between 0 and 1; None for any other value, true and false included."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 <= value <= 1 else None


def read_rubric_scores(text: str | None, rubric: Sequence[Mapping[str, Any]]) -> list[float] | None:
    """Returns the points of each criterion of MMAR-Rubrics, as its published program reads them.

    The text from the first `[ {` to the last `} ]` is parsed, or all of it where there is no such
    text: reasoning before the list is not removed first. It must be a list of as many objects as
    the rubric has criteria, each with `name` and `score`; they are matched by position, and a
    score must be among the criterion's `choices` (1.0 and true are 1, a text is none).

    Returns:
        The points; None where the program rejects the reply.
    """
    if text is None:
        return None
    opening, closing = _OPENING.search(text), _REVERSED_CLOSING.search(text[::-1])
    if opening and closing and len(text) - closing.end() >= opening.end():
        text = text[opening.start() : len(text) - closing.start()]
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, list) or len(values) != len(rubric):
        return None
    points = []
    for value, criterion in zip(values, rubric, strict=True):
        if not isinstance(value, dict) or not {"name", "score"} <= value.keys():
            return None
        score = value["score"]
        if not isinstance(score, int | float) or score not in criterion["choices"]:
            return None
        points.append(float(score))
    return points


def _fenced(text: str) -> Iterator[str]:
    """Yields what stands between two fences, without the language that a fence names."""
    for piece in text.split(_FENCE)[1::2]:
        start = piece.find("{")
        if start >= 0 and len(piece[:start].split()) <= 1:
            yield piece[start:].strip()


def _parse_object(text: str, key: str) -> dict[str, Any] | None:
    try:
        # Numbers of more than 4300 digits cannot become integers.
        value = json.loads(text, parse_int=float, object_pairs_hook=_without_contradictions)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and key in value else None


def _without_contradictions(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for key, item in pairs:
        if key in value and not _is_same(value[key], item):
            raise ValueError(f"{key!r} is given twice")
        value[key] = item
    return value


def _is_same(first: Any, second: Any) -> bool:
    """Returns whether two JSON values are equal; true is not 1."""
    try:
        return type(first) is type(second) and bool(first == second)
    except RecursionError:
        return False
