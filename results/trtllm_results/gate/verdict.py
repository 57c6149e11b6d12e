"""The verdict: did B lose more than the margin against A?

For each figure the evidence is a mean of ln(B/A) with its error. Turned so that positive is better and set against the tolerated loss:

    fail           "the loss exceeds the margin" is shown at level alpha, after Holm's correction over all figures judged together
    pass           "the loss is within the margin" is shown at level alpha, for every figure (all must hold, so no correction is due)
    inconclusive   neither is shown, which is not a pass; the report says how many more runs would decide, where runs can

An improvement passes. "Not significantly different" does not: absence of evidence is what `inconclusive` is for. Rejected: a threshold on
the change alone (passes or fails by luck), and a plain significance test (with enough runs it fails on 0.1%).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from trtllm_results import stats
from trtllm_results.gate import power
from trtllm_results.gate.power import Component, Design, Plan
from trtllm_results.metrics.registry import METRICS
from trtllm_results.stats import Evidence, Interval

Verdict = Literal["pass", "fail", "inconclusive"]
EXIT_CODES: Mapping[str, int] = {"pass": 0, "fail": 1, "inconclusive": 2}
INCONCLUSIVE_MEANS = (
    "inconclusive: neither a loss above the tolerated one nor one within it is shown at this alpha; "
    "it is not a pass, and says nothing about B"
)


@dataclass(frozen=True)
class Judged:
    """What is judged: one figure of one cell, its tolerated relative loss, and the evidence on ln(B/A) (None: too few runs)."""

    label: str
    figure: str
    margin: float
    evidence: Evidence | None
    a_value: float
    b_value: float
    blocks: int
    sample_sd: float = 0.0
    """Standard deviation of one block's ln(B/A)."""
    fixed: Component | None = None
    """Part of the evidence's error that more repeats of the candidate do not shrink: noise between days, the baseline's own repeats."""
    repeat_df: float = 0.0
    """Degrees of freedom of the part that they do shrink; 0: the evidence's own."""
    note: str = ""
    """What a reader has to know of the evidence; empty when nothing is unusual."""

    @property
    def sign(self) -> int:
        return -1 if METRICS[self.figure].better == "lower" else 1

    @property
    def bound(self) -> float:
        """The tolerated loss as oriented log ratio: ln(1 - margin), or -ln(1 + margin) where lower is better."""
        return math.log1p(-self.margin) if self.sign > 0 else -math.log1p(self.margin)

    @property
    def oriented(self) -> Evidence | None:
        return self.evidence if self.evidence is None or self.sign > 0 else self.evidence.negated()


@dataclass(frozen=True)
class Finding:
    """The verdict on one figure. `change` is the relative change of the figure itself (a latency that rose is positive)."""

    judged: Judged
    verdict: Verdict
    change: Interval | None
    p_fail: float
    p_pass: float
    detectable: float
    """Loss that a gate of this many blocks finds with power 0.8, margin included (0.03: 3%)."""
    blocks_needed: int | None
    """Total number of repeats that would decide with a chance of 0.8 or more; None when decided, or when no affordable number would."""
    cause: str
    """Why this verdict, without the number of further repeats: the same for all figures that share it."""

    @property
    def more(self) -> int | None:
        """How many more repeats would decide."""
        return None if self.blocks_needed is None else max(self.blocks_needed - self.judged.blocks, 1)

    @property
    def why(self) -> str:
        return self.cause if self.more is None else f"{self.cause}; {would_decide(self.more, self.more)}"

    @property
    def name(self) -> str:
        return f"{self.judged.label}: {self.judged.figure}" if self.judged.label else self.judged.figure


@dataclass(frozen=True)
class GateReport:
    a: str
    b: str
    verdict: Verdict
    findings: tuple[Finding, ...]
    alpha: float
    blocks: int
    warnings: tuple[str, ...] = ()
    drift: tuple[str, ...] = ()
    why: str = ""
    """Why the whole is inconclusive whatever the figures say (throttling), one sentence."""
    seed: int | None = None
    """Seed of the blocks' orders; None where nothing was interleaved."""

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.verdict]


def would_decide(least: int, most: int) -> str:
    """`about 3 more repeats would decide`, or `about 3 to 17` for several figures."""
    count = f"{least:,}" if least == most else f"{least:,} to {most:,}"
    return f"about {count} more repeat{'s' * (most > 1)} would decide"


