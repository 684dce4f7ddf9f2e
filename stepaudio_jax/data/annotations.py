"""What people said of two replies: the `annotations` of a record, checked key by key.

a is the record's `reference_reply` (or `chosen`), b its `rejected_reply`. People need not agree
with each other, nor with the record: a verdict below 0 says that b is better.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from stepaudio_jax.data.sources.json_values import check_keys, format_json, is_json_list
from stepaudio_jax.errors import DataError

# Levels above 0 of the longest scale of verdicts.
MAX_VERDICT = 3
_KEYS = (
    *("annotator", "verdict", "shown_first", "criteria", "reasons", "critique", "better_reply"),
    *("seconds_listened", "time", "is_gold"),
)


class CriterionMet(NamedTuple):
    """Says whether each of two replies meets a criterion."""

    a: bool
    b: bool


@dataclasses.dataclass(frozen=True)
class Annotation:
    """Holds what a person said of the two replies of a record.

    Attributes:
        annotator: who said it, a name or a pseudonym.
        verdict: by how many levels a is better, below 0 where b is; 0: equal; None: skipped.
        shown_first: which of the two stood first (on the left, or above).
        criteria: for each criterion of the record's rubric; empty where it was not asked.
        reasons: names of reasons, such as "tone".
        critique: free text; None without.
        better_reply: what the assistant should have said; None without.
        seconds_listened: of the sound of the turn, before the verdict.
        time: when, in UTC as ISO 8601; None where it is not known.
        is_gold: whether the record was shown to test the annotator: its better reply was known.
    """

    annotator: str
    verdict: int | None
    shown_first: Literal["a", "b"] | None = None
    criteria: tuple[CriterionMet, ...] = ()
    reasons: tuple[str, ...] = ()
    critique: str | None = None
    better_reply: str | None = None
    seconds_listened: float | None = None
    time: str | None = None
    is_gold: bool = False

    @property
    def swapped(self) -> "Annotation":
        """Returns the annotation that says the same of the pair with its replies exchanged."""
        others: Mapping[str | None, Literal["a", "b"]] = {"a": "b", "b": "a"}
        return dataclasses.replace(
            self,
            verdict=None if self.verdict is None else -self.verdict,
            shown_first=others.get(self.shown_first),
            criteria=tuple(CriterionMet(met.b, met.a) for met in self.criteria),
        )


def parse_annotations(value: Any, *, num_criteria: int, origin: str) -> tuple[Annotation, ...]:
    """Returns the annotations of a record.

    A value of another kind, which other tools keep under that key, is not read: nothing in it has
    an annotator or a verdict.

    Args:
        value: the record's `annotations`; None where it has none.
        num_criteria: of its rubric.
        origin: its file and line, the start of every error.

    Raises:
        DataError: names the origin, the annotation by its number, the key and what is allowed.
    """
    if isinstance(value, Mapping) and _is_annotation(value):
        raise DataError(
            f"{origin}: 'annotations' must be a list of annotations, got {format_json(value)}"
        )
    if not is_json_list(value) or not any(map(_is_annotation, value)):
        return ()
    for number, item in enumerate(value, 1):
        if not isinstance(item, Mapping):
            raise DataError(
                f"{origin}: annotation {number} must be an object with 'annotator' and 'verdict',"
                f" got {format_json(item)}"
            )
    return tuple(
        parse_annotation(item, num_criteria=num_criteria, where=f"{origin}: annotation {number}")
        for number, item in enumerate(value, 1)
    )


def parse_annotation(value: Mapping[str, Any], *, num_criteria: int, where: str) -> Annotation:
    """Returns one annotation; a key whose value is null counts as not given.

    Raises:
        DataError: names the place, the key and what is allowed.
    """
    check_keys(value, _KEYS, where)
    value = {key: item for key, item in value.items() if item is not None}
    texts: dict[str, str | None] = {}
    for key in ("annotator", "critique", "better_reply", "time"):
        texts[key] = value.get(key)
        if texts[key] is not None and not isinstance(texts[key], str):
            raise DataError(f"{where}: {key!r} must be a string, got {format_json(value[key])}")
    if not (annotator := texts.pop("annotator")):
        raise DataError(f"{where} has no 'annotator'; give a name or a pseudonym")
    verdict = value.get("verdict")
    is_level = isinstance(verdict, int) and not isinstance(verdict, bool)
    if verdict is not None and not (is_level and abs(verdict) <= MAX_VERDICT):
        raise DataError(
            f"{where}: 'verdict' must be a whole number from -{MAX_VERDICT} to {MAX_VERDICT}, or"
            f" null where it was skipped, got {format_json(verdict)}"
        )
    shown_first = value.get("shown_first")
    if shown_first not in (None, "a", "b"):
        raise DataError(
            f'{where}: \'shown_first\' must be "a" or "b", got {format_json(shown_first)}'
        )
    reasons = value.get("reasons", [])
    if not is_json_list(reasons) or not all(isinstance(item, str) and item for item in reasons):
        raise DataError(f"{where}: 'reasons' must be a list of names, got {format_json(reasons)}")
    seconds = value.get("seconds_listened")
    is_number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    if seconds is not None and not (is_number and math.isfinite(seconds) and seconds >= 0):
        raise DataError(
            f"{where}: 'seconds_listened' must be a number, 0 or more, got {format_json(seconds)}"
        )
    is_gold = value.get("is_gold", False)
    if not isinstance(is_gold, bool):
        raise DataError(f"{where}: 'is_gold' must be true or false, got {format_json(is_gold)}")
    return Annotation(
        annotator=annotator,
        verdict=verdict,
        shown_first=shown_first,
        criteria=_parse_criteria(value.get("criteria", []), num_criteria, where),
        reasons=tuple(reasons),
        seconds_listened=None if seconds is None else float(seconds),
        is_gold=is_gold,
        **texts,
    )


def serialize_annotation(annotation: Annotation) -> dict[str, Any]:
    """Returns an annotation in the form that `parse_annotation` reads as the same annotation."""
    return {
        "annotator": annotation.annotator,
        "verdict": annotation.verdict,
        "shown_first": annotation.shown_first,
        "criteria": [met._asdict() for met in annotation.criteria],
        "reasons": list(annotation.reasons),
        "critique": annotation.critique,
        "better_reply": annotation.better_reply,
        "seconds_listened": annotation.seconds_listened,
        "time": annotation.time,
        **({"is_gold": True} if annotation.is_gold else {}),
    }


def _is_annotation(value: Any) -> bool:
    return isinstance(value, Mapping) and not {"annotator", "verdict"}.isdisjoint(value)


def _parse_criteria(value: Any, num_criteria: int, where: str) -> tuple[CriterionMet, ...]:
    form = 'a list of {"a": true or false, "b": true or false}'
    if not is_json_list(value):
        raise DataError(f"{where}: 'criteria' must be {form}, got {format_json(value)}")
    for item in value:
        if (
            not isinstance(item, Mapping)
            or set(item) != {"a", "b"}
            or not all(isinstance(met, bool) for met in item.values())
        ):
            raise DataError(f"{where}: 'criteria' must be {form}, got {format_json(item)}")
    if value and len(value) != num_criteria:
        raise DataError(
            f"{where}: 'criteria' has {len(value)} entries, and the rubric {num_criteria}; give one"
            " for each criterion, or leave it out"
        )
    return tuple(CriterionMet(item["a"], item["b"]) for item in value)
