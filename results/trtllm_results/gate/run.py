"""Interleaved A/B on one machine: ABBA blocks, looks at preset counts, stop when decided.

A block runs A B B A or B A A B and yields one number, mean ln B - mean ln A: a linear drift of clocks or temperature over the block
cancels exactly, and what the four runs share drops out. The block is the sample. Each block's order is drawn at random from a seed that
the report names: whatever disturbs the machine did not know the draw, so its part of the block has a random sign and the blocks are
independent of each other. Rejected: orders that alternate (a disturbance every eighth run then always hits the same arm: 45% wrong
verdicts where 5% is claimed), all A then all B (a warming GPU is then a regression; see the figure in docs/gate.md) and pairing requests
(they share a run's noise).

The runner is a protocol, so that the logic is tested with a scripted one; `runners.py` has the one that calls the command line.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np

from trtllm_results import stats
from trtllm_results.errors import ResultsError
from trtllm_results.gate.config import GateConfig
from trtllm_results.gate.verdict import GateReport, Judged, combine, judge
from trtllm_results.record.environment import MACHINE, Environment

Arm = Literal["A", "B"]
ORDERS: tuple[tuple[Arm, ...], ...] = (("A", "B", "B", "A"), ("B", "A", "A", "B"))
SHOULD_MATCH = ("torch", "triton", "python")
THERMAL = ("hw_slowdown", "sw_thermal_slowdown", "hw_thermal_slowdown", "hw_power_brake_slowdown")
CLOCK_TOLERANCE = 0.02
THROTTLED_TOLERANCE = 0.02


@dataclass(frozen=True)
class RunResult:
    """One run of one arm."""

    figures: Mapping[str, float]
    environment: Environment
    warnings: tuple[str, ...] = ()


class Runner(Protocol):
    """Measures one arm once. Raises `ResultsError` when the run fails or is void."""

    def run(self, arm: Arm) -> RunResult: ...


def draw_seed() -> int:
    """A seed nobody chose, short enough to be typed again."""
    return secrets.randbelow(10**6)


@dataclass
class Blocks:
    """Runs so far, by block: `runs[i]` is the four (arm, result) of block i. `seed` is that of the blocks' orders."""

    runs: list[list[tuple[Arm, RunResult]]] = field(default_factory=list)
    seed: int = field(default_factory=draw_seed)

    def order(self, block: int) -> tuple[Arm, ...]:
        """The order of runs in a block: of the two in `ORDERS`, drawn independently for each block."""
        return ORDERS[int(np.random.default_rng([self.seed, block]).integers(2))]

    def values(self, figure: str, arm: Arm) -> list[list[float]]:
        """[blocks][2] values of `figure` on one arm."""
        return [[_positive(result, figure) for side, result in block if side == arm] for block in self.runs]

    def differences(self, figure: str) -> list[float]:
        """[blocks] mean ln B - mean ln A."""
        a, b = (np.log(np.array(self.values(figure, arm))).mean(axis=1) for arm in ("A", "B"))
        return [float(d) for d in b - a]

    def environments(self) -> list[Environment]:
        return [result.environment for block in self.runs for _, result in block]


def _positive(result: RunResult, figure: str) -> float:
    if figure not in result.figures:
        raise ResultsError(f"a run reported no {figure}; remove it from [margins] or measure it (latencies need --streaming)")
    value = result.figures[figure]
    if not value > 0 or math.isinf(value):
        raise ResultsError(f"a run reported {figure} = {value:g}; such a run cannot be compared")
    return value


OnBlock = Callable[[int, int], None]
"""Called with the number of blocks done and the cap."""


def run_gate(
    runner: Runner, config: GateConfig, a: str, b: str, warmup: int = 1, on_block: OnBlock | None = None, seed: int | None = None
) -> GateReport:
    """Runs blocks until a look decides or the cap is reached. `seed` draws the blocks' orders; None draws a seed too."""
    blocks = Blocks() if seed is None else Blocks(seed=seed)
    for index, (look, alpha_now) in enumerate(zip(config.look_blocks, config.look_alphas, strict=True)):
        run_blocks(runner, look, warmup if index == 0 else 0, on_block, blocks, config.look_blocks[-1])
        report = report_blocks(blocks, config, a, b, alpha_now)
        if report.verdict != "inconclusive" or report.why:
            return report
    return report


