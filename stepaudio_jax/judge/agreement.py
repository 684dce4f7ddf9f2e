"""How far people, and judges, agree: Krippendorff's alpha, weighted kappa, position bias.

Pure functions of verdicts; what is missing is None.
"""

import collections
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

Metric = Literal["ordinal", "nominal"]


def krippendorff_alpha(
    units: Iterable[Sequence[float | None]], metric: Metric = "ordinal"
) -> float | None:
    """Returns Krippendorff's alpha: 1 - observed over expected disagreement.

    1 is perfect agreement, 0 what chance gives, below 0 is less than chance.

    Args:
        units: of each unit, the values that it was given; None is missing. Units with fewer than
            two values do not count.
        metric: how far two values are apart: "ordinal" by how many values lie between them, each
            end counting half; "nominal" by whether they differ.

    Returns:
        Alpha, or None where no two values can be compared, or all are the same.

    Source: Krippendorff, Computing Krippendorff's Alpha-Reliability (2011), sections C and E.
    """
    pairable = [kept for unit in units if len(kept := _present(unit)) > 1]
    totals = collections.Counter(value for unit in pairable for value in unit)
    if len(totals) < 2:
        return None
    distance = _ordinal_distance(totals) if metric == "ordinal" else _nominal_distance
    observed = math.fsum(
        2.0 * distance(first, second) / (len(unit) - 1)
        for unit in pairable
        for first, second in itertools.combinations(unit, 2)
    )
    number = totals.total()
    expected = math.fsum(
        2.0 * totals[first] * totals[second] * distance(first, second) / (number - 1)
        for first, second in itertools.combinations(totals, 2)
    )
    return 1.0 - observed / expected


def weighted_kappa(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Returns Cohen's kappa with quadratic weights, of two raters' values of the same items.

    The weight of a disagreement is the square of the difference, so that values need not be whole
    levels.

    Returns:
        Kappa; None where there is no pair, or both raters always give one and the same value.

    Source: Cohen, Weighted kappa (1968), equation 8.
    """
    first = collections.Counter(value for value, _ in pairs)
    second = collections.Counter(value for _, value in pairs)
    observed = math.fsum((value - other) ** 2 for value, other in pairs)
    expected = math.fsum(
        count * others * (value - other) ** 2
        for value, count in first.items()
        for other, others in second.items()
    )
    return None if not expected else 1.0 - len(pairs) * observed / expected


def share_of_first(first_is_preferred: Sequence[bool]) -> float | None:
    """Returns the share of verdicts that prefer what stood first; without a bias it is 0.5."""
    return None if not first_is_preferred else sum(first_is_preferred) / len(first_is_preferred)


def _present(unit: Sequence[float | None]) -> list[float]:
    return [value for value in unit if value is not None]


def _nominal_distance(first: float, second: float) -> float:
    return float(first != second)


def _ordinal_distance(totals: Mapping[float, int]) -> Callable[[float, float], float]:
    """Returns the squared ordinal distance of two values, by how often each value occurs."""
    ordered = sorted(totals)
    # The number of values below each, and half of those that are the same.
    below = itertools.accumulate((totals[value] for value in ordered), initial=0)
    ranks = {value: start + totals[value] / 2 for value, start in zip(ordered, below, strict=False)}
    return lambda first, second: (ranks[first] - ranks[second]) ** 2
