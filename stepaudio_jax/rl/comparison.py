"""From verdicts to a reward: preference against a reference reply, and rubrics, on one scale from -1 to 1."""

import dataclasses
import math
from collections.abc import Sequence

from stepaudio_jax.config import check_reward_map
from stepaudio_jax.data import Criterion
from stepaudio_jax.rl.verdict import Verdict


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
