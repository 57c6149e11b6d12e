"""Statistics of benchmark runs as small pure functions over NumPy arrays.

The unit of evidence is the *run*, never the request: requests of one run share its clocks, its memory layout and its neighbours, so ten
thousand of them are one observation of those. Speeds are compared as ln(B/A): symmetric in the two sides, additive over steps, and its
noise is nearer normal than that of a ratio.

Tests are one-sided against a margin (non-inferiority), since the question of a gate is "did it get worse by more than I tolerate?", not
"did anything change?": with enough repeats something always did.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trtllm_results.errors import ResultsError

FloatArray = npt.NDArray[np.float64]
FEW = 6
"""So few paired values must all agree (`Evidence`): 2^-6 is the chance that drawn signs alone make them."""


@dataclass(frozen=True)
class Interval:
    """An estimate and its two-sided confidence interval; `df` degrees of freedom (0 where the notion does not apply)."""

    low: float
    estimate: float
    high: float
    confidence: float
    df: float = 0.0

    def as_ratio(self) -> Interval:
        """exp of a log-ratio interval, minus one: a relative change."""
        return Interval(math.expm1(self.low), math.expm1(self.estimate), math.expm1(self.high), self.confidence, self.df)


def t_quantile(probability: float, df: float) -> float:
    """Of Student's t. (`scipy.special` throughout: `scipy.stats` takes a second to import.)"""
    from scipy.special import stdtrit

    return float(stdtrit(df, probability))


@dataclass(frozen=True)
class Evidence:
    """Mean of a quantity with its standard error and degrees of freedom: all a t test needs.

    `extremes` is the smallest and largest of `FEW` paired values or fewer. A claim about the mean then asks that all of them agree with it:
    where each value's sign is drawn (the order of a block), a t test of so few is fooled by a disturbance that hits most of them.
    """

    mean: float
    error: float
    df: float
    extremes: tuple[float, float] | None = None

    def interval(self, confidence: float = 0.95) -> Interval:
        reach = t_quantile(0.5 + confidence / 2, self.df) * self.error if self.error > 0 else 0.0
        return Interval(self.mean - reach, self.mean, self.mean + reach, confidence, self.df)

    def p_below(self, bound: float) -> float:
        """One-sided p value for the claim "the mean lies below `bound`" (null: it does not)."""
        from scipy.special import stdtr

        if self.extremes is not None and self.extremes[1] >= bound:
            return 1.0
        if self.error == 0:
            return 0.0 if self.mean < bound else 1.0
        return float(stdtr(self.df, (self.mean - bound) / self.error))

    def p_above(self, bound: float) -> float:
        """One-sided p value for the claim "the mean lies above `bound`"."""
        from scipy.special import stdtr

        if self.extremes is not None and self.extremes[0] <= bound:
            return 1.0
        if self.error == 0:
            return 0.0 if self.mean > bound else 1.0
        return float(stdtr(self.df, (bound - self.mean) / self.error))

    def negated(self) -> Evidence:
        """Of the quantity's negative."""
        return Evidence(-self.mean, self.error, self.df, self.extremes and (-self.extremes[1], -self.extremes[0]))


def paired(differences: npt.ArrayLike) -> Evidence:
    """Mean of n >= 2 differences, one a block."""
    values = np.asarray(differences, dtype=float)
    if len(values) < 2:
        raise ResultsError(f"an interval needs at least 2 blocks; there is {len(values)}")
    extremes = (float(values.min()), float(values.max())) if len(values) <= FEW else None
    return Evidence(float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values))), len(values) - 1, extremes)


def log_ratio(a: npt.ArrayLike, b: npt.ArrayLike) -> Evidence:
    """ln(B/A) of two independent samples of positive values, n >= 2 each, with unequal variances (Welch, Biometrika 1947)."""
    first, second = np.log(_positive(a)), np.log(_positive(b))
    if min(len(first), len(second)) < 2:
        raise ResultsError(f"an interval needs at least 2 repeats on each side; there are {len(first)} and {len(second)}")
    va, vb = first.var(ddof=1) / len(first), second.var(ddof=1) / len(second)
    total = va + vb
    df = total**2 / (va**2 / (len(first) - 1) + vb**2 / (len(second) - 1)) if total > 0 else len(first) + len(second) - 2
    return Evidence(float(second.mean() - first.mean()), math.sqrt(total), float(df))


