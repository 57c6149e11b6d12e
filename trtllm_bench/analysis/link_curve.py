"""What ranks take to exchange rows, from what was measured: the fused reduction's time by size, and the rate of copies from GPU to GPU.

`trtllm-bench ceilings` measures both where there are several GPUs. For GPUs that are not at hand `step_models/<gpu>.toml` has what it
recorded of two H200. Between the sizes measured the time is linear in bytes. Other widths of rows and other numbers of ranks follow by
formula: a block has one row, so a narrower one takes it less; a one-shot reduction sends a rank's rows to each other, and a two-shot one
2 (N - 1) / N of them. What a reduction of no bytes would take does not scale.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trtllm_kernels.dialect.group import ONE_SHOT_ROWS

Points = Sequence[tuple[float, float]]
"""(bytes of the rows in 16 bits, microseconds), by size."""


@dataclass(frozen=True)
class LinkCurve:
    """Of `gpus` ranks and rows of `row_elements`."""

    gpus: int
    row_elements: int
    one_shot: Points
    two_shot: Points
    copy_bytes_per_s: float

    @classmethod
    def of(cls, gpus: int, row_elements: int, us_by_bytes: Mapping[str, float], copy_bytes_per_s: float) -> LinkCurve:
        """`us_by_bytes`: as `ceilings` has it. Which kernel a size went through, its rows say."""
        points = sorted((float(size), us) for size, us in us_by_bytes.items())
        few = 2 * row_elements * ONE_SHOT_ROWS
        return cls(gpus, row_elements, [one for one in points if one[0] <= few], [one for one in points if one[0] > few], copy_bytes_per_s)

    def one_shot_us(self, rows_bytes: float, ranks: int) -> float:
        """Of rows as wide as those measured."""
        fixed = self.one_shot[0][1]
        return fixed + max(0.0, _at(self.one_shot, rows_bytes) - fixed) * (ranks - 1) / (self.gpus - 1)

    def two_shot_us(self, rows_bytes: float, ranks: int) -> float:
        fixed = _at(self.two_shot, 0.0)
        share = (ranks - 1) / ranks * self.gpus / (self.gpus - 1)
        return fixed + (_at(self.two_shot, rows_bytes) - fixed) * share

    def send_us(self, nbytes: float) -> float:
        """Rows to the next stage of a pipeline: as long as the smallest reduction, and a copy. Not measured."""
        return self.one_shot[0][1] + nbytes / self.copy_bytes_per_s * 1e6


def _at(points: Points, nbytes: float) -> float:
    """Linear between the points around it; beyond them as between the last two."""
    upper = next((at for at, (size, _) in enumerate(points) if size >= nbytes), len(points) - 1)
    (low, low_us), (high, high_us) = points[max(1, upper) - 1], points[max(1, upper)]
    return low_us + (nbytes - low) * (high_us - low_us) / (high - low)
