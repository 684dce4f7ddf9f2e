"""Verdicts of a judge on two replies: strict parsing, and the rewards that follow from them.

Whatever is not exactly a verdict is an abstention, never a number.
"""

import dataclasses
import json
import math
import re
from collections.abc import Container, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

from stepaudio_jax.config import check_reward_map
from stepaudio_jax.data import Criterion

AbstentionReason = Literal[
    "empty",
    "no_verdict",  # the answer does not end with a JSON object that has the key "comparison"
    "quoted",  # another question's code; or none, although the material spells out the verdict
    "unknown_comparison",  # not a level of the scale
    "bad_criteria",  # not one {"a": true or false, "b": ..} for each criterion
    "truncated",  # the answer was truncated at the judge's limit of tokens
    "failed",  # the judge could not be asked
]

# How much better reply A is than reply B, by comparison; shorter scales use some of the entries.
_LEVEL_OF_COMPARISON: Mapping[str, int] = MappingProxyType(
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
_LEVELS_OF_SCALE: Mapping[int, tuple[int, ...]] = MappingProxyType(
    {3: (-2, 0, 2), 5: (-3, -2, 0, 2, 3), 7: (-3, -2, -1, 0, 1, 2, 3)}
)
LEVELS = tuple(_LEVELS_OF_SCALE)
MAX_VERDICT_CHARACTERS = 32_768  # longer objects are not parsed: this bounds the parsing time
_MAX_DEPTH = 16  # of nested lists and objects, far more than a verdict has
# In reversed text: a quotation mark with the backslashes before it, or a bracket.
_REVERSED_TOKEN = re.compile(r'"(\\*)|[{}\[\]]')


@dataclasses.dataclass(frozen=True)
class Verdict:
    """How reply A compares with reply B.

    Attributes:
        level: from -(n // 2) to n // 2 on a scale of n levels, positive where A is better.
        first_met, second_met: for each criterion of the rubric, whether A and B meet it; empty
            without a rubric.
    """

    level: int
    first_met: tuple[bool, ...] = ()
    second_met: tuple[bool, ...] = ()


@dataclasses.dataclass(frozen=True)
class Abstention:
    """Says why there is no verdict. The rollout then gets no reward at all, not a reward of 0."""

    reason: AbstentionReason


def comparisons(levels: int) -> dict[str, int]:
    """Returns {comparison: level}, what a judge may say, from best to worst for reply A.

    Raises:
        ValueError: there is no scale of so many levels.
    """
    if levels not in _LEVELS_OF_SCALE:
        raise ValueError(f"levels={levels} must be one of {', '.join(map(str, LEVELS))}")
    scale = _LEVELS_OF_SCALE[levels]
    return {
        text: scale.index(level) - len(scale) // 2
        for text, level in _LEVEL_OF_COMPARISON.items()
        if level in scale
    }


def parse_verdict(
    text: str,
    *,
    levels: int,
    criteria: int = 0,
    truncated: bool = False,
    code: str | None = None,
    in_material: Container[str] = frozenset(),
) -> Verdict | Abstention:
    """Parses a judge's answer. Never raises, whatever the answer holds, and takes bounded time.

    The answer may begin with reasoning. Only its last element counts, a JSON object
    {"comparison": one of `comparisons`, "criteria": [{"a": true, "b": false}, ..], "code": ".."};
    white space and the backticks that close a Markdown block may follow it. Everything before it
    is ignored, other verdicts included. Capitals and white space around the comparison do not
    matter; any other difference does.

    Args:
        text: the answer.
        levels: levels of the scale.
        criteria: number of criteria in the rubric; 0 without a rubric.
        truncated: whether the answer was truncated at the judge's limit of tokens.
        code: of the question, which cannot occur in the material. A verdict with another code is
            not the judge's; a verdict without one counts, unless the material spells out the same
            comparison. None where the judge was not asked for a code.
        in_material: the comparisons that the material spells out.
    """
    if truncated:
        return Abstention("truncated")
    if not text.strip():
        return Abstention("empty")
    value = _last_object(text)
    if value is None or "comparison" not in value:
        return Abstention("no_verdict")
    comparison = value["comparison"]
    comparison = comparison.strip().lower() if isinstance(comparison, str) else ""
    level = comparisons(levels).get(comparison)
    if level is None:
        return Abstention("unknown_comparison")
    if code is not None and not _has_code(value, code, optional=comparison not in in_material):
        return Abstention("quoted")
    met = _criteria_met(value.get("criteria", []), criteria)
    if met is None:
        return Abstention("bad_criteria")
    return Verdict(level, *met)


@dataclasses.dataclass(frozen=True)
class RewardMap:
    """Maps the value of a pair, from -levels // 2 to levels // 2, to [-1, 1]: phi (R1.5, eq. 3).

    Attributes:
        levels: levels of the judge's scale, odd.
        reward_map: phi of the levels above 0, in order, the last one at most 1; empty for a linear
            map. Values between two levels, such as the mean of two verdicts, are interpolated.
        temperature: tanh(x / temperature) / tanh(1 / temperature) is applied to the result: it
            spreads small values and compresses large ones. None applies nothing.
    """

    levels: int = 7
    reward_map: tuple[float, ...] = ()
    temperature: float | None = None

    def __post_init__(self) -> None:
        check_reward_map(
            self.levels, self.reward_map, self.temperature, temperature_key="temperature"
        )

    def __call__(self, value: float) -> float:
        """Returns phi(value), an odd function: phi(-x) = -phi(x), exactly."""
        size = abs(value)
        highest = self.levels // 2
        if self.reward_map:
            points = (0.0, *self.reward_map)
            below = min(int(size), highest - 1)
            mapped = points[below] + (size - below) * (points[below + 1] - points[below])
        else:
            mapped = size / highest
        if self.temperature is not None:
            mapped = math.tanh(mapped / self.temperature) / math.tanh(1 / self.temperature)
        return math.copysign(mapped, value) if value else 0.0


def pair_value(original: Verdict, swapped: Verdict) -> float:
    """Returns (original - swapped) / 2, how much better the first reply is, over both orders.

    The difference cancels a preference for one position, and changes its sign exactly when the
    replies are exchanged.
    """
    return (original.level - swapped.level) / 2


def preference(original: Verdict, swapped: Verdict, reward_map: RewardMap) -> float:
    """Returns the reward of the policy's reply in [-1, 1] from the pair's value.

    The judge saw (policy, reference) in the original order, and (reference, policy) swapped.
    """
    return reward_map(pair_value(original, swapped))


def prefers_position(original: Verdict, swapped: Verdict) -> bool:
    """Returns whether the judge prefers a position, A both times or B both times, not a reply."""
    return original.level * swapped.level > 0


def rubric_score(criteria: Sequence[Criterion], met: Sequence[bool]) -> float:
    """Returns the weights of the criteria that are met over the sum of the positive weights.

    Source: HealthBench (Arora et al. 2025, section 3).

    Raises:
        ValueError: no criterion has a positive weight, or `met` has another length.
    """
    if len(criteria) != len(met):
        raise ValueError(f"{len(met)} answers for {len(criteria)} criteria")
    best = sum(criterion.weight for criterion in criteria if criterion.weight > 0)
    if best <= 0:
        raise ValueError("no criterion of the rubric has a positive weight; give at least one")
    score = sum(criterion.weight for criterion, is_met in zip(criteria, met, strict=True) if is_met)
    return score / best


def rubric_reward(
    criteria: Sequence[Criterion], original: Verdict, swapped: Verdict
) -> tuple[float, float]:
    """Returns the reward by a rubric, and the policy's own score; a score is a mean over orders.

    The reward is the policy's score less the reference's, clipped to [-1, 1].
    """
    policy = (
        rubric_score(criteria, original.first_met) + rubric_score(criteria, swapped.second_met)
    ) / 2
    reference = (
        rubric_score(criteria, original.second_met) + rubric_score(criteria, swapped.first_met)
    ) / 2
    return min(max(policy - reference, -1.0), 1.0), policy


def _has_code(verdict: Mapping[str, Any], code: str, *, optional: bool) -> bool:
    """Returns whether a verdict carries the code, or none where it is optional."""
    if "code" not in verdict:
        return optional
    return isinstance(verdict["code"], str) and verdict["code"].strip().lower() == code


def _criteria_met(value: Any, criteria: int) -> tuple[tuple[bool, ...], tuple[bool, ...]] | None:
    """Returns which criteria A and B meet; None unless there is one valid entry for each."""
    if not isinstance(value, list) or len(value) != criteria:
        return None
    for item in value:
        if (
            not isinstance(item, dict)
            or set(item) != {"a", "b"}
            or not all(isinstance(met, bool) for met in item.values())
        ):
            return None
    return tuple(item["a"] for item in value), tuple(item["b"] for item in value)


def _last_object(text: str) -> dict[str, Any] | None:
    """Returns the JSON object that a text ends with, or None.

    Values of a key that occurs several times are collected in a list.
    """
    ending = text.rstrip().rstrip("`").rstrip()[-MAX_VERDICT_CHARACTERS:]
    start = _start_of_last_object(ending)
    if start is None:
        return None
    try:
        # Numbers stay text: their values are not needed, and Python refuses to convert integers of
        # more than 4300 digits.
        return json.loads(
            ending[start:],
            object_pairs_hook=_collect_duplicate_keys,
            parse_int=str,
            parse_float=str,
            parse_constant=str,
        )
    except json.JSONDecodeError:
        return None


def _start_of_last_object(text: str) -> int | None:
    """Returns the index where the object at the end of a text begins.

    Returns None where the text does not end with an object, or where it nests too deeply.

    Brackets are matched from the end in one pass: outside of strings a closing one goes a level
    down, an opening one comes a level up. A quotation mark after an odd number of backslashes is
    part of a string.
    """
    if not text.endswith("}"):
        return None
    depth, in_string = 0, False
    for match in _REVERSED_TOKEN.finditer(text[::-1]):
        char = match[0][0]
        if char == '"':
            in_string ^= len(match[1]) % 2 == 0
        elif in_string:
            continue
        elif char in "}]":
            depth += 1
            if depth > _MAX_DEPTH:
                return None
        else:
            depth -= 1
            if depth == 0:
                return len(text) - 1 - match.start() if char == "{" else None
    return None


def _collect_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Returns the pairs as a dict; the values of a repeated key are collected in a list."""
    values: dict[str, list[Any]] = {}
    for key, value in pairs:
        values.setdefault(key, []).append(value)
    return {key: items if len(items) > 1 else items[0] for key, items in values.items()}
