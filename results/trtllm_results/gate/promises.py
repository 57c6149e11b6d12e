"""Simulates what else the gate states as a number: power, projections, checks against a stored baseline, drift alarms.

Each function plays the real code against machines whose truth is known and returns shares. The tests hold them to bounds and
`docs/gate_figure.py` prints the tables of docs/gate.md. (`simulate.py` has the verdicts of `gate run`.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from trtllm_results import stats
from trtllm_results.gate.config import GateConfig
from trtllm_results.gate.drift import FEWEST, find_loss
from trtllm_results.gate.power import detectable_shift
from trtllm_results.gate.sessions import Runs, compared, session_noise
from trtllm_results.gate.simulate import sequential, verdicts
from trtllm_results.gate.verdict import Judged, judge
from trtllm_results.metrics.registry import HEADLINE

FloatArray = npt.NDArray[np.float64]
MARGIN = 0.02
BOUND = math.log1p(-MARGIN)


def delivered_power(config: GateConfig, look: int, calibration_blocks: int, machines: int = 20_000, seed: int = 0) -> float:
    """Share of machines whose gate fails by `look` blocks a B that lost what `gate calibrate` stated of its own A/A blocks, beyond the
    margin; 0.8 is stated."""
    rng = np.random.default_rng(seed)
    df = calibration_blocks - 1.0
    estimated = 0.01 * np.sqrt(rng.chisquare(df, machines) / df)
    beyond = estimated * detectable_shift(config.plan.design.until(look), df)
    differences = rng.normal(0, 0.01, (machines, config.max_blocks)) + BOUND - beyond[:, None]
    word, blocks = sequential(differences, BOUND, config)
    return float(((word == "fail") & (blocks <= look)).mean())


def decided_after(config: GateConfig, loss: float, machines: int = 400, sd: float = 0.02, seed: int = 0) -> tuple[float, float, int]:
    """(share decided, share of the decided that are wrong, median blocks) of new gates run with as many blocks as an inconclusive one said
    would decide; machines whose gate was conclusive, or named no number, are passed over."""
    rng = np.random.default_rng(seed)
    decided = wrong = 0
    proposed: list[int] = []
    while len(proposed) < machines:
        first = rng.normal(math.log1p(-loss), sd, config.max_blocks)
        if verdicts(first[None], BOUND, config)[0] != "inconclusive":
            continue
        item = Judged("", HEADLINE, MARGIN, stats.paired(first), 1.0, 1.0, len(first), float(first.std(ddof=1)))
        needed = judge([item], config.alpha, config.look_alphas[-1], config.plan)[0].blocks_needed
        if needed is None:
            continue
        proposed.append(needed)
        longer = replace(config, max_blocks=needed, blocks=needed if config.looks == 1 else min(config.blocks, needed))
        word = verdicts(rng.normal(math.log1p(-loss), sd, (1, needed)), BOUND, longer)[0]
        decided += word != "inconclusive"
        wrong += word == ("fail" if loss < MARGIN else "pass")
    return decided / machines, wrong / max(decided, 1), int(np.median(proposed))


def check_verdicts(
    loss: float,
    session_sd: float,
    run_sd: float,
    states: Sequence[int] = (1,),
    repeats: int = 3,
    machines: int = 4000,
    alpha: float = 0.05,
    seed: int = 0,
) -> tuple[float, float]:
    """(fail, pass) shares of `gate check`: a baseline of `states` (sessions of each, oldest first) of the same code, then a candidate that
    lost `loss`; every session has `repeats` runs."""
    rng = np.random.default_rng(seed)
    failed = passed = 0

    def session(shift: float = 0.0) -> Runs:
        return list(np.exp(shift + rng.normal(0, session_sd) + rng.normal(0, run_sd, repeats)))

    for _ in range(machines):
        history = [[session() for _ in range(count)] for count in states]
        comparison = compared(history[-1], session(math.log1p(-loss)), session_noise(history))
        assert comparison is not None
        failed += comparison.evidence.p_below(BOUND) <= alpha
        passed += comparison.evidence.p_above(BOUND) <= alpha
    return failed / machines, passed / machines


def repeats_that_decide(loss: float, machines: int = 400, run_sd: float = 0.01, seed: int = 0) -> tuple[float, int]:
    """(share decided, machines) of inconclusive checks whose candidate was then repeated as often as the check said. Three sessions of ten
    runs each are the baseline, days do not differ, and the candidate starts with three runs."""
    rng = np.random.default_rng(seed)
    decided = asked = 0
    while asked < machines:
        states = [[list(np.exp(rng.normal(0, run_sd, 10))) for _ in range(3)]]
        noise = replace(session_noise(states), sd=1e-4, with_runs=False)
        candidate = list(np.exp(rng.normal(math.log1p(-loss), run_sd, 3)))
        comparison = compared(states[-1], candidate, noise)
        assert comparison is not None
        item = Judged("", HEADLINE, MARGIN, comparison.evidence, 1, 1, 3, comparison.evidence.error, comparison.fixed, len(candidate) - 1.0)
        (finding,) = judge([item])
        if finding.verdict != "inconclusive" or finding.more is None:
            continue
        asked += 1
        longer = compared(states[-1], candidate + list(np.exp(rng.normal(math.log1p(-loss), run_sd, finding.more))), noise)
        assert longer is not None
        decided += min(longer.evidence.p_below(BOUND), longer.evidence.p_above(BOUND)) <= 0.05
    return decided / asked, asked


Levels = Callable[[np.random.Generator, int], FloatArray]


def first_alarms(levels: Levels, accepts: int = 50, histories: int = 250, margin: float = MARGIN, seed: int = 0) -> npt.NDArray[np.int64]:
    """[histories] accept at which drift was first reported when checked at every accept; 0 for never."""
    names = [str(index) for index in range(accepts)]

    def first(history: FloatArray) -> int:
        return next((count for count in range(FEWEST, accepts + 1) if find_loss(history[:count].tolist(), names[:count], margin)), 0)

    return np.array([first(levels(np.random.default_rng([seed, index]), accepts)) for index in range(histories)])