def _positive(values: npt.ArrayLike) -> FloatArray:
    array = np.asarray(values, dtype=float)
    if not np.all(np.isfinite(array)) or np.any(array <= 0):
        raise ResultsError("a figure to compare is zero, negative or not a number; a ratio needs positive values")
    return array


def sd_interval(sd: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Chi-square interval of the standard deviation behind a sample's `sd` of n values. (Rejected: bootstrap, which of three values
    knows three.)"""
    from scipy.special import chdtri

    tail = (1 - confidence) / 2
    low, high = (math.sqrt((n - 1) / float(chdtri(n - 1, 1 - p))) for p in (1 - tail, tail))
    return sd * low, sd * high


def mann_whitney(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """Two-sided p value that A and B are drawn from one distribution (Mann and Whitney 1947): exact without ties where one of them has at
    most eight values, else by the normal distribution with corrections for ties and continuity."""
    from scipy.special import ndtr

    x, y = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    n, m = len(x), len(y)
    wins = float((x[:, None] > y).sum() + 0.5 * (x[:, None] == y).sum())
    u = max(wins, n * m - wins)
    _, shared = np.unique(np.concatenate([x, y]), return_counts=True)
    if shared.max() == 1 and min(n, m) <= 8:
        ways = _orders_by_wins(n, m)
        return min(1.0, 2 * sum(ways[int(u) :]) / sum(ways))
    variance = n * m / 12 * (n + m + 1 - float((shared**3 - shared).sum()) / ((n + m) * (n + m - 1)))
    score = (u - n * m / 2 - 0.5) / math.sqrt(variance) if variance > 0 else 0.0
    return min(1.0, 2 * float(ndtr(-score)))


def _orders_by_wins(n: int, m: int) -> list[int]:
    """In how many orders of n and m values the first n win 0, 1, ... n * m times: coefficients of the Gaussian binomial, which is the
    product of (1 - q^(m + k)) / (1 - q^k) for k in 1..n."""
    ways = [1] + [0] * (n * m)
    for k in range(1, n + 1):
        for j in range(n * m, m + k - 1, -1):
            ways[j] -= ways[j - m - k]
        for j in range(k, n * m + 1):
            ways[j] += ways[j - k]
    return ways


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p values (Holm 1979): rejecting those at or below alpha keeps the chance of any false rejection at or below alpha."""
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


def alpha_spending(looks: Sequence[float], alpha: float = 0.05, shape: str = "pocock") -> list[float]:
    """Significance level to use at each of several looks (information fractions rising to 1) so that the total stays within `alpha`.

    Spending functions of Lan and DeMets (Biometrika 1983): `pocock` alpha ln(1 + (e - 1) t), `obrien_fleming` 2 - 2 Phi(z / sqrt t). Each
    look uses its own increment, which bounds the total by the union bound: a little stricter than integrating the joint distribution, and
    valid whatever the dependence between looks.
    """
    from scipy.special import ndtr, ndtri

    fractions = list(looks)
    if not fractions or sorted(fractions) != fractions or fractions[0] <= 0 or abs(fractions[-1] - 1) > 1e-9:
        raise ResultsError("looks must be rising fractions that end at 1")
    if shape == "pocock":
        spent = [alpha * math.log(1 + (math.e - 1) * t) for t in fractions]
    elif shape == "obrien_fleming":
        z = float(ndtri(1 - alpha / 2))
        spent = [2 - 2 * float(ndtr(z / math.sqrt(t))) for t in fractions]
    else:
        raise ResultsError(f"spending shape {shape!r:.60} is not known; use pocock or obrien_fleming")
    return [now - before for now, before in zip(spent, [0.0, *spent[:-1]], strict=True)]


