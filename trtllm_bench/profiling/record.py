"""The profile: one row per (op role, kernel), one per step, and where all of the time went; a folder with its page and trace beside it.

The device's time is taken apart without remainder: along the one stream each instant belongs to the event that is running, or to a gap
before the next. A gap inside a step is one between two kernels of it; a gap before a step is the device waiting for the host. So kernel
times and gaps sum to the window exactly, and what two profiles differ by is the sum of their parts' differences.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from trtllm_bench.errors import BenchError
from trtllm_dashboards.profile_page import DATA_FILE
from trtllm_results.errors import ResultsError
from trtllm_results.store.document import as_kind, read_document
from trtllm_results.store.files import write_text

TRACE_FILE = "trace.json.gz"


@dataclass(frozen=True)
class KernelRow:
    """A kernel in one role, summed over the window. `share` is of the window's time; `ceiling_share` the time the ceilings would allow over
    the time taken, None where there is no ceiling."""

    role: str
    op: str
    kernel: str
    calls: int
    time_us: float
    share: float
    bytes: float
    flop: float
    compute: str
    ceiling_share: float | None
    bound: str

    @property
    def bytes_per_s(self) -> float:
        return self.bytes / self.time_us * 1e6 if self.time_us else 0.0

    @property
    def flops_per_s(self) -> float:
        return self.flop / self.time_us * 1e6 if self.time_us else 0.0


@dataclass(frozen=True)
class StepRow:
    """`span_us` from the end of the step before to its own end: `gap_before_us` + `gap_inside_us` + `busy_us`."""

    number: int
    phase: str
    tokens: int
    sequences: int
    decodes: int
    samples: int
    kv_tokens: int
    graph: bool
    start_us: float
    span_us: float
    busy_us: float
    gap_inside_us: float
    gap_before_us: float


@dataclass(frozen=True)
class CellProfile:
    cell: Mapping[str, Any]
    """What was run, with its `label` and `cell_key`."""
    collector: str
    device: str
    ceilings: Mapping[str, Any]
    kernels: tuple[KernelRow, ...]
    steps: tuple[StepRow, ...]
    timeline: tuple[Mapping[str, Any], ...]
    """Events of the first steps: name, role, start_us, duration_us, step."""
    roles: Mapping[str, float]
    """Time of each role, microseconds, exclusive: with `gaps` they sum to `window_us`."""
    free_step_us: float | None = None
    recorded_step_us: float | None = None
    """Median step like the window's commonest, outside the window, where nothing is recorded, and within: what recording costs."""
    notes: tuple[str, ...] = ()
    command: str = ""
    started_at: str = ""
    counters: tuple[Mapping[str, Any], ...] = ()
    """Launches of single kernels as Nsight Compute saw them."""
    figures: Mapping[str, float] = field(default_factory=dict)
    """The whole run's, slowed a little by the recording."""

    @property
    def window_us(self) -> float:
        return sum(step.span_us for step in self.steps)

    @property
    def busy_us(self) -> float:
        return sum(step.busy_us for step in self.steps)

    @property
    def gap_inside_us(self) -> float:
        return sum(step.gap_inside_us for step in self.steps)

    @property
    def gap_before_us(self) -> float:
        return sum(step.gap_before_us for step in self.steps)

    @property
    def tokens_out(self) -> int:
        """Rows sampled in the window."""
        return sum(step.samples for step in self.steps)

    def parts(self) -> dict[str, float]:
        """Microseconds by role and gap, summing to `window_us`."""
        return {**self.roles, "gaps between kernels": self.gap_inside_us, "gaps between steps": self.gap_before_us}

    def save(self, folder: Path) -> Path:
        path = folder / DATA_FILE
        write_text(path, json.dumps(asdict(self), indent=1) + "\n")
        return path

    @classmethod
    def load(cls, path: Path) -> CellProfile:
        """From a profile's folder or its file. Raises `BenchError`."""
        source = path / DATA_FILE if path.is_dir() else path
        try:
            profile = as_kind(cls, read_document(source), source)
        except FileNotFoundError as error:
            raise BenchError(f"no profile at {source}; make one with trtllm-bench profile") from error
        except (OSError, ResultsError) as error:
            raise BenchError(f"{source} is not a profile of this version of trtllm-bench ({error})") from error
        if not isinstance(profile.cell.get("label"), str):
            raise BenchError(f"{source} is not a profile of this version of trtllm-bench (cell.label is not text)")
        if not profile.window_us > 0:
            raise BenchError(f"{source} is damaged: its {len(profile.steps)} steps took {profile.window_us:g} us; record it again")
        if (idle := next((row for row in profile.kernels if row.calls < 1), None)) is not None:
            raise BenchError(f"{source} is damaged: kernel {idle.kernel[:60]} has {idle.calls} calls; record it again")
        return profile
