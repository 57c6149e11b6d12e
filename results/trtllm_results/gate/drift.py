"""Slow loss over accepted states: a slide no single comparison sees, or a drop that was accepted and forgotten.

Twenty accepted changes of -0.3% are -6%. Three tests look for that, each over several stretches of history that end now (what happened
before an improvement must not hide a slide after it), and each asks for a loss above the margin as well:

    slide   the least-squares line over the stretch falls: t test of its slope
    shift   the newest states rank below those before them: Mann and Whitney's exact test
    drop    the newest states *all* lie below *all* before them, by `CLEAR` standard deviations

The drop is what keeps a clear step's delay at two accepts, where ranks alone need four or more. It asks for more newest states the
shorter the history is, because one accept in ten may be slow for its own reasons: two of those in a row come once in a hundred accepts.

The levels are set by simulation: over 50 states that never changed, checked after every accept, the chance of any alarm is at most
`FALSE_ALARMS` (docs/gate.md has the table and the command). Assumed is that the accepts of an unchanged machine are exchangeable; levels
that wander on their own (another chip, a season) are drift to this check. Rejected: a trend's p value of 0.05 at every accept beside
least-squares change points (35% false alarms over 50 states at 1.5% noise, 99% with one accept in ten 5% slow); Mann and Kendall's trend
test (the same false alarms at the same level, one or two accepts later); a permutation test of the largest loss (one improvement of 20%
in the history blinds it).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from trtllm_results import stats

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
FALSE_ALARMS = 0.05
"""Chance of any alarm over 50 states without a change, at most."""
SLIDE_LEVEL = 1e-4
SHIFT_LEVEL = 5e-5
CLEAR = 3.0
FEWEST = 4
STRETCHES = (7, 8, 9, 10, 12, 15, 18, 22, 27, 33, 40, 50)
"""Lengths of history looked at, beside the whole of it."""
NEWEST = (2, 3, 4, 5, 6, 8, 10, 13, 17, 22, 28)
"""Numbers of newest states set against those before them."""
LONGEST = 60
"""Older states are left out."""


def find_loss(levels: Sequence[float], names: Sequence[str], margin: float) -> str:
    """One sentence when `levels` lost more than `margin` (relative); empty otherwise.

    `levels` are ln of the figure, turned so that more is better, oldest first; `names` are those of the states.
    """
    values, names = np.asarray(levels[-LONGEST:], dtype=float), list(names)[-LONGEST:]
    bound, count = math.log1p(-margin), len(values)
    if count < FEWEST:
        return ""
    wins = _wins(values)
    suspects = _suspects(values, wins)
    for start in _starts(count):
        length = count - start
        fall, p_value = stats.trend(values[start:])
        if fall < bound and p_value / 2 <= SLIDE_LEVEL:
            worst = start + int(np.argmin(np.diff(values[start:]))) + 1
            return (
                f"slid by {math.expm1(fall):.1%} over {length} states since {names[start]}, more than the {margin:.1%} tolerated at once; "
                f"largest step at {names[worst]}"
            )
        for split in suspects.get(start, ()):
            before, after = values[start:split], values[split:]
            if _shift_p(wins, start, split) <= SHIFT_LEVEL or _clear_drop(before, after, whole=start == 0):
                lost = float(np.median(after) - np.median(before))
                if lost < bound:
                    return (
                        f"lies {math.expm1(lost):.1%} below its earlier level since the shift at {names[split]}, more than the "
                        f"{margin:.1%} tolerated at once"
                    )
    return ""


def _starts(count: int) -> list[int]:
    """First states of the stretches of a history of `count`, the whole of it first."""
    return [0, *(count - length for length in reversed(STRETCHES) if length < count)]


@lru_cache(maxsize=LONGEST)
def _splits(count: int) -> tuple[IntArray, IntArray]:
    """(starts, splits) of all stretches, each divided into earlier and newest states in all ways, in the order in which they are tested."""
    pairs = [(start, count - newest) for start in _starts(count) for newest in NEWEST if count - newest - start >= 2]
    starts, splits = np.array(pairs, dtype=np.int64).T
    return starts, splits


def _suspects(values: FloatArray, wins: FloatArray) -> dict[int, list[int]]:
    """By start, the splits at which the newest states rank low enough for a shift, or all lie below the others: the only ones for which
    `_shift_p` or `_clear_drop` can be met. They are found in one pass, since a history has up to a hundred splits and hardly ever a
    suspect."""
    count = len(values)
    starts, splits = _splits(count)
    won = wins[starts, count] - wins[splits, count] - wins[starts, splits] + wins[splits, splits]
    lowest = np.minimum.accumulate(np.where(np.tri(count, dtype=bool).T, values, np.inf), axis=1)[starts, splits - 1]
    highest = np.maximum.accumulate(values[::-1])[::-1][splits]
    suspects: dict[int, list[int]] = {}
    for index in np.flatnonzero((np.floor(won) >= _fewest_wins()[splits - starts, count - splits]) | (lowest > highest)):
        suspects.setdefault(int(starts[index]), []).append(int(splits[index]))
    return suspects


def _clear_drop(before: FloatArray, after: FloatArray, whole: bool) -> bool:
    """Whether all of `after` lies `CLEAR` deviations below all of `before`, and there is history enough to tell it from slow accepts."""
    n, m = len(before), len(after)
    if not ((m >= 4 and n >= 4) or (m == 3 and n >= 10) or (m == 2 and n >= 20 and whole)):
        return False
    gap = float(before.min() - after.max())
    return gap > 0 and gap > CLEAR * math.sqrt((n * float(before.var()) + m * float(after.var())) / (n + m - 2))


def _wins(values: FloatArray) -> FloatArray:
    """[states + 1, states + 1] at [i, j]: pairs of a state from i on and a later one before j of which the later is lower; ties half."""
    count = len(values)
    lower = np.triu((np.sign(values[:, None] - values) + 1) / 2, 1)
    sums = np.zeros((count + 1, count + 1))
    sums[:count, 1:] = lower[::-1].cumsum(axis=0)[::-1].cumsum(axis=1)
    return sums


def _shift_p(wins: FloatArray, start: int, split: int) -> float:
    """One-sided p value that the states from `split` on are drawn as those of `start` to `split` (Mann and Whitney 1947)."""
    end = len(wins) - 1
    won = wins[start, end] - wins[split, end] - wins[start, split] + wins[split, split]
    return float(_win_tails()[split - start][end - split][math.floor(won)])


@lru_cache(maxsize=1)
def _fewest_wins() -> FloatArray:
    """[before, after]: the fewest wins whose p value is at most `SHIFT_LEVEL`; infinite where no number of wins is enough."""
    fewest = np.full((LONGEST + 1, LONGEST + 1), np.inf)
    for before, row in enumerate(_win_tails()):
        for after, tail in enumerate(row):
            if tail[-1] <= SHIFT_LEVEL:
                fewest[before, after] = np.argmax(tail <= SHIFT_LEVEL)
    return fewest


@lru_cache(maxsize=1)
def _win_tails() -> list[list[FloatArray]]:
    """[before][after][wins]: chance of at least so many wins among before * after pairs of exchangeable values."""
    shares: list[list[FloatArray]] = [[np.ones(1) for _ in range(LONGEST + 1)] for _ in range(LONGEST + 1)]
    for before in range(1, LONGEST):
        for after in range(1, LONGEST - before + 1):
            # The largest of all values belongs to `before` and wins against all `after`, or to `after` and wins nothing.
            mine = np.zeros(before * after + 1)
            mine[after:] += before / (before + after) * shares[before - 1][after]
            mine[: before * (after - 1) + 1] += after / (before + after) * shares[before][after - 1]
            shares[before][after] = mine
    return [[np.cumsum(one[::-1])[::-1] for one in row] for row in shares]
