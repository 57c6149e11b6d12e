"""The verdict: did B lose more than the margin against A?

For each figure the evidence is a mean of ln(B/A) with its error. Turned so that positive is better and set against the tolerated loss:

    fail           "the loss exceeds the margin" is shown at level alpha, after Holm's correction over all figures judged together
    pass           "the loss is within the margin" is shown at level alpha, for every figure (all must hold, so no correction is due)
    inconclusive   neither: more runs would decide, and the report says how many

An improvement passes. "Not significantly different" does not: absence of evidence is what `inconclusive` is for. Rejected: a threshold on
the change alone (passes or fails by luck), and a plain significance test (with enough runs it fails on 0.1%).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from trtllm_results import stats
from trtllm_results.metrics.registry import METRICS
from trtllm_results.stats import Evidence, Interval

Verdict = Literal["pass", "fail", "inconclusive"]
EXIT_CODES: Mapping[str, int] = {"pass": 0, "fail": 1, "inconclusive": 2}
POWER = 0.8
"""Power at which the minimum detectable effect is stated."""


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

    @property
    def sign(self) -> int:
        return -1 if METRICS[self.figure].better == "lower" else 1

    @property
    def bound(self) -> float:
        """The tolerated loss as oriented log ratio: ln(1 - margin), or -ln(1 + margin) where lower is better."""
        return math.log1p(-self.margin) if self.sign > 0 else -math.log1p(self.margin)

    @property
    def oriented(self) -> Evidence | None:
        return None if self.evidence is None else replace(self.evidence, mean=self.sign * self.evidence.mean)


@dataclass(frozen=True)
class Finding:
    """The verdict on one figure. `change` is the relative change of the figure itself (a latency that rose is positive)."""

    judged: Judged
    verdict: Verdict
    change: Interval | None
    p_fail: float
    p_pass: float
    detectable: float
    """Loss that this many blocks would have found with power 0.8, margin included (0.03: 3%)."""
    blocks_needed: int | None
    why: str

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

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.verdict]


def judge(items: Sequence[Judged], alpha: float = 0.05, alpha_now: float | None = None) -> tuple[Finding, ...]:
    """Verdicts on figures judged together. `alpha_now` is this look's share of `alpha` in a sequential gate."""
    level = alpha if alpha_now is None else alpha_now
    p_fail = [1.0 if item.oriented is None else item.oriented.p_below(item.bound) for item in items]
    corrected = stats.holm(p_fail)
    return tuple(_finding(item, p, level) for item, p in zip(items, corrected, strict=True))


def combine(findings: Sequence[Finding]) -> Verdict:
    """Fail when any figure fails, pass when all pass, else inconclusive."""
    verdicts = {finding.verdict for finding in findings}
    if "fail" in verdicts:
        return "fail"
    return "pass" if verdicts == {"pass"} else "inconclusive"


def _finding(item: Judged, p_fail: float, alpha: float) -> Finding:
    oriented = item.oriented
    if oriented is None or item.evidence is None:
        why = f"only {item.blocks} repeat, so nothing is known of the noise; at least 2 are needed"
        return Finding(item, "inconclusive", None, 1.0, 1.0, math.inf, None, why)
    p_pass = oriented.p_above(item.bound)
    verdict: Verdict = "fail" if p_fail <= alpha else "pass" if p_pass <= alpha else "inconclusive"
    needed = stats.blocks_to_decide(oriented, item.bound, alpha) if verdict == "inconclusive" else None
    beyond = stats.minimum_detectable_effect(item.sample_sd, item.blocks, alpha, POWER)
    return Finding(
        judged=item,
        verdict=verdict,
        change=item.evidence.interval(1 - 2 * alpha).as_ratio(),
        p_fail=p_fail,
        p_pass=p_pass,
        detectable=-math.expm1(item.bound - beyond) if item.sign > 0 else math.expm1(beyond - item.bound),
        blocks_needed=needed,
        why=_why(item, verdict, needed),
    )


def _why(item: Judged, verdict: Verdict, needed: int | None) -> str:
    word = "rise" if item.sign < 0 else "drop"
    margin = f"{item.margin:.1%} {word}"
    if verdict == "fail":
        return f"worse than the tolerated {margin}"
    if verdict == "pass":
        return f"within the tolerated {margin}"
    if needed is None:
        return f"too close to the tolerated {margin} for any affordable number of repeats"
    more = max(needed - item.blocks, 1)
    return f"the interval reaches across the tolerated {margin}; about {more} more repeat{'s' * (more > 1)} would decide"
