"""What a generative judge says of two replies, read strictly: what is no verdict is an abstention, never a number."""

import dataclasses
import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

AbstentionReason = Literal[
    "empty",
    "no_verdict",  # no JSON object with the key "comparison"
    "contradiction",  # several of them, which do not say the same
    "unknown_comparison",  # none of the levels
    "bad_criteria",  # not one {"a": true or false, "b": ..} for each criterion
    "truncated",  # the judge's answer was cut at its limit of length
    "failed",  # the judge could not be asked
]

# How much better the first reply is than the second, by what a judge may say; some of it where there are fewer levels.
_STEPS: Mapping[str, int] = MappingProxyType(
    {
        "a is much better": 3,
        "a is better": 2,
        "a is slightly better": 1,
        "both are equal": 0,
        "b is slightly better": -1,
        "b is better": -2,
        "b is much better": -3,
    }
)
_KEPT: Mapping[int, tuple[int, ...]] = MappingProxyType({3: (-2, 0, 2), 5: (-3, -2, 0, 2, 3), 7: (-3, -2, -1, 0, 1, 2, 3)})
LEVELS = tuple(_KEPT)
_MOST_OBJECTS = 64  # looked at in one answer


@dataclasses.dataclass(frozen=True)
class Verdict:
    """How the first reply compares with the second.

    Attributes:
        level: -(n // 2) to n // 2, positive where the first one is better.
        first_met, second_met: of each criterion of the rubric, whether the reply meets it; empty without a rubric.
    """

    level: int
    first_met: tuple[bool, ...] = ()
    second_met: tuple[bool, ...] = ()


@dataclasses.dataclass(frozen=True)
class Abstention:
    """There is no verdict, and why. The sample it was asked for gets no reward at all: neither 0 nor any other."""

    reason: AbstentionReason


def comparisons(levels: int) -> dict[str, int]:
    """What a judge may say, from the best for the first reply to the worst: text -> level.

    Raises:
        ValueError: there is no such scale.
    """
    if levels not in _KEPT:
        raise ValueError(f"levels={levels} must be one of {', '.join(map(str, LEVELS))}")
    steps = _KEPT[levels]
    texts = [(text, step) for text, step in _STEPS.items() if step in steps]
    return {text: steps.index(step) - len(steps) // 2 for text, step in texts}


def parse_verdict(text: str, *, levels: int, criteria: int = 0, truncated: bool = False) -> Verdict | Abstention:
    """Reads a judge's answer.

    The answer may reason first. Its verdict is a JSON object {"comparison": one of `comparisons`, "criteria": [{"a": true, "b":
    false}, ..]}; capitals and white space around the comparison do not matter, anything else does.

    Args:
        text: what the judge wrote.
        levels: of the scale.
        criteria: of the rubric; 0 where there is none.
        truncated: whether the answer was cut at its limit of length.
    """
    if truncated:
        return Abstention("truncated")
    if not text.strip():
        return Abstention("empty")
    said = [value for value in _objects(text) if "comparison" in value]
    if not said:
        return Abstention("no_verdict")
    if any(value != said[0] for value in said):
        return Abstention("contradiction")
    comparison = said[0]["comparison"]
    level = comparisons(levels).get(comparison.strip().lower()) if isinstance(comparison, str) else None
    if level is None:
        return Abstention("unknown_comparison")
    met = _met(said[0].get("criteria", []), criteria)
    if met is None:
        return Abstention("bad_criteria")
    return Verdict(level, *met)


def _met(value: Any, criteria: int) -> tuple[tuple[bool, ...], tuple[bool, ...]] | None:
    if not isinstance(value, list) or len(value) != criteria:
        return None
    for item in value:
        if not isinstance(item, dict) or set(item) != {"a", "b"} or not all(isinstance(met, bool) for met in item.values()):
            return None
    return tuple(item["a"] for item in value), tuple(item["b"] for item in value)


def _unambiguous(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    return value if len(value) == len(pairs) else {key: [given for name, given in pairs if name == key] for key in value}


def _objects(text: str) -> list[dict[str, Any]]:
    """The JSON objects in a text that stand for themselves, in order; of a key given twice, both values, in a list."""
    decoder = json.JSONDecoder(object_pairs_hook=_unambiguous)
    found: list[dict[str, Any]] = []
    place = text.find("{")
    while place >= 0 and len(found) < _MOST_OBJECTS:
        try:
            value, end = decoder.raw_decode(text, place)
        except (json.JSONDecodeError, RecursionError):
            end = place + 1
        else:
            found.append(value)
        place = text.find("{", end)
    return found
