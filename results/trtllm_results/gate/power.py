"""What a sequential test can find, and how many samples would decide: computed for the looks that are really taken.

A gate looks at preset numbers of blocks and spends a share of alpha at each. The power of a single t test at full alpha is therefore not
the gate's: it promised 0.8 where the gate had 0.55. Two more things are accounted for here. The standard deviation is an estimate, and
what a shift loses in power when the estimate is too small is more than it gains when it is too large. And several figures judged together
share alpha (Holm).

The chances are Monte Carlo integrals over seeded draws of the sufficient statistics (mean and sum of squares at each look), so the cost
does not grow with the number of blocks. 20,000 draws give a standard error of 0.003 at power 0.8. Rejected: the closed forms for a known
variance (Jennison and Turnbull 2000, chapter 2), which are far off at five blocks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from trtllm_results.stats import FEW, alpha_spending, t_quantile

FloatArray = npt.NDArray[np.float64]
MOST_DF = 1e6
"""Degrees of freedom of a deviation that is taken as known."""
POWER = 0.8
"""Power at which the minimum detectable effect is stated."""
PROJECTED = 0.84
"""Predicted chance at which a number of blocks is stated. It leaves room for the estimates' luck: at an eighth of the margin from it, 0.8
is delivered."""
PROJECTED_REPEATS = 0.92
"""The same for repeats of one candidate: three runs know their spread worse than six blocks do."""
DRAWS = 20_000
PROJECTION_DRAWS = 4_000
MOST_BLOCKS = 10_000
"""Larger numbers of blocks or repeats are not proposed."""


@dataclass(frozen=True)
class Component:
    """One independent part of a standard error, with the degrees of freedom it was estimated from."""

    error: float
    df: float


def combined(parts: Sequence[Component]) -> tuple[float, float]:
    """Standard error of a sum of independent parts and its degrees of freedom (Satterthwaite, Biometrics 1946), at most `MOST_DF`."""
    total = math.sqrt(sum(part.error**2 for part in parts))
    spread = sum(part.error**4 / part.df for part in parts)
    return total, min(total**4 / spread, MOST_DF) if spread > 0 else MOST_DF


@dataclass(frozen=True)
class Design:
    """A sequential one-sided t test: `counts` samples at each look, tested at `alphas`.

    `first_df` is the degrees of freedom at the first look; -1 stands for one less than its count.
    """

    counts: tuple[float, ...]
    alphas: tuple[float, ...]
    first_df: float = -1.0

    @property
    def dfs(self) -> tuple[float, ...]:
        first = self.counts[0] - 1 if self.first_df < 0 else self.first_df
        return tuple(first + count - self.counts[0] for count in self.counts)

    def until(self, count: float) -> Design:
        """The looks that need no more than `count` samples."""
        taken = sum(one <= count for one in self.counts)
        return Design(self.counts[:taken], self.alphas[:taken], self.first_df)

    def shared_by(self, tests: int) -> Design:
        """With every level divided among `tests` (the strictest step of Holm's procedure)."""
        return Design(self.counts, tuple(alpha / tests for alpha in self.alphas), self.first_df)


@dataclass(frozen=True)
class Plan:
    """How often a gate looks: `looks` times, evenly spread from `first` to `cap` blocks, spending `alpha` in the shape `spending`."""

    first: int
    cap: int
    looks: int
    alpha: float
    spending: str

    @property
    def counts(self) -> tuple[int, ...]:
        """Numbers of blocks at which a verdict is tried, rising, ending at the cap (at `first` when there is one look)."""
        if self.looks == 1:
            return (self.first,)
        step = (self.cap - self.first) / (self.looks - 1)
        return tuple(sorted({round(self.first + i * step) for i in range(self.looks)}))

    @property
    def levels(self) -> tuple[float, ...]:
        """Significance level of each look; they sum to alpha."""
        return tuple(alpha_spending([count / self.counts[-1] for count in self.counts], self.alpha, self.spending))

    @property
    def design(self) -> Design:
        """The looks that can decide: those at fewer than 2 blocks are left out, and what they spend is lost."""
        usable = [(float(count), level) for count, level in zip(self.counts, self.levels, strict=True) if count >= 2]
        return Design(tuple(count for count, _ in usable), tuple(level for _, level in usable))

    def capped(self, cap: int) -> Plan:
        """The same plan with another cap; a plan of one look looks there."""
        return Plan(cap if self.looks == 1 else min(self.first, cap), cap, self.looks, self.alpha, self.spending)


def verdict_shares(shift: float | FloatArray, design: Design, fail_design: Design, draws: int, seed: int = 0) -> tuple[float, float]:
    """Chances of (fail, pass) when the true mean lies `shift` standard deviations above the bound ([draws] values, or one for all)."""
    failed, passed = np.zeros(draws, dtype=bool), np.zeros(draws, dtype=bool)
    statistics = _statistics(design.counts, design.dfs, draws, seed)
    for seen, count, df, pass_alpha, fail_alpha in zip(
        statistics, design.counts, design.dfs, design.alphas, fail_design.alphas, strict=True
    ):
        score = (seen.mean + shift) * math.sqrt(count) / seen.sd
        open_ones = ~(failed | passed)
        failed |= open_ones & (score <= -t_quantile(1 - fail_alpha, df)) & (seen.largest + shift < 0)
        passed |= open_ones & (score >= t_quantile(1 - pass_alpha, df)) & (seen.smallest + shift > 0)
    return float(failed.mean()), float(passed.mean())


@dataclass(frozen=True)
class _Seen:
    """[draws] statistics of unit normal samples seen by one look. The extremes are infinite, and so never decide, for more than `FEW`."""

    mean: FloatArray
    sd: FloatArray
    smallest: FloatArray
    largest: FloatArray


@lru_cache(maxsize=8)
def _statistics(counts: tuple[float, ...], dfs: tuple[float, ...], draws: int, seed: int) -> tuple[_Seen, ...]:
    """What each look sees. Few samples are drawn one by one, more by their sufficient statistics."""
    rng = np.random.default_rng(seed)
    if counts[0] <= FEW and dfs[0] == counts[0] - 1:
        samples = rng.normal(0, 1, (draws, int(counts[0])))
        mean, squares = samples.mean(axis=1), samples.var(axis=1) * counts[0]
        smallest, largest = samples.min(axis=1), samples.max(axis=1)
    else:
        mean, squares = rng.normal(0, 1 / math.sqrt(counts[0]), draws), rng.chisquare(dfs[0], draws)
        smallest, largest = np.full(draws, math.inf), np.full(draws, -math.inf)
    looks = [_Seen(mean, np.sqrt(squares / dfs[0]), smallest, largest)]
    for before, now, df in zip(counts, counts[1:], dfs[1:], strict=False):
        more = now - before
        if now <= FEW:
            samples = rng.normal(0, 1, (draws, int(more)))
            added, spread = samples.mean(axis=1), samples.var(axis=1) * more
            smallest, largest = np.minimum(smallest, samples.min(axis=1)), np.maximum(largest, samples.max(axis=1))
        else:
            added = rng.normal(0, 1 / math.sqrt(more), draws)
            spread = rng.chisquare(more - 1, draws) if more > 1 else np.zeros(draws)
            smallest, largest = np.full(draws, math.inf), np.full(draws, -math.inf)
        squares = squares + spread + (added - mean) ** 2 * before * more / now
        mean = (mean * before + added * more) / now
        looks.append(_Seen(mean, np.sqrt(squares / df), smallest, largest))
    return tuple(looks)


@lru_cache(maxsize=512)
def detectable_shift(design: Design, sd_df: float, tests: int = 1, power: float = POWER) -> float:
    """Shift below the bound, in units of an *estimated* standard deviation of `sd_df` degrees of freedom, that `design` fails with
    probability `power`; infinite for a design without a look.

    The probability is over the estimate's luck too: state the shift from a sample's deviation, and the gate finds it that often.
    """
    if not design.counts or sd_df <= 0:
        return math.inf
    ratio = np.sqrt(np.random.default_rng(1).chisquare(sd_df, DRAWS) / sd_df)
    fail_design = design.shared_by(tests)
    low, high = 0.0, 1.0
    while verdict_shares(-high * ratio, design, fail_design, DRAWS)[0] < power:
        low, high = high, 2 * high
        if high > 1e6:
            return math.inf
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if verdict_shares(-middle * ratio, design, fail_design, DRAWS)[0] < power else (low, middle)
    return high


def blocks_to_decide(score: float, count: int, plan: Plan, tests: int = 1, limit: int = MOST_BLOCKS) -> int | None:
    """Least cap at which a new gate of this `plan` would decide with a chance of `PROJECTED`; None if over `limit`.

    `score` is the estimate's distance from the bound in standard errors, of `count` samples. Both the true distance and the true standard
    deviation are drawn from what those samples leave open (flat prior on the mean and on ln sd): an estimate that lies near the bound by
    luck, or far from it, is not taken at its word.
    """
    distance = math.floor(abs(score) * 50) / 50
    if not math.isfinite(distance):
        return max(2, count)
    return _blocks_to_decide(distance, count, plan, tests, limit)


@lru_cache(maxsize=4096)
def _blocks_to_decide(distance: float, count: int, plan: Plan, tests: int, limit: int) -> int | None:
    rng = np.random.default_rng(2)
    ratio = np.sqrt(rng.chisquare(count - 1, PROJECTION_DRAWS) / (count - 1))
    shift = (distance * ratio + rng.normal(0, 1, PROJECTION_DRAWS)) / math.sqrt(count)

    def decides(cap: int) -> bool:
        design = plan.capped(cap).design
        return bool(design.counts) and sum(verdict_shares(-shift, design, design.shared_by(tests), PROJECTION_DRAWS)) >= PROJECTED

    if not decides(limit):
        return None
    low, high = 1, limit
    while high - low > max(1, low // 50):
        middle = math.isqrt(low * high)
        middle = min(max(middle, low + 1), high - 1)
        low, high = (low, middle) if decides(middle) else (middle, high)
    return high


def repeats_to_decide(
    gap: float,
    shrinking: Component,
    fixed: Component,
    count: int,
    alpha: float,
) -> int | None:
    """Least number of repeats with which one look at `alpha` clears the bound at a chance of `PROJECTED_REPEATS`; None if over
    `MOST_BLOCKS`.

    `gap` is the estimate's distance from the bound. Of its error, `shrinking` falls as 1 / sqrt(repeats) and is that of `count` repeats
    now; `fixed` stays (what differs between days, the other side's repeats).
    """
    from scipy.special import stdtr

    if shrinking.error == 0 or gap == 0:
        return None

    def decides(repeats: int) -> bool:
        run = Component(shrinking.error * math.sqrt(count / repeats), shrinking.df * repeats / count)
        total, df = combined([run, fixed])
        reach = t_quantile(1 - alpha, df) * total
        wander = shrinking.error * math.sqrt(max(1 - count / repeats, 1e-12))
        clear = stdtr(shrinking.df, (abs(gap) - reach) / wander) + stdtr(shrinking.df, (-abs(gap) - reach) / wander)
        return bool(clear >= PROJECTED_REPEATS)

    if not decides(MOST_BLOCKS):
        return None
    low, high = count, MOST_BLOCKS
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if decides(middle) else (middle, high)
    return high
