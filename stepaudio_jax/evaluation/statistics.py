"""How sure one can be of a proportion."""

import dataclasses
import math
from statistics import NormalDist


@dataclasses.dataclass(frozen=True)
class Interval:
    """A confidence interval of a proportion, its ends included."""

    low: float
    high: float

    def contains(self, proportion: float) -> bool:
        """Whether the proportion lies in it: with that of chance, whether what was measured may be chance."""
        return self.low <= proportion <= self.high


def wilson_interval(successes: int, trials: int, confidence: float = 0.95) -> Interval:
    """The score interval of a proportion (Wilson 1927, Journal of the American Statistical Association 22).

    All p at which |successes / trials - p| <= z sqrt(p (1 - p) / trials), z the normal quantile of
    (1 + confidence) / 2. Unlike the interval around the measured proportion with its own variance,
    it keeps its coverage near 0 and 1, where it does not shrink to a point.

    Args:
        successes: 0 to `trials`.
        trials: at least 1.
        confidence: within (0, 1).

    Raises:
        ValueError: an argument is out of range.
    """
    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(
            f"{successes} successes of {trials} trials: give at least one trial, and no more successes than trials"
        )
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence} must lie between 0 and 1")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    proportion = successes / trials
    share = z * z / trials
    centre = (proportion + share / 2) / (1 + share)
    half = math.sqrt(share * (proportion * (1 - proportion) + share / 4)) / (1 + share)
    # Where nothing or everything succeeded an end is exactly 0 or 1, which rounding would miss.
    return Interval(
        low=0.0 if successes == 0 else centre - half,
        high=1.0 if successes == trials else centre + half,
    )