def run_blocks(
    runner: Runner, count: int, warmup: int = 0, on_block: OnBlock | None = None, blocks: Blocks | None = None, cap: int | None = None
) -> Blocks:
    """Runs blocks until there are `count`, after `warmup` discarded runs of each arm."""
    blocks = Blocks() if blocks is None else blocks
    for _ in range(warmup):
        runner.run("A")
        runner.run("B")
    while len(blocks.runs) < count:
        blocks.runs.append([(arm, runner.run(arm)) for arm in blocks.order(len(blocks.runs))])
        refuse_if_different(blocks.environments())
        if on_block is not None:
            on_block(len(blocks.runs), cap or count)
    return blocks


def report_blocks(blocks: Blocks, config: GateConfig, a: str, b: str, alpha_now: float | None = None) -> GateReport:
    """The verdict on the blocks run so far."""
    items = [judged_blocks(blocks, figure, margin) for figure, margin in config.margins.items()]
    findings = judge(items, config.alpha, alpha_now, config.plan)
    why = throttled(blocks.environments(), [result.figures for block in blocks.runs for _, result in block])
    return GateReport(
        a=a,
        b=b,
        verdict="inconclusive" if why else combine(findings),
        findings=findings,
        alpha=config.alpha if alpha_now is None else alpha_now,
        blocks=len(blocks.runs),
        warnings=tuple(_warnings(blocks)),
        why=why,
        seed=blocks.seed,
    )


def judged_blocks(blocks: Blocks, figure: str, margin: float) -> Judged:
    differences = blocks.differences(figure)
    return Judged(
        label="",
        figure=figure,
        margin=margin,
        evidence=stats.paired(differences) if len(differences) >= 2 else None,
        a_value=_geometric_mean(blocks.values(figure, "A")),
        b_value=_geometric_mean(blocks.values(figure, "B")),
        blocks=len(differences),
        sample_sd=float(np.std(differences, ddof=1)) if len(differences) >= 2 else 0.0,
    )


def _geometric_mean(values: Sequence[Sequence[float]]) -> float:
    return float(np.exp(np.log(np.array(values)).mean()))


def refuse_if_different(environments: Sequence[Environment]) -> None:
    """Raises `ResultsError` when runs to compare were taken on different hardware, drivers or limits."""
    for name in MACHINE:
        seen = dict.fromkeys(str(getattr(environment, name)) for environment in environments)
        if len(seen) > 1:
            values = " and ".join(one or "none" for one in seen)
            raise ResultsError(f"the runs to compare differ in {name} ({values}); measure both under the same conditions")


def throttled(environments: Sequence[Environment], figures: Sequence[Mapping[str, float]]) -> str:
    """A sentence when the driver reported thermal or hardware slow-down before or during any run; empty otherwise.

    The software power cap does not count: large steps always run under it.
    """
    reasons = sorted({reason for e in environments for reason in e.throttle_reasons.split() if reason in THERMAL})
    worst = max((one.get("throttled_ratio", 0.0) for one in figures), default=0.0)
    if worst > THROTTLED_TOLERANCE:
        reasons.append(f"{worst:.0%} of the samples of one run")
    return f"the GPU was slowed down during the runs ({', '.join(reasons)}), so no verdict is given; cool it and repeat" if reasons else ""


def _warnings(blocks: Blocks) -> list[str]:
    warnings = list(dict.fromkeys(text for block in blocks.runs for _, result in block for text in result.warnings))
    for name in SHOULD_MATCH:
        seen = dict.fromkeys(str(getattr(e, name)) for e in blocks.environments())
        if len(seen) > 1:
            warnings.append(f"{name} differs between the arms: {' and '.join(seen)}")
    clocks = {
        arm: [
            result.figures["sm_clock_mean_mhz"]
            for block in blocks.runs
            for side, result in block
            if side == arm and "sm_clock_mean_mhz" in result.figures
        ]
        for arm in ("A", "B")
    }
    if clocks["A"] and clocks["B"]:
        a, b = (float(np.mean(clocks[arm])) for arm in ("A", "B"))
        if abs(b / a - 1) > CLOCK_TOLERANCE:
            warnings.append(f"the SM clock was {a:.0f} MHz under A and {b:.0f} MHz under B: part of the difference may be the clock's")
    return warnings
