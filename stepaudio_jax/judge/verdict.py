"""What a generative judge says of two replies, read strictly: what is no verdict is an abstention, never a number."""

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
    "no_verdict",  # does not end with a JSON object that has the key "comparison"
    # has another question's code, or none although the material spells out the same verdict
    "quoted",
    "unknown_comparison",  # none of the levels
    "bad_criteria",  # not one {"a": true or false, "b": ..} for each criterion
    "truncated",  # the judge's answer was cut at its limit of length
    "failed",  # the judge could not be asked
]

# How much better the first reply is than the second, by what a judge may say; some of it where
# there are fewer levels.
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
MAX_VERDICT_CHARACTERS = (
    32_768  # of the object; what is longer is none, so that reading takes bounded time
)
_MAX_DEPTH = 16  # of lists and objects in it, far more than a verdict has
_REVERSED_TOKEN = re.compile(
    r'"(\\*)|[{}\[\]]'
)  # in reversed text: a quotation mark and the backslashes before it, or a bracket


@dataclasses.dataclass(frozen=True)
class Verdict:
    """How the first reply compares with the second.

    Attributes:
        level: -(n // 2) to n // 2, positive where the first one is better.
        first_met, second_met: of each criterion of the rubric, whether the reply meets it; empty
            without a rubric.
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
    if levels not in _LEVELS_OF_SCALE:
        raise ValueError(f"levels={levels} must be one of {', '.join(map(str, LEVELS))}")
    steps = _LEVELS_OF_SCALE[levels]
    texts = [(text, step) for text, step in _LEVEL_OF_COMPARISON.items() if step in steps]
    return {text: steps.index(step) - len(steps) // 2 for text, step in texts}


def parse_verdict(
    text: str,
    *,
    levels: int,
    criteria: int = 0,
    truncated: bool = False,
    code: str | None = None,
    in_material: Container[str] = frozenset(),
) -> Verdict | Abstention:
    """Reads a judge's answer. Raises nothing, whatever it holds, and takes bounded time.

    The answer may reason first. The last thing in it is the verdict, or there is none: a JSON
    object {"comparison": one of `comparisons`, "criteria": [{"a": true, "b": false}, ..], "code":
    ".."}. Only white space and the backticks that close a Markdown block may follow. What comes
    before, other verdicts included, is not looked at. Capitals and white space around the
    comparison do not matter, anything else does.

    Args:
        text: what the judge wrote.
        levels: of the scale.
        criteria: number of the rubric's criteria; 0 where there is none.
        truncated: whether the answer was cut at its limit of length.
        code: of the question, which no part of the material can hold. A verdict with another one is
            not the judge's; one without any counts, unless the material spells it out too. None
            where the judge was not asked for a code.
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
    if code is not None and not _is_signed(value, code, without_code=comparison not in in_material):
        return Abstention("quoted")
    met = _criteria_met(value.get("criteria", []), criteria)
    if met is None:
        return Abstention("bad_criteria")
    return Verdict(level, *met)


def _is_signed(verdict: Mapping[str, Any], code: str, *, without_code: bool) -> bool:
    """Returns whether a verdict carries the code, or none where it may be `without_code`."""
    if "code" not in verdict:
        return without_code
    return isinstance(verdict["code"], str) and verdict["code"].strip().lower() == code


def _criteria_met(value: Any, criteria: int) -> tuple[tuple[bool, ...], tuple[bool, ...]] | None:
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
    """Returns the JSON object that a text ends with, or None; of a key given twice, both values, in a list."""
    ending = text.rstrip().rstrip("`").rstrip()[-MAX_VERDICT_CHARACTERS:]
    start = _start_of_last_object(ending)
    if start is None:
        return None
    try:
        # Numbers are kept as they are written: nothing here needs their value, and Python converts
        # no more than 4300 digits.
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
    """Returns where the object that a text ends with begins, or None where it ends otherwise or nests too deeply.

    Brackets are matched from the end, in one pass: outside of strings each one that closes goes a
    level down and each one that opens comes a level up. A quotation mark behind an odd number of
    backslashes is part of a string.
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
    """Returns the pairs as a dict; of a key that is given several times, all values, in a list."""
    values: dict[str, list[Any]] = {}
    for key, value in pairs:
        values.setdefault(key, []).append(value)
    return {key: several if len(several) > 1 else several[0] for key, several in values.items()}


# From verdicts to a reward: preference against a reference reply, and rubrics, on one scale from -1 to 1.


@dataclasses.dataclass(frozen=True)
class RewardMap:
    """phi (R1.5, eq. 3): the value of a pair, from -levels // 2 to levels // 2, mapped to [-1, 1].

    Attributes:
        levels: of the judge's scale, odd.
        table: of the levels above 0 in order, the last one 1 or less; empty for a linear map.
            Values between two levels, which the mean of two verdicts may be, lie between theirs.
        temperature: tanh(x / temperature) / tanh(1 / temperature) is put behind it: small values
            are spread, large ones pressed together. None for nothing behind it.
    """

    levels: int = 7
    table: tuple[float, ...] = ()
    temperature: float | None = None

    def __post_init__(self) -> None:
        check_reward_map(self.levels, self.table, self.temperature, temperature_key="temperature")

    def __call__(self, value: float) -> float:
        """Phi of a pair's value; odd: phi(-x) = -phi(x), exactly."""
        size = abs(value)
        highest = self.levels // 2
        if self.table:
            steps = (0.0, *self.table)
            below = min(int(size), highest - 1)
            mapped = steps[below] + (size - below) * (steps[below + 1] - steps[below])
        else:
            mapped = size / highest
        if self.temperature is not None:
            mapped = math.tanh(mapped / self.temperature) / math.tanh(1 / self.temperature)
        return math.copysign(mapped, value) if value else 0.0


def preference(original: Verdict, swapped: Verdict, scale: RewardMap) -> float:
    """The reward of the policy's reply: the judge saw (policy, reference), then (reference, policy).

    (first - second) / 2 cancels a judge's liking for one place, and changes its sign exactly when
    the replies are exchanged.
    """
    return scale((original.level - swapped.level) / 2)


def prefers_position(original: Verdict, swapped: Verdict) -> bool:
    """Whether the judge prefers a place and not a reply: it prefers the first one both times, or the second one."""
    return original.level * swapped.level > 0


def rubric_score(criteria: Sequence[Criterion], met: Sequence[bool]) -> float:
    """The weights of the criteria that are met over the sum of the positive ones (HealthBench: Arora et al. 2025, section 3).

    Raises:
        ValueError: no criterion has a positive weight, or there is not one answer for each.
    """
    if len(criteria) != len(met):
        raise ValueError(f"{len(met)} answers for {len(criteria)} criteria")
    most = sum(criterion.weight for criterion in criteria if criterion.weight > 0)
    if most <= 0:
        raise ValueError("no criterion of the rubric has a positive weight; give at least one")
    return (
        sum(criterion.weight for criterion, is_met in zip(criteria, met, strict=True) if is_met)
        / most
    )


def rubric_reward(criteria: Sequence[Criterion], original: Verdict, swapped: Verdict) -> float:
    """The policy's score less the reference's, each the mean over both orders, within [-1, 1]."""
    policy = (
        rubric_score(criteria, original.first_met) + rubric_score(criteria, swapped.second_met)
    ) / 2
    reference = (
        rubric_score(criteria, original.second_met) + rubric_score(criteria, swapped.first_met)
    ) / 2
    return min(max(policy - reference, -1.0), 1.0)
