"""What the gate tolerates and how long it may try, from a TOML file.

alpha = 0.05            # chance of a wrong fail, and of a wrong pass, at the margin
blocks = 6              # ABBA blocks before the first look
max_blocks = 20         # cap; looks are spread evenly from `blocks` to here
looks = 4               # 1: a fixed number of blocks, no alpha spending
spending = "pocock"     # or "obrien_fleming"
drift = "warn"          # or "fail": what a slow slide over accepted baselines does
[margins]               # figure = tolerated relative loss
output_tokens_per_s = "2%"
ttft_p99_ms = 0.05

Six blocks before the first look, because a block's order is drawn of two: where one run in five is slow, the slow runs fall on one arm in
all of n blocks with a chance of 2^(1 - n), and with five that alone exceeds what the first look may spend.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from trtllm_results import stats
from trtllm_results.errors import ResultsError, did_you_mean
from trtllm_results.gate.power import Plan
from trtllm_results.metrics.registry import HEADLINE, METRICS
from trtllm_results.record.flat import shown
from trtllm_results.store.document import read_document

MOST_BLOCKS, MOST_LOOKS = 10_000, 100
DEFAULT_MARGINS: Mapping[str, float] = {HEADLINE: 0.02}


@dataclass(frozen=True)
class GateConfig:
    alpha: float = 0.05
    blocks: int = 6
    max_blocks: int = 20
    looks: int = 4
    spending: str = "pocock"
    drift: str = "warn"
    margins: Mapping[str, float] = field(default_factory=lambda: dict(DEFAULT_MARGINS))

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 0.5:
            raise ResultsError(f"gate: alpha is {self.alpha}; it must lie between 0 and 0.5")
        if not 1 <= self.blocks <= self.max_blocks <= MOST_BLOCKS:
            raise ResultsError(
                f"gate: blocks is {shown(self.blocks)} and max_blocks {shown(self.max_blocks)}; "
                f"1 <= blocks <= max_blocks <= {MOST_BLOCKS} must hold"
            )
        if not 1 <= self.looks <= MOST_LOOKS:
            raise ResultsError(f"gate: looks is {shown(self.looks)}; at least one is needed, at most {MOST_LOOKS}")
        if self.drift not in ("warn", "fail"):
            raise ResultsError(f"gate: drift is {shown(self.drift)}; use warn or fail")
        if not self.margins:
            raise ResultsError("gate: no margins are set; name at least one figure and its tolerated loss under [margins]")
        for name, margin in self.margins.items():
            if name not in METRICS or not METRICS[name].better:
                raise ResultsError(f"gate: '{name}' is not a figure that can be judged; docs/schema.md lists those with a direction")
            if not 0 < margin < 0.5:
                raise ResultsError(f"gate: margin of {name} is {margin:g}; it is a relative loss between 0 and 0.5 (2% is 0.02)")
        stats.alpha_spending([1.0], self.alpha, self.spending)

    @property
    def plan(self) -> Plan:
        return Plan(self.blocks, self.max_blocks, self.looks, self.alpha, self.spending)

    @property
    def look_blocks(self) -> tuple[int, ...]:
        """Numbers of blocks at which a verdict is tried, rising, ending at the cap (at `blocks` when there is one look)."""
        return self.plan.counts

    @property
    def look_alphas(self) -> tuple[float, ...]:
        """Significance level of each look; they sum to alpha."""
        return self.plan.levels


def load_config(path: Path | None) -> GateConfig:
    """The configuration in `path`, or the defaults. Raises `ResultsError` for unknown keys and bad values, naming the file."""
    if path is None:
        return GateConfig()
    try:
        content: dict[str, Any] = read_document(path, tomllib.loads)
    except OSError as error:
        raise ResultsError(f"cannot read gate settings {path}: {error.strerror}") from error
    except ResultsError as error:
        raise ResultsError(f"gate settings: {error}") from error
    unknown = sorted(set(content) - {f.name for f in fields(GateConfig)})
    if unknown:
        known = [f.name for f in fields(GateConfig)]
        raise ResultsError(f"{path}: unknown setting '{unknown[0]}'{did_you_mean(unknown[0], known)}; known are {', '.join(known)}")
    try:
        if "margins" in content:
            content["margins"] = {name: parse_margin(value) for name, value in content["margins"].items()}
        return GateConfig(**content)
    except (TypeError, AttributeError) as error:
        raise ResultsError(f"{path}: a setting has the wrong type ({error})") from error
    except ResultsError as error:
        raise ResultsError(f"{path}: {error}") from error


def parse_margin(value: Any) -> float:
    """`0.02`, `"2%"` or `"0.02"`. Raises `ResultsError` for anything else."""
    text = str(value).strip()
    try:
        return float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        raise ResultsError(f"margin '{value}' is not understood; write 2% or 0.02") from None
