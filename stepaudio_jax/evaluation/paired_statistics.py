"""Compares two models on the same items: difference, interval, p, and what could be detected."""

import dataclasses
import math

import numpy as np
from numpy.typing import NDArray

from stepaudio_jax.evaluation.statistics import Interval, Labels, Spread, Values, spread

_SEED = 0  # the same results have the same p
_NUM_FLIPS = 9_999
_MAX_SCALE = 64  # multiples of 1 / 64 and greater fractions are tested exactly
_MAX_EXACT_STEPS = 1 << 27
_MAX_ENUMERATED = 13  # clusters of other scores whose signs are flipped in every way
_CHUNK = 1 << 22  # signs drawn at a time


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Holds what two models' scores on the same items say about their difference.

    Attributes:
        n: number of items.
        clusters: number of clusters of items.
        mean_a, mean_b: the figure of each model on these items.
        difference: B less A.
        interval: 95 % interval of the difference; None where one cluster says nothing of it.
        p_value: two-sided, of no difference.
        test: "exact McNemar" or "sign flips".
        better, worse: the items on which B has more, and less, than A.
        detectable: the smallest difference that 80 % of such comparisons would find at 5 %; None
            where the spread is not known.
    """

    n: int
    clusters: int
    mean_a: float
    mean_b: float
    difference: float
    interval: Interval | None
    p_value: float
    test: str
    better: int
    worse: int
    detectable: float | None


def compare_paired(
    a: Values,
    b: Values,
    clusters: Labels | None = None,
    *,
    weights: Values | None = None,
    confidence: float = 0.95,
) -> Comparison:
    """Compares two models on the same items.

    Independent verdicts of 0 and 1 get the exact test of McNemar (Psychometrika 12, 1947: a
    binomial test of the items that only one model has right) and the score interval of Tango
    (Statistics in Medicine 17, 1998), which keeps its coverage where few items differ. Verdicts of
    0 and 1 in clusters get Tango's interval of counts that are divided by the design effect (Rao
    and Scott, Biometrics 48, 1992), with Student's quantile. Other scores get the interval of
    Student's t with the variance of `spread`.

    Scores that are not such verdicts, or are in clusters, are tested by flipping the signs of the
    clusters' differences (Canay, Romano and Shaikh, Econometrica 85, 2017): in every way where all
    scores are multiples of a fraction such as a half, or clusters are few; else in 9,999 ways of a
    fixed seed.

    Args:
        a, b: what each item adds to the numerator of the figure, in the same order.
        clusters: of each item; see `statistics.mean_interval`.
        weights: what each item adds to the denominator, the same for both; None for 1 each.
        confidence: of the interval.

    Raises:
        ValueError: there are no items, or the lengths differ.
    """
    first, second = np.asarray(a, float), np.asarray(b, float)
    weight = np.ones_like(first) if weights is None else np.asarray(weights, float)
    if not len(first) or not first.shape == second.shape == weight.shape or not weight.sum():
        raise ValueError("a comparison needs the scores of both models on the same items")
    if clusters is not None and len(clusters) != len(first):
        raise ValueError(f"{len(first)} items need a cluster each, not {len(clusters)}")
    change = second - first
    spread_ = spread(change, weights=weight, clusters=clusters)
    is_binary = weights is None and bool(np.isin((first, second), (0, 1)).all())
    is_single = spread_.clusters == len(first)
    better, worse = int((change > 0).sum()), int((change < 0).sum())
    difference = float(change.sum() / weight.sum())
    interval: Interval | None
    if is_binary and (is_single or spread_.degrees):
        interval = _binary_interval(better, worse, len(first), spread_, is_single, confidence)
    else:
        interval = _student_interval(difference, spread_, confidence)
    if is_binary and is_single:
        p_value, test = _mcnemar(better, worse), "exact McNemar"
    else:
        p_value, test = _sign_flips(change, clusters), "sign flips"
    return Comparison(
        n=len(first),
        clusters=spread_.clusters,
        mean_a=float(first.sum() / weight.sum()),
        mean_b=float(second.sum() / weight.sum()),
        difference=difference,
        interval=interval,
        p_value=p_value,
        test=test,
        better=better,
        worse=worse,
        detectable=_detectable(spread_),
    )


def minimum_detectable_difference(
    standard_error: float,
    *,
    significance: float = 0.05,
    power: float = 0.8,
    degrees: float | None = None,
) -> float:
    """Returns the smallest true difference that a two-sided test finds with a given power.

    (t of 1 - significance / 2, plus t of power) times the standard error of the difference (Cohen,
    Statistical Power Analysis for the Behavioral Sciences, 1988; Miller 2024, arXiv:2411.00640).

    Args:
        standard_error: of the difference.
        significance: of the test.
        power: the chance to find the difference.
        degrees: of freedom of Student's t; None for the normal distribution.

    Raises:
        ValueError: an argument is out of range.
    """
    from scipy.special import ndtri, stdtrit

    if not (standard_error >= 0 and 0 < significance < 1 and 0 < power < 1):
        raise ValueError(
            f"standard_error={standard_error} must not be negative, and significance={significance}"
            f" and power={power} must lie between 0 and 1"
        )

    def quantile(probability: float) -> float:
        return float(ndtri(probability) if degrees is None else stdtrit(degrees, probability))

    return (quantile(1 - significance / 2) + quantile(power)) * standard_error


def adjusted_p_values(p_values: Values) -> list[float]:
    """Returns p values that allow for their number (Holm, Scandinavian J. of Statistics 6, 1979).

    Of several comparisons in which nothing differs, one or more fall below 5 % with a chance of at
    most 5 %.
    """
    values = np.asarray(p_values, float)
    order = np.argsort(values, kind="stable")
    steps = values[order] * np.arange(len(values), 0, -1)
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return [float(value) for value in adjusted]


def _detectable(spread_: Spread) -> float | None:
    if not spread_.degrees or not spread_.variance:
        return None
    return minimum_detectable_difference(spread_.standard_error, degrees=spread_.degrees)


def _student_interval(difference: float, spread_: Spread, confidence: float) -> Interval | None:
    from scipy.special import stdtrit

    if not spread_.degrees:
        return None
    half = float(stdtrit(spread_.degrees, (1 + confidence) / 2)) * spread_.standard_error
    return Interval(difference - half, difference + half)


def _binary_interval(
    better: int, worse: int, pairs: int, spread_: Spread, is_single: bool, confidence: float
) -> Interval:
    from scipy.special import ndtri, stdtrit

    if is_single:
        return _tango_interval(better, worse, pairs, float(ndtri((1 + confidence) / 2)))
    # Where nothing differs the design effect is not known: every cluster counts as a pair.
    effect = spread_.design_effect if spread_.variance else pairs / spread_.clusters
    t = float(stdtrit(spread_.degrees, (1 + confidence) / 2))
    return _tango_interval(better / effect, worse / effect, pairs / effect, t)


def _tango_interval(better: float, worse: float, pairs: float, quantile: float) -> Interval:
    """Returns all differences that the score test of paired proportions does not reject.

    Tango 1998, equations 5 to 8: with q the most likely share of `worse` under the difference d,
    |better - worse - pairs d| <= quantile sqrt(pairs (2 q + d (1 - d))).
    """
    from scipy.optimize import brentq

    def score(d: float) -> tuple[float, float]:
        linear = d * (2 * pairs - better + worse) - better - worse
        root = math.sqrt(max(linear**2 + 8 * pairs * worse * d * (1 - d), 0.0))
        share = (root - linear) / (4 * pairs)
        variance = pairs * (2 * share + d * (1 - d))
        return better - worse - pairs * d, math.sqrt(max(variance, 0.0))

    def rejection(d: float, sign: int) -> float:
        distance, deviation = score(d)
        return sign * distance - quantile * deviation

    # The estimate itself solves the equation too where its own variance is 0.
    below, above = ((better - worse) / pairs + step for step in (-1e-9, 1e-9))
    low = -1.0 if rejection(-1.0, 1) <= 0 else brentq(rejection, -1.0, below, args=(1,))
    high = 1.0 if rejection(1.0, -1) <= 0 else brentq(rejection, above, 1.0, args=(-1,))
    return Interval(float(low), float(high))


def _mcnemar(better: int, worse: int) -> float:
    from scipy.stats import binomtest

    if not better + worse:
        return 1.0
    return float(binomtest(better, better + worse, 0.5).pvalue)


def _sign_flips(change: NDArray[np.float64], clusters: Labels | None) -> float:
    """Returns the share of sign flips whose sum is as far from 0 as the measured one.

    The measured signs count as a flip, so that the test keeps its level.
    """
    sums = change
    if clusters is not None:
        _, codes = np.unique(np.asarray(clusters), return_inverse=True)
        sums = np.bincount(codes, change).astype(np.float64)
    sums = sums[np.abs(sums) > 1e-12]
    if not len(sums):
        return 1.0
    scale = next((k for k in range(1, _MAX_SCALE + 1) if _are_whole(k * sums)), None)
    if scale is not None and len(sums) * scale * np.abs(sums).sum() <= _MAX_EXACT_STEPS:
        return _exact_sign_flips(np.rint(scale * sums).astype(int))
    limit = abs(sums.sum()) * (1 - 1e-9) - 1e-12
    if len(sums) <= _MAX_ENUMERATED:
        signs = 2 * (np.arange(2 ** len(sums))[:, None] >> np.arange(len(sums)) & 1) - 1
        return float((np.abs(signs @ sums) >= limit).mean())
    rng = np.random.default_rng(_SEED)
    total, width = float(sums.sum()), -(-len(sums) // 8)
    rows = max(_CHUNK // len(sums), 1)
    extreme = 0
    for start in range(0, _NUM_FLIPS, rows):
        count = min(rows, _NUM_FLIPS - start)
        drawn = np.frombuffer(rng.bytes(count * width), np.uint8).reshape(count, width)
        flips = np.unpackbits(drawn, axis=1, count=len(sums))
        extreme += int((np.abs(2 * (flips @ sums) - total) >= limit).sum())
    return (1 + extreme) / (1 + _NUM_FLIPS)


def _exact_sign_flips(sums: NDArray[np.int_]) -> float:
    """Returns the share of all 2^n sign flips; the sums are whole numbers, and none is 0.

    The distribution of the flipped sum is built up term by term: each moves it up or down.
    """
    sizes = np.abs(sums)
    total, observed = int(sizes.sum()), abs(int(sums.sum()))
    chances = np.zeros(total + 1)  # of the sum of the terms that stay positive
    chances[0] = 1.0
    for size in sizes:
        moved = chances[:-size] / 2
        chances /= 2
        chances[size:] += moved
    flipped = 2 * np.arange(total + 1) - total
    return min(float(chances[np.abs(flipped) >= observed].sum()), 1.0)


def _are_whole(values: NDArray[np.float64]) -> bool:
    return bool((np.abs(values - np.rint(values)) < 1e-9).all())
