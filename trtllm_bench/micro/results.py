"""What a run of kernel benchmarks found: kept as JSON, shown as a table, drawn, and held against an earlier run."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trtllm_bench.errors import BenchError
from trtllm_bench.micro.timing import Timing
from trtllm_results import stats
from trtllm_results.errors import ResultsError
from trtllm_results.gate import verdict as gate
from trtllm_results.store.document import as_kind, read_document
from trtllm_results.store.files import write_text

LIMITS = {"fp32": 1e-4, "bf16": 0.02, "fp16": 0.02, "fp8": 0.05, "int8": 0.05}
"""Relative root-mean-square difference to the reference that is still the same result: a few units in the last place of the result."""


@dataclass(frozen=True)
class Measured:
    """One op at one shape. `roof_us`: what the ceilings would allow; None where they are not known."""

    op: str
    role: str
    case: str
    m: int
    kv_len: int
    bytes: float
    flop: float
    cold: Timing
    warm: Timing
    error: float
    right: bool
    chained: Timing | None = None
    """Of products."""
    peer: str = ""
    peer_us: float | None = None
    roof_us: float | None = None

    @property
    def key(self) -> str:
        return f"{self.role} ({self.op}) {self.case} m={self.m} kv={self.kv_len}"

    @property
    def share(self) -> float | None:
        """Of the ceiling, cold: in an engine every op finds its weights and cache in memory and not in L2."""
        return None if self.roof_us is None else self.roof_us / self.cold.mean_us

    @property
    def chained_share(self) -> float | None:
        """Of the ceiling, chained."""
        return None if self.roof_us is None or self.chained is None else self.roof_us / self.chained.mean_us


@dataclass(frozen=True)
class Run:
    model: str
    precision: str
    device: str
    results: tuple[Measured, ...]
    command: str = ""

    def save(self, path: Path) -> None:
        write_text(path, json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> Run:
        """Raises `BenchError`."""
        try:
            run = as_kind(cls, read_document(path), path)
        except FileNotFoundError as error:
            raise BenchError(f"no kernel results at {path}; write them with trtllm-bench kernels --out {path}") from error
        except (OSError, ResultsError) as error:
            raise BenchError(f"{path} is not a file of trtllm-bench kernels --out ({error})") from error
        for one in run.results:
            timings = [timing for timing in (one.cold, one.warm, one.chained) if timing is not None]
            if not all(time_us > 0 for timing in timings for time_us in (timing.mean_us, *timing.batches)):
                raise BenchError(f"{path}: a time of {one.key} is not above 0; the file is damaged, measure again")
        return run


def judge(base: Run, now: Run, margin: float, alpha: float = 0.05) -> tuple[gate.Finding, ...]:
    """Verdicts on the cold time of every kernel both runs have, by the gate's own statistics. Raises `BenchError` when they share none."""
    if base.device != now.device:
        raise BenchError(f"the baseline was measured on {base.device or 'no GPU'} and this is {now.device}; measure a baseline here")
    earlier = {one.key: one for one in base.results}
    both = [(earlier[one.key], one) for one in now.results if one.key in earlier]
    if not both:
        raise BenchError("the baseline has none of these kernels and shapes; measure it with the same --model, --precision and --m")
    return gate.judge([_judged(a, b, margin) for a, b in both], alpha)


def _judged(a: Measured, b: Measured, margin: float) -> gate.Judged:
    first, second = a.cold.batches, b.cold.batches
    evidence = stats.log_ratio(first, second) if min(len(first), len(second)) > 1 else None
    sd = 0.0 if evidence is None else evidence.error * math.sqrt(len(second))
    # A time: judged as the step's is, lower being better.
    return gate.Judged(b.key, "step_mean_ms", margin, evidence, a.cold.mean_us, b.cold.mean_us, len(second), sd)


def is_right(error: float, dtype: str) -> bool:
    """Whether a result of this number format, a key of `LIMITS`, is its reference's."""
    return error <= LIMITS[dtype]


def draw(run: Run, path: Path) -> Path:
    """Share of the ceiling of each op, one bar a shape."""
    from matplotlib.figure import Figure

    roles = list(dict.fromkeys(one.role for one in run.results if one.share is not None))
    if not roles:
        raise BenchError("nothing to draw: no ceilings are known for this device; measure them with trtllm-bench ceilings")
    cases = list(dict.fromkeys((one.case, one.m) for one in run.results))
    figure = Figure(figsize=(9, 1.2 + 0.16 * len(roles) * (len(cases) + 1)), layout="constrained")
    axes = figure.add_subplot()
    height = 0.8 / len(cases)
    for index, (case, m) in enumerate(cases):
        shares = {one.role: one.share for one in run.results if (one.case, one.m) == (case, m)}
        at = [(place + index * height, shares[role]) for place, role in enumerate(roles) if shares.get(role)]
        axes.barh([y for y, _ in at], [100 * (share or 0) for _, share in at], height=height, label=f"{case} M={m}")
    axes.set_yticks([place + 0.4 - height / 2 for place in range(len(roles))], [role.rpartition(".")[2] for role in roles])
    axes.invert_yaxis()
    axes.set_xlabel("share of the ceiling, cold L2 (%)")
    axes.set_title(f"{run.model} {run.precision} on {run.device}")
    axes.axvline(100, color="black", linewidth=0.8)
    axes.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return path


def lines(results: Sequence[Measured]) -> list[dict[str, Any]]:
    """Rows of the table."""
    return [
        {
            "op": one.role.rpartition(".")[2],
            "case": one.case,
            "m": one.m,
            "cold": one.cold.mean_us,
            "warm": one.warm.mean_us,
            "chained": None if one.chained is None else one.chained.mean_us,
            "chained_share": None if one.chained_share is None else 100 * one.chained_share,
            "noise": 100 * one.cold.noise,
            "tb": one.bytes / one.cold.mean_us / 1e6,
            "tflop": one.flop / one.cold.mean_us / 1e6,
            "share": None if one.share is None else 100 * one.share,
            "peer": one.peer_us,
            "versus": None if one.peer_us is None else one.peer_us / one.cold.mean_us,
            "by": one.peer,
            "check": "ok" if one.right else "wrong",
            "state": "slowed" if one.cold.slowed else "ok" if one.cold.settled else "noisy",
        }
        for one in results
    ]