def change_points(series: npt.ArrayLike, penalty: float = 3.0, minimum: int = 2) -> list[int]:
    """Indices at which the mean of `series` shifts: least squares over all segmentations (optimal partitioning, Jackson et al. 2005).

    A further shift costs `penalty * ln(n) * variance`, the noise variance taken robustly from neighbouring differences, so that the shifts
    themselves do not inflate it. Segments hold at least `minimum` points. A shift beside which one point alone would explain more is left
    out: with the first or last point of its segments apart, the others are closer to their means.
    """
    values = np.asarray(series, dtype=float)
    n = len(values)
    if n < 2 * minimum:
        return []
    steps = np.abs(np.diff(values))
    sigma = float(np.median(steps)) / (0.6744898 * math.sqrt(2))
    cost_of_shift = penalty * math.log(n) * max(sigma**2, 1e-18)
    sums, squares = np.concatenate([[0.0], np.cumsum(values)]), np.concatenate([[0.0], np.cumsum(values**2)])
    best, previous = np.full(n + 1, math.inf), np.zeros(n + 1, dtype=int)
    best[0] = -cost_of_shift
    for end in range(minimum, n + 1):
        starts = np.arange(0, end - minimum + 1)
        lengths = end - starts
        cost = squares[end] - squares[starts] - (sums[end] - sums[starts]) ** 2 / lengths
        totals = best[starts] + cost + cost_of_shift
        choice = int(np.argmin(totals))
        best[end], previous[end] = totals[choice], starts[choice]
    shifts, end = [], n
    while end > 0:
        end = int(previous[end])
        if end > 0:
            shifts.append(end)
    ends = [0, *shifts[::-1], n]

    def residue(start: int, split: int, stop: int) -> float:
        parts = ((start, split), (split, stop))
        return float(sum(squares[b] - squares[a] - (sums[b] - sums[a]) ** 2 / (b - a) for a, b in parts))

    around = zip(ends, ends[1:], ends[2:], strict=False)
    return [at for a, at, b in around if residue(a, at, b) <= min(residue(a, a + 1, b), residue(a, b - 1, b))]


def trend(series: npt.ArrayLike) -> tuple[float, float]:
    """Total rise of the least-squares line over `series`, and the two-sided p value of the t test that its slope is zero."""
    from scipy.special import stdtr

    values = np.asarray(series, dtype=float)
    if len(values) < 3:
        return 0.0, 1.0
    index = np.arange(len(values)) - (len(values) - 1) / 2
    slope = float(index @ values / (index @ index))
    residuals = values - values.mean() - slope * index
    df = len(values) - 2
    error = math.sqrt(float(residuals @ residuals) / df / float(index @ index))
    if error < 1e-12 * abs(slope) or slope == 0:
        return slope * (len(values) - 1), 1.0 if slope == 0 else 0.0
    return slope * (len(values) - 1), 2 * float(stdtr(df, -abs(slope) / error))


def block_interval(sums: npt.ArrayLike, counts: npt.ArrayLike, confidence: float = 0.95) -> Interval:
    """Of the mean of a quantity, given its sum and count in each block: the t interval of a ratio of sums (Cochran 1977, "Sampling
    Techniques", section 6.4). Values of one block may depend on each other. One block has no interval: its ends are NaN. (Rejected:
    percentiles of a bootstrap over blocks, whose 95% interval held the truth in 86% of trials with 8 blocks, and 81% with 4.)"""
    total, number = np.asarray(sums, np.float64), np.asarray(counts, np.float64)
    estimate, n = float(total.sum() / number.sum()), len(total)
    if n < 2:
        return Interval(math.nan, estimate, math.nan, confidence)
    residuals = total - estimate * number
    error = math.sqrt(n / (n - 1) * float(residuals @ residuals)) / float(number.sum())
    return Evidence(estimate, error, n - 1).interval(confidence)


def share_interval(right: int, count: int, confidence: float = 0.95) -> Interval:
    """Of a share (Wilson 1927): an interval that stays within 0 and 1, and is not empty where all or none are right."""
    from scipy.special import ndtri

    share, z = right / count, float(ndtri(0.5 + confidence / 2))
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return Interval(max(0.0, centre - half), share, min(1.0, centre + half), confidence)
