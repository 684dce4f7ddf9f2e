"""Confidence intervals of benchmark figures, pass@k, and the spread between runs of a judge.

Items that share their sound are no independent questions, so a figure's variance is summed over
clusters of items. `paired_statistics` compares two models on the same items.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = Sequence[float] | NDArray[Any]
Labels = Sequence[str]


@dataclasses.dataclass(frozen=True)
class Interval:
    """A confidence interval of a proportion, a mean or a difference, its ends included."""

    low: float
    high: float

    def contains(self, value: float) -> bool:
        """Returns whether a value lies within the interval."""
        return self.low <= value <= self.high


@dataclasses.dataclass(frozen=True)
class Spread:
    """How far an estimate may lie from what it estimates.

    Attributes:
        variance: of the estimate; 0 where the values do not vary.
        degrees: of freedom of Student's t; 0 where nothing is known of the variance.
        clusters: how many there are.
        design_effect: the variance over that of independent values (Kish, Survey Sampling, 1965).
    """

    variance: float
    degrees: float
    clusters: int
    design_effect: float

    @property
    def standard_error(self) -> float:
        """Returns the standard error of the estimate."""
        return math.sqrt(self.variance)


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
    from scipy.special import ndtri

    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(
            f"{successes} successes of {trials} trials: give at least one trial, and no more "
            "successes than trials"
        )
    _check_confidence(confidence)
    return _score_interval(successes / trials, trials, float(ndtri((1 + confidence) / 2)))


def mean_interval(
    values: Values,
    clusters: Labels | None = None,
    strata: Labels | None = None,
    *,
    confidence: float = 0.95,
) -> Interval:
    """Returns the interval of the mean of values between 0 and 1.

    Independent verdicts of 0 and 1 get Wilson's interval. All others get a score interval too: the
    variance is taken to be phi p (1 - p), with phi such that it is the measured one at the mean
    (Papke and Wooldridge, J. Applied Econometrics 11, 1996), which makes an effective number of
    trials (Korn and Graubard, Survey Methodology 24, 1998). The quantile is Student's, since the
    variance is estimated; see `spread`.

    Args:
        values: one for each item.
        clusters: of each item; items of a cluster depend on each other, as those with the same
            sound. None: every item is one of its own.
        strata: of each item, such as its category, where the number of items in each is fixed. The
            mean stays that of all items; only the spread within strata counts.
        confidence: within (0, 1).

    Raises:
        ValueError: there are no values, one is not between 0 and 1, or labels are missing.
    """
    array = _checked(values, clusters, strata)
    _check_confidence(confidence)
    if not ((array >= 0) & (array <= 1)).all():
        raise ValueError("values of a mean must lie between 0 and 1")
    are_single = clusters is None or len(set(clusters)) == len(array)
    if strata is None and are_single and np.isin(array, (0, 1)).all():
        return wilson_interval(int(array.sum()), len(array), confidence)
    mean = float(array.mean())
    spread_ = spread(array, clusters=clusters, strata=strata)
    return bounded_interval(mean, spread_, confidence)


def ratio_interval(
    numerators: Values,
    denominators: Values,
    clusters: Labels | None = None,
    *,
    is_share: bool = False,
    confidence: float = 0.95,
) -> Interval | None:
    """Returns the interval of a ratio of sums, such as a word error rate.

    The variance is that of the ratio estimator (Cochran, Sampling Techniques, 1977, chapter 6),
    summed over clusters. A share gets the score interval of `mean_interval`. That of a ratio which
    may exceed 1 is symmetric on its logarithm, as counts of errors are skewed; where nothing was
    counted, its upper end is that of a Poisson count of 0.

    Args:
        numerators: of each item, such as its number of errors; not negative.
        denominators: of each item, such as its number of words; not negative.
        clusters: see `mean_interval`.
        is_share: whether the numerator is a part of the denominator.
        confidence: within (0, 1).

    Returns:
        The interval; None with fewer than two clusters, which say nothing of the spread.

    Raises:
        ValueError: there are no values, one is negative, or every denominator is 0.
    """
    from scipy.special import stdtrit

    above = _checked(numerators, clusters, None)
    below = np.asarray(denominators, float)
    _check_confidence(confidence)
    if below.shape != above.shape or (above < 0).any() or (below < 0).any() or not below.sum():
        raise ValueError(
            "a ratio needs a numerator and a denominator for each item, none negative, and a"
            " denominator above 0"
        )
    ratio = float(above.sum() / below.sum())
    if is_share:
        spread_ = spread(above, weights=below, clusters=clusters)
        return bounded_interval(min(ratio, 1.0), spread_, confidence)
    if ratio == 0:
        return Interval(0.0, -math.log((1 - confidence) / 2) / float(below.sum()))
    spread_ = spread(above, weights=below, clusters=clusters)
    if not spread_.degrees:
        return None
    t = float(stdtrit(spread_.degrees, (1 + confidence) / 2))
    factor = math.exp(t * spread_.standard_error / ratio)
    return Interval(ratio / factor, ratio * factor)


def macro_interval(
    values: Values, groups: Labels, clusters: Labels | None = None, *, confidence: float = 0.95
) -> Interval:
    """Returns the interval of the unweighted mean of the groups' means, of values from 0 to 1.

    It covers less than it says (91 % of 4,000 draws) where a group of some 20 items near 0 or 1
    counts as much as groups of hundreds: the variance of such a group is hardly known.

    Args:
        values: one for each item.
        groups: of each item.
        clusters: see `mean_interval`.
        confidence: within (0, 1).

    Raises:
        ValueError: as `mean_interval`.
    """
    array = _checked(values, clusters, groups)
    _check_confidence(confidence)
    _, group, sizes = np.unique(np.asarray(groups), return_inverse=True, return_counts=True)
    shares = 1 / (len(sizes) * sizes[group])
    spread_ = spread(array, clusters=clusters, strata=groups, shares=shares)
    return bounded_interval(float(shares @ array), spread_, confidence)


def spread(
    values: Values,
    *,
    weights: Values | None = None,
    clusters: Labels | None = None,
    strata: Labels | None = None,
    shares: Values | None = None,
) -> Spread:
    """Returns how far sum(values) / sum(weights) may lie from what it estimates.

    The variance is the cluster-robust one with each cluster's residual divided by the root of 1
    less its share, which is CR2 for a mean (Bell and McCaffrey, Survey Methodology 28, 2002): with
    clusters of one item each it is the sample variance over n. The degrees of freedom are the
    effective number of clusters, (sum q)^2 / sum q^2 with q a cluster's expected part of the
    variance under its own estimated correlation (Carter, Schnepel and Steigerwald, Review of
    Economics and Statistics 99, 2017), less one for each stratum, in proportion.

    A stratum with one cluster says nothing of its spread and is joined with others of that kind
    (collapsed strata: Cochran, Sampling Techniques, 1977, chapter 5A).

    Args:
        values: what each item adds to the numerator.
        weights: what it adds to the denominator; None for 1 each.
        clusters, strata: of each item; see `mean_interval`.
        shares: what each item's value is multiplied by, where that is not 1 / sum(weights).
    """
    above = np.asarray(values, float)
    below = np.ones_like(above) if weights is None else np.asarray(weights, float)
    cluster = _codes(clusters, len(above))
    stratum = np.zeros(len(above), int) if strata is None else _codes(strata, len(above))
    stratum = _joined_strata(stratum, cluster)
    share = below / below.sum() if shares is None else np.asarray(shares, float)
    scale = 1 / below.sum() if shares is None else share  # of a residual in the estimate
    num_clusters, num_strata = int(cluster.max()) + 1, int(stratum.max()) + 1
    if num_clusters <= num_strata:
        return Spread(0.0, 0.0, num_clusters, 1.0)
    stratum_share = np.bincount(stratum, share)
    stratum_mean = np.bincount(stratum, scale * above) / np.where(stratum_share, stratum_share, 1)
    residual = scale * above - share * stratum_mean[stratum]
    # A cluster may lie in several strata: it is corrected in each, and then summed.
    _, piece = np.unique(stratum * num_clusters + cluster, return_inverse=True)
    leverage = (np.bincount(piece, share) / stratum_share[_first(stratum, piece)]).clip(max=1)
    corrected = np.bincount(piece, residual) / np.sqrt(np.where(leverage < 1, 1 - leverage, 1))
    sums = np.bincount(_first(cluster, piece), corrected, minlength=num_clusters)
    own_leverage = (share / stratum_share[stratum]).clip(max=1)
    independent = float((residual**2 / np.where(own_leverage < 1, 1 - own_leverage, 1)).sum())
    variance = float((sums**2).sum())
    effect = variance / independent if independent > 0 else 1.0
    squares = np.bincount(cluster, share**2)
    totals = np.bincount(cluster, share) ** 2
    excess = float(totals.sum() / squares.sum()) - 1
    correlation = min(max((effect - 1) / excess, 0.0), 1.0) if excess > 1e-9 else 0.0
    expected = (1 - correlation) * squares + correlation * totals
    effective = float(expected.sum() ** 2 / (expected**2).sum())
    degrees = effective * (num_clusters - num_strata) / num_clusters
    return Spread(variance, max(degrees, 1.0), num_clusters, effect)


def bounded_interval(mean: float, spread_: Spread, confidence: float = 0.95) -> Interval:
    """Returns the score interval of a mean between 0 and 1 with a measured variance.

    Where the values do not vary, or there is one cluster only, they get the largest variance that
    values between 0 and 1 can have: every cluster counts as a trial.
    """
    from scipy.special import ndtri, stdtrit

    quantile = (1 + confidence) / 2
    t = float(stdtrit(spread_.degrees, quantile) if spread_.degrees else ndtri(quantile))
    if spread_.variance > 0 and 0 < mean < 1:
        trials = mean * (1 - mean) / spread_.variance
    else:
        trials = float(spread_.clusters)
    return _score_interval(mean, trials, t)


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Returns the unbiased estimate of the chance that one of k samples is right.

    1 - C(n - c, k) / C(n, k) (Chen et al. 2021, arXiv:2107.03374, equation 1).

    Args:
        num_samples: n, at least k.
        num_correct: c, the right ones among them.
        k: at least 1.

    Raises:
        ValueError: an argument is out of range.
    """
    if not (1 <= k <= num_samples and 0 <= num_correct <= num_samples):
        raise ValueError(
            f"pass@{k} of {num_correct} right among {num_samples} samples: k must be between 1 and"
            " the number of samples, which no more than all can be right"
        )
    return 1 - math.comb(num_samples - num_correct, k) / math.comb(num_samples, k)


