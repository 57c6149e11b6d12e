"""How far off a prediction may be: an interval from the errors of earlier ones, by GPU and by kind of step.

`prediction_errors.toml` holds them (`python -m trtllm_bench.analysis.peers --write` makes it): where a GPU has runs of ours, the model's
errors on all cells of ours that no constant follows; elsewhere, its errors on TensorRT-LLM's published figures of maximum throughput, by
the factor between that engine and the model on the H100. A GPU without either takes the errors on all GPUs of another architecture than the
H100's.

Engines of several ranks have a kind of their own: what they exchange was measured between two GPUs, and is by formula for more.

The interval is multiplicative, p / f to p * f. Of n errors, f is the ceil(0.9 (n + 1))-th smallest of exp |log(1 + error)|, which covers
the next one with 90% if that is drawn as they were (split conformal prediction: Vovk et al., Algorithmic Learning in a Random World, 2005).
Of fewer than nine f is the largest, which covers n / (n + 1). Errors of neighbouring cells are alike, so the true cover is less.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from trtllm_bench.roofline.hardware import Hardware
from trtllm_kernels.dialect.types import SKINNY_TOKENS
from trtllm_results.gpus import gpu_class

FILE = Path(__file__).with_name("prediction_errors.toml")
DIGITS = 4
"""Of an error in the file, behind the point."""
COVER = 0.9
LEAST = 3
"""Runs of ours that no constant follows from which on they tell the errors of GPUs that have such, in place of published figures."""
ELSEWHERE, RANKS, QUANTIZED = "elsewhere", "ranks", "quantized"
CELLS: Mapping[str, str] = {
    "few": f"up to {SKINNY_TOKENS} sequences",
    "many": f"more than {SKINNY_TOKENS} sequences, or any number",
    RANKS: "several GPUs a copy",
    QUANTIZED: "quantized precisions",
}
"""Each kind of step, as notes name its cells."""


@dataclass(frozen=True)
class Interval:
    """`factor` f of p / f to p * f; `cover` the share of cases it holds, of `errors` earlier ones; `cells` whose it is, in words."""

    factor: float
    cover: float
    errors: int
    basis: str
    cells: str = ""

    def around(self, figure: float) -> tuple[float, float]:
        return figure / self.factor, figure * self.factor

    @property
    def note(self) -> str:
        text = f"throughput within a factor of {self.factor:.2f} in {self.cover:.0%} of cases, by {self.errors} errors of {self.basis}"
        return f"{self.cells}: {text}" if self.cells else text


def kind_of(sequences: int, ranks: int = 1, quantized: bool = False) -> str:
    """The kind of steps: `ranks` for several ranks, else `quantized`, else by sequences in flight: `few`, whose GEMMs our skinny kernels
    take, or `many`, also for 0 (no limit)."""
    return RANKS if ranks > 1 else QUANTIZED if quantized else "few" if 0 < sequences <= SKINNY_TOKENS else "many"


def interval_of(errors: Sequence[float], basis: str) -> Interval:
    """Of predicted / true - 1."""
    sizes = sorted(abs(math.log1p(error)) for error in errors)
    rank = min(math.ceil(COVER * (len(sizes) + 1)), len(sizes))
    return Interval(math.exp(sizes[rank - 1]), min(COVER, len(sizes) / (len(sizes) + 1)), len(sizes), basis)


def interval_for(hardware: Hardware, sequences: int, ranks: int = 1, quantized: bool = False) -> Interval:
    """The interval of a prediction for this GPU. `sequences` (in flight) and `ranks` are those of one copy of the engine. The constants of
    `quantized` engines follow runs of one GPU. On another GPU, or with several ranks, both errors can occur, so the factors are
    multiplied."""
    if quantized:
        return _of_quantized(hardware, sequences, ranks)
    tables, kind = read_errors(), kind_of(sequences, ranks)
    kinds = tables.get(gpu_class(hardware.name).lower(), tables[ELSEWHERE])
    table, more = (kinds[kind], "") if kind in kinds else (kinds["many"], ", all with many sequences on one GPU")
    return replace(interval_of(table["errors"], table["basis"] + more), cells=CELLS[kind])


def _of_quantized(hardware: Hardware, sequences: int, ranks: int) -> Interval:
    tables = read_errors()
    gpu = next(gpu for gpu, kinds in tables.items() if QUANTIZED in kinds)
    alone = replace(interval_of(tables[gpu][QUANTIZED]["errors"], tables[gpu][QUANTIZED]["basis"]), cells=CELLS[QUANTIZED])
    if ranks == 1 and gpu == gpu_class(hardware.name).lower():
        return alone
    plain = interval_for(hardware, sequences, ranks)
    basis = f"{plain.basis}, times that by {alone.errors} errors of {alone.basis}; no such product was measured there"
    cells = f"{alone.cells}, {plain.cells}"
    return Interval(plain.factor * alone.factor, min(plain.cover, alone.cover), plain.errors, basis, cells)


@cache
def read_errors() -> Mapping[str, Mapping[str, Mapping[str, Any]]]:
    """By GPU and kind of step: `basis` and `errors`."""
    return tomllib.loads(FILE.read_text(encoding="utf-8"))
