"""Confidence intervals of proportions."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Interval:
    """A confidence interval of a proportion, its ends included."""

    low: float
    high: float

    def contains(self, proportion: float) -> bool:
        """Returns whether a proportion lies within the interval."""
        return self.low <= proportion <= self.high


def wilson_interval(successes: int, trials: int, confidence: float = 0.95) -> Interval:
    """Returns the score interval of a proportion (Wilson, JASA 22, 1927).

    It holds all p with |successes / trials - p| <= z sqrt(p (1 - p) / trials), with z the normal
    quantile of (1 + confidence) / 2. Unlike the interval with the variance of the measured
    proportion, it keeps its coverage near 0 and 1.

    Args:
        successes: 0 to `trials`.
        trials: at least 1.
        confidence: within (0, 1).

    Raises:
        ValueError: an argument is out of range.
    """
    from scipy.stats import binomtest  # a second: too long for the start of every program

    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(
            f"{successes} successes of {trials} trials: give at least one trial, and no more "
            "successes than trials"
        )
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence} must lie between 0 and 1")
    interval = binomtest(successes, trials).proportion_ci(confidence, method="wilson")
    # Where nothing or everything succeeded, one end is exactly 0 or 1, which rounding can miss.
    return Interval(
        low=0.0 if successes == 0 else float(interval.low),
        high=1.0 if successes == trials else float(interval.high),
    )