@dataclasses.dataclass(frozen=True)
class RepeatedRuns:
    """How much a figure owes to the chance of a judge that is asked the same again.

    Attributes:
        runs: how often everything was judged.
        items: those with a verdict in every run.
        left_out: those without a verdict in at least one.
        run_means: the figure of each run.
        standard_deviation: between the figures of runs, as the spread within items makes it.
        agreement: share of the items on which all runs agree exactly.
        variance_share: of the variance between items in one run, the part that the judge makes.
    """

    runs: int
    items: int
    left_out: int
    run_means: tuple[float, ...]
    standard_deviation: float
    agreement: float
    variance_share: float


def repeated_runs(scores: Sequence[Sequence[float | None]]) -> RepeatedRuns:
    """Returns the variance between repeated runs of a judge on the same replies.

    A run's figure is a mean over n items, so the judge alone makes it vary by the sum of the items'
    variances over n^2, here with each item's unbiased variance between runs (the law of total
    variance, as in Miller 2024, arXiv:2411.00640).

    Args:
        scores: for each run, the score of every item in the same order; None for an abstention.

    Raises:
        ValueError: there are fewer than two runs, they are not of the same items, or no item has a
            verdict in each.
    """
    if len(scores) < 2 or len({len(run) for run in scores}) != 1:
        raise ValueError("give the scores of at least two runs, each of the same items in order")
    table = np.array([[math.nan if s is None else s for s in run] for run in scores], float)
    complete = table[:, np.isfinite(table).all(axis=0)]
    num_runs, num_items = complete.shape
    if not num_items:
        raise ValueError("no item has a verdict in every run")
    within = complete.var(axis=0, ddof=1)
    between = complete.var(axis=1, ddof=1).mean() if num_items > 1 else 0.0
    return RepeatedRuns(
        runs=num_runs,
        items=num_items,
        left_out=table.shape[1] - num_items,
        run_means=tuple(map(float, complete.mean(axis=1))),
        standard_deviation=math.sqrt(within.sum()) / num_items,
        agreement=float((complete == complete[0]).all(axis=0).mean()),
        variance_share=min(float(within.mean() / between), 1.0) if between > 0 else 0.0,
    )


