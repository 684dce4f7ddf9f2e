"""Scores a description of a voice by the points of a Step-DU reference: 1, 0.5 or 0."""

import re
from collections.abc import Sequence

from stepaudio_jax.evaluation.voice_ages import age_names
from stepaudio_jax.evaluation.voice_terms import covers_label, find_terms, is_denied
from stepaudio_jax.text.answer_markup import normalize_answer, unify_characters

_EXPLANATION = re.compile(r"[：:]")
_POINTS = re.compile(r"[；;]")
_ALTERNATIVES = re.compile(r"\s*/\s*")
# In the order in which a label is looked for.
_DIMENSIONS = ("gender", "age", "speed", "pitch", "rhythm", "sound", "style", "emotion", "timbre")
_EXCLUSIVE = ("gender", "speed", "pitch")  # of which a voice has one at a time
# The wider word, for which there is half a point.
_PARENTS = {"laugh_loud": "laugh", "laugh_soft": "laugh", "cry_loud": "cry", "cry_soft": "cry"}
_MAX_STEP, _NEAR_STEP = 0.5, 1.0  # between speeds or pitches that are the same, or half right
_SUFFIXES = re.compile(r"(?:型|类|声|的)+$")

Point = tuple[str, ...]


def parse_points(reference: str) -> list[Point]:
    """Returns the points of a reference, each a tuple of labels that mean the same.

    What follows the first colon explains. Semicolons separate points that all must be met, and
    slashes labels of which any is enough. A hyphen is part of a label.
    """
    label = _EXPLANATION.split(reference, maxsplit=1)[0]
    points = []
    for point in _POINTS.split(label):
        labels = tuple(text for each in _ALTERNATIVES.split(point) if (text := each.strip()))
        if labels:
            points.append(labels)
    return points


def score_points(points: Sequence[Point], answer: str) -> tuple[float, str] | None:
    """Returns a score and what was read in the answer; None where nothing of the kind is said.

    A point is met where one of its labels is asserted: the same word or one of the same meaning,
    see `voice_terms`. It is half met by the wider word (笑声 for 大笑), a neighbouring step (中快
    for 快), and by a choice that is left open. All points met are 1, some 0.5, none 0.

    Args:
        points: see `parse_points`.
        answer: without reasoning and markup.
    """
    scores, read = [], []
    for point in points:
        scored = _score_point(point, answer)
        scores.append(scored[0] if scored else None)
        read.append(scored[1] if scored else "-")
    known = [score for score in scores if score is not None]
    if not known:
        return None
    complete = all(score == 1 for score in scores)
    total = 1.0 if complete else 0.5 if any(score for score in known) else 0.0
    return total, "; ".join(read)


def _score_point(point: Point, answer: str) -> tuple[float, str] | None:
    dimension = next((name for name in _DIMENSIONS if covers_label(point[0], name)), None)
    if dimension is None:
        return _score_words(point, answer)
    if dimension == "age":
        names, ages = age_names(answer), age_names(" ".join(point))
        if not names:
            return None
        score = 1.0 if names <= ages else 0.5 if names & ages else 0.0
        return score, ", ".join(sorted(names))
    right = _narrowest(_concepts(" ".join(point), dimension))
    mentions = find_terms(answer, dimension)
    if not mentions:
        return None
    named = {concept for mention in mentions for concept in mention.concepts}
    certain = {concept for each in mentions if not each.is_alternative for concept in each.concepts}
    read = ", ".join(sorted(named))
    if dimension in ("speed", "pitch"):
        return _score_steps(right, named), read
    if right & certain:
        others = _narrowest(named) - right if dimension in _EXCLUSIVE else set()
        return (0.5 if others else 1.0), read
    parents = {_PARENTS[name] for name in right if name in _PARENTS}
    families = {_PARENTS.get(name, name) for name in named}
    return (0.5 if right & named or parents & families else 0.0), read


def _score_steps(right: set[str], named: set[str]) -> float:
    """Returns the score of a step of a scale; several different ones at once leave it open."""
    gaps = [min(abs(float(step) - float(label)) for label in right) for step in named]
    if max(gaps) <= _MAX_STEP:
        return 1.0
    return 0.5 if min(gaps) <= _NEAR_STEP else 0.0


def _score_words(point: Point, answer: str) -> tuple[float, str] | None:
    """Returns 1 where a label of no known dimension stands in the answer, not denied."""
    plain = unify_characters(answer).casefold()
    for label in point:
        text = _SUFFIXES.sub("", normalize_answer(label))
        start = plain.find(text) if text else -1
        if start >= 0 and not is_denied(plain, start):
            return 1.0, label
    return None


def _concepts(label: str, dimension: str) -> set[str]:
    return {concept for mention in find_terms(label, dimension) for concept in mention.concepts}


def _narrowest(concepts: set[str]) -> set[str]:
    """Returns concepts without those that a narrower one among them includes."""
    return concepts - {_PARENTS[name] for name in concepts if name in _PARENTS}