def judge(items: Sequence[Judged], alpha: float = 0.05, alpha_now: float | None = None, plan: Plan | None = None) -> tuple[Finding, ...]:
    """Verdicts on figures judged together.

    `alpha_now` is this look's share of `alpha` in a sequential gate and `plan` that gate's looks, from which follow what it could detect
    and how many blocks would decide. Without a plan this is the only look.
    """
    level = alpha if alpha_now is None else alpha_now
    p_fail = [1.0 if item.oriented is None else item.oriented.p_below(item.bound) for item in items]
    corrected = stats.holm(p_fail)
    return tuple(_finding(item, p, level, len(items), plan) for item, p in zip(items, corrected, strict=True))


def combine(findings: Sequence[Finding]) -> Verdict:
    """Fail when any figure fails, pass when all pass, else inconclusive."""
    verdicts = {finding.verdict for finding in findings}
    if "fail" in verdicts:
        return "fail"
    return "pass" if verdicts == {"pass"} else "inconclusive"


def _finding(item: Judged, p_fail: float, alpha: float, tests: int, plan: Plan | None) -> Finding:
    oriented = item.oriented
    if oriented is None or item.evidence is None:
        cause = f"only {item.blocks} repeat, so nothing is known of the noise; at least 2 are needed"
        return Finding(item, "inconclusive", None, 1.0, 1.0, math.inf, None, cause)
    p_pass = oriented.p_above(item.bound)
    verdict: Verdict = "fail" if p_fail <= alpha else "pass" if p_pass <= alpha else "inconclusive"
    needed = _needed(item, oriented, alpha, tests, plan) if verdict == "inconclusive" else None
    beyond = _detectable(item, oriented, alpha, tests, plan)
    return Finding(
        judged=item,
        verdict=verdict,
        change=item.evidence.interval(1 - 2 * alpha).as_ratio(),
        p_fail=p_fail,
        p_pass=p_pass,
        detectable=-math.expm1(item.bound - beyond) if item.sign > 0 else math.expm1(beyond - item.bound),
        blocks_needed=needed,
        cause=_cause(item, verdict, needed),
    )


def _needed(item: Judged, oriented: Evidence, alpha: float, tests: int, plan: Plan | None) -> int | None:
    gap = oriented.mean - item.bound
    if oriented.error == 0:
        return None
    if plan is not None:
        return power.blocks_to_decide(gap / oriented.error, item.blocks, plan, tests)
    fixed = item.fixed or Component(0.0, power.MOST_DF)
    shrinking = math.sqrt(max(oriented.error**2 - fixed.error**2, 0.0))
    # A fail has to pass Holm's correction, a pass does not.
    level = alpha / tests if gap < 0 else alpha
    return power.repeats_to_decide(gap, Component(shrinking, item.repeat_df or oriented.df), fixed, item.blocks, level)


def _detectable(item: Judged, oriented: Evidence, alpha: float, tests: int, plan: Plan | None) -> float:
    """Loss beyond the bound, in ln, found with power 0.8."""
    if oriented.error == 0:
        return 0.0
    if plan is not None:
        return item.sample_sd * power.detectable_shift(plan.design.until(item.blocks), item.blocks - 1.0, tests)
    df = _coarse(oriented.df)
    return oriented.error * power.detectable_shift(Design((1.0,), (alpha,), df), df, tests)


def _coarse(df: float) -> float:
    """Two digits of the degrees of freedom are enough, and let figures share one computation."""
    digits = 1 - math.floor(math.log10(df))
    return round(df, digits)


def _cause(item: Judged, verdict: Verdict, needed: int | None) -> str:
    word = "rise" if item.sign < 0 else "drop"
    margin = f"{item.margin:.1%} {word}"
    if verdict == "fail":
        return f"worse than the tolerated {margin}"
    if verdict == "pass":
        return f"within the tolerated {margin}"
    extremes = item.oriented.extremes if item.oriented is not None else None
    if needed is not None and extremes is not None and extremes[0] <= item.bound <= extremes[1]:
        return f"the {item.blocks} blocks lie on both sides of the tolerated {margin}"
    if needed is not None:
        return f"the interval reaches across the tolerated {margin}"
    if item.fixed is not None:
        return (
            f"the interval reaches across the tolerated {margin}, and no number of repeats changes that, since they do not shrink what "
            "differs between days; accept more days (gate accept --same-state), or use gate run"
        )
    return f"too close to the tolerated {margin} for any affordable number of repeats"