def _score_interval(mean: float, trials: float, quantile: float) -> Interval:
    """Returns all p with |mean - p| <= quantile sqrt(p (1 - p) / trials)."""
    square = quantile**2
    centre = (mean + square / (2 * trials)) / (1 + square / trials)
    half = (
        quantile
        / (1 + square / trials)
        * math.sqrt(mean * (1 - mean) / trials + square / (4 * trials**2))
    )
    # Where nothing or everything succeeded, one end is exactly 0 or 1, which rounding can miss.
    return Interval(
        low=0.0 if mean == 0 else max(centre - half, 0.0),
        high=1.0 if mean == 1 else min(centre + half, 1.0),
    )


def _joined_strata(stratum: NDArray[Any], cluster: NDArray[Any]) -> NDArray[Any]:
    """Returns the strata, numbered from 0, with those of a single cluster joined."""
    pairs = np.unique(np.stack([stratum, cluster]), axis=1)
    is_single = np.bincount(pairs[0]) == 1
    if is_single.all():
        return np.zeros_like(stratum)
    if is_single.any():
        singles = np.flatnonzero(is_single)
        target = singles[0]
        if len(singles) == 1:  # the smallest of the others takes it in
            sizes = np.bincount(stratum).astype(float)
            sizes[target] = math.inf
            target = int(sizes.argmin())
        stratum = np.where(is_single[stratum], target, stratum)
    return np.unique(stratum, return_inverse=True)[1]


def _codes(labels: Labels | None, count: int) -> NDArray[Any]:
    """Returns labels as numbers from 0; None gives each item one of its own."""
    if labels is None:
        return np.arange(count)
    return np.unique(np.asarray(labels), return_inverse=True)[1]


def _first(labels: NDArray[Any], piece: NDArray[Any]) -> NDArray[Any]:
    """Returns the label of each piece, which is the same for all of its items."""
    of_piece = np.empty(int(piece.max()) + 1, int)
    of_piece[piece] = labels
    return of_piece


def _checked(values: Values, clusters: Labels | None, strata: Labels | None) -> NDArray[Any]:
    array = np.asarray(values, float)
    if array.ndim != 1 or not len(array) or not np.isfinite(array).all():
        raise ValueError("give at least one value, all of them finite")
    for labels, name in ((clusters, "cluster"), (strata, "stratum")):
        if labels is not None and len(labels) != len(array):
            raise ValueError(f"{len(array)} values need a {name} each, not {len(labels)}")
    return array


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence} must lie between 0 and 1")
