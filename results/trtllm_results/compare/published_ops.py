"""Other engines' kernels, one by one: latencies of GEMM, attention, MoE and all-reduce at stated shapes, and ours beside them.

The figures are AIConfigurator's (`results/published/ORIGIN.md`), and the source of its collectors says how they were taken: in a CUDA
graph, after a few warm-up replays, the mean of six replays between two events. A GEMM's graph holds up to six calls with a weight each, so
that weights come from memory; attention's holds one call, so a cache of keys and values that fits into L2 is found there. What a call
holds differs by engine: an fp8 GEMM takes bf16 activations and quantizes them, in all three; attention rotates and writes the new keys and
values in TensorRT-LLM, and at most writes them in the others. So ours is given twice: with that work (`ours_us`, what ratios are of; an
understatement of ours where the other engine does less) and alone (`alone_us`), as in an engine of ours, whose neighbours do that work.

A published latency is one number without an interval, so a ratio is one too and no verdict. A shape is ahead when ours takes less time than
the fastest engine there.
"""

from __future__ import annotations

import csv
import gzip
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from statistics import geometric_mean
from typing import Any, Literal

from trtllm_results.compare.published import folder
from trtllm_results.errors import ResultsError
from trtllm_results.gpus import gpu_class, has_sheet_rates
from trtllm_results.store.document import as_kind, read_document
from trtllm_results.store.files import write_text

Family = Literal["gemm", "prompt attention", "decode attention", "all-reduce", "moe"]
MEASURED: tuple[Family, ...] = ("gemm", "prompt attention", "decode attention")
"""Families that one process on one GPU can measure and that our dialect has."""
OPS: Mapping[str, tuple[Family, ...]] = {"gemm": ("gemm",), "attention": ("prompt attention", "decode attention")}
"""What `--ops` may name."""
NOT_MEASURED: Mapping[Family, str] = {
    "all-reduce": "needs several GPUs, and one process measures one",
    "moe": "mixtures of experts are not among our ops",
}
NOT_OURS = {"fp8_block": "theirs multiplies fp8 with a scale per block of 128, and ours of such weights multiplies wide inputs"}
METHOD = (
    "theirs and ours: CUDA graph, warm-up, mean of six replays between two events, a pause before; GEMM weights rotate through "
    "copies, attention finds in L2 what fits; with quantization of activations (fp8 GEMM), rotation and cache write (attention)"
)
_FAMILIES: Mapping[str, Family] = {
    "gemm": "gemm",
    "context_attention": "prompt attention",
    "generation_attention": "decode attention",
    "all_reduce": "all-reduce",
    "moe": "moe",
}


@dataclass(frozen=True, order=True)
class OpShape:
    """One op at one shape. `rows`: tokens of a GEMM, sequences of attention, tokens or bytes otherwise. `sizes`: (n, k) of a GEMM,
    (heads, kv heads, head dimension, length) of attention, none otherwise. `label` is the published text of what has no sizes."""

    family: Family
    sizes: tuple[int, ...]
    dtype: str
    """`bf16`, `fp8`, `fp8_block`; of attention `activations/cache`."""
    rows: int
    label: str = ""

    @property
    def text(self) -> str:
        if self.family == "gemm":
            return f"{self.rows} x {self.sizes[0]} x {self.sizes[1]}"
        if self.sizes:
            heads, kv_heads, dim, length = self.sizes
            return f"{self.rows} of {length:,}, {heads}/{kv_heads} heads of {dim}"
        return f"{self.label} {self.rows}"

    @property
    def size(self) -> float:
        """What a time grows with: FLOP of a GEMM, tokens of a prompt, cached tokens of decoding, rows otherwise."""
        if self.family == "gemm":
            return 2.0 * self.rows * self.sizes[0] * self.sizes[1]
        return float(self.rows * self.sizes[3]) if self.sizes else float(self.rows)


@dataclass(frozen=True)
class PeerLatency:
    """One published latency."""

    device: str
    engine: str
    shape: OpShape
    latency_us: float


@cache
def load_ops() -> tuple[PeerLatency, ...]:
    """All of them. Raises `ResultsError` when the installation lacks the file."""
    path = folder() / "peers_ops.csv.gz"
    try:
        with gzip.open(path, "rt", newline="") as handle:
            return tuple(_latency(line) for line in csv.DictReader(handle))
    except OSError as error:
        raise ResultsError(f"{path} cannot be read ({error}); reinstall trtllm-bench") from None


def _latency(line: Mapping[str, str]) -> PeerLatency:
    family = _FAMILIES[line["op"]]
    words = line["shape"].split()
    sizes: tuple[int, ...] = ()
    if family == "gemm":
        sizes = tuple(int(word[1:]) for word in words[:2])
    elif family in MEASURED:
        sizes = tuple(int(word.lstrip("hkvdlen")) for word in words[:4])
    dtype = line["dtype"].replace("bfloat16", "bf16")
    shape = OpShape(family, sizes, dtype, int(line["tokens_or_bytes"]), "" if sizes else line["shape"])
    return PeerLatency(line["device"], line["engine"], shape, float(line["latency_us"]))


def by_shape(device: str, latencies: Sequence[PeerLatency] | None = None) -> dict[OpShape, dict[str, float]]:
    """For a GPU (by class: `NVIDIA H200`), each shape's microseconds by engine. Raises `ResultsError` for a GPU that has none, and for a
    board of other rates than its class."""
    latencies = load_ops() if latencies is None else latencies
    wanted = gpu_class(device)
    shapes: dict[OpShape, dict[str, float]] = {}
    for one in latencies:
        if gpu_class(one.device) == wanted and has_sheet_rates(device):
            engines = shapes.setdefault(one.shape, {})
            engines[one.engine] = min(one.latency_us, engines.get(one.engine, math.inf))
    if not shapes:
        known = ", ".join(sorted({gpu_class(one.device) for one in latencies}))
        raise ResultsError(f"no op latencies are published for {device or 'this device'}; they are for {known}")
    return shapes


def sample(shapes: Iterable[OpShape], limit: int) -> list[OpShape]:
    """`limit` of them (0: all), spread evenly: over (family, sizes but the length, dtype) in turn, and within each over its sizes."""
    groups: dict[tuple[Any, ...], list[OpShape]] = {}
    for shape in sorted(shapes):
        groups.setdefault((shape.family, shape.sizes if shape.family == "gemm" else shape.sizes[:3], shape.dtype), []).append(shape)
    total = sum(len(group) for group in groups.values())
    if not 0 < limit < total:
        return [shape for group in groups.values() for shape in group]
    families = list(dict.fromkeys(key[0] for key in groups))
    quota = dict.fromkeys(groups, 0)
    for turn in range(limit):  # by families in turn, in each to the group least sampled
        for offset in range(len(families)):
            family = families[(turn + offset) % len(families)]
            open_groups = [key for key in groups if key[0] == family and quota[key] < len(groups[key])]
            if open_groups:
                quota[min(open_groups, key=lambda key: quota[key])] += 1
                break
    return [shape for key, group in groups.items() for shape in _spread(sorted(group, key=lambda one: (one.size, one)), quota[key])]


def _spread(ordered: Sequence[OpShape], count: int) -> list[OpShape]:
    """`count` of them at even distances, the middles of equal parts."""
    return [ordered[int((index + 0.5) * len(ordered) / count)] for index in range(count)]


@dataclass(frozen=True)
class OpBeside:
    """Ours beside theirs at one shape, microseconds. `roof_us`: what the ceilings allow the op alone; None where they are not known."""

    shape: OpShape
    ours_us: float
    alone_us: float
    theirs_us: Mapping[str, float]
    roof_us: float | None = None
    noise: float = 0.0
    """Relative standard error of ours."""
    slowed: bool = False

    @property
    def best(self) -> tuple[str, float]:
        """The fastest engine there."""
        return min(self.theirs_us.items(), key=lambda item: item[1])

    @property
    def ratio(self) -> float:
        """Theirs / ours: above 1 ours is faster."""
        return self.best[1] / self.ours_us

    @property
    def alone_ratio(self) -> float:
        return self.best[1] / self.alone_us

    @property
    def share(self) -> float | None:
        """Of the ceiling, of the op alone. Above 1 where L2 holds what is read."""
        return None if self.roof_us is None else self.roof_us / self.alone_us


@dataclass(frozen=True)
class OpRun:
    """A run of `kernels --against published`, as kept in JSON. `wrong`: shapes whose result differs from the reference, and by how much."""

    device: str
    rows: tuple[OpBeside, ...]
    command: str = ""
    revision: str = ""
    method: str = METHOD
    wrong: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def save(self, path: Path) -> None:
        write_text(path, json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> OpRun:
        """Raises `ResultsError`."""
        try:
            return as_kind(cls, read_document(path), path)
        except (OSError, ResultsError) as error:
            raise ResultsError(f"{path} does not hold a run of kernels --against published ({error})") from None


@dataclass(frozen=True)
class FamilySummary:
    family: Family
    shapes: int
    ahead: int
    ahead_alone: int
    geometric_ratio: float
    behind: tuple[OpBeside, ...]
    """Slowest first."""

    @property
    def sentence(self) -> str:
        text = f"{self.family}: ahead of the fastest of the published engines at {self.ahead} of {self.shapes} shapes"
        alone = f", {self.ahead_alone} by the op alone" if self.ahead_alone != self.ahead else ""
        return f"{text}{alone}; theirs / ours {self.geometric_ratio:.2f} (geometric mean)"


def summaries(rows: Sequence[OpBeside]) -> list[FamilySummary]:
    """One for each family that has rows."""
    families = dict.fromkeys(one.shape.family for one in rows)
    result = []
    for family in families:
        members = [one for one in rows if one.shape.family == family]
        behind = tuple(sorted((one for one in members if one.ratio < 1), key=lambda one: one.ratio))
        ahead = len(members) - len(behind)
        alone = sum(one.alone_ratio >= 1 for one in members)
        result.append(FamilySummary(family, len(members), ahead, alone, geometric_mean([one.ratio for one in members]), behind))
    return result


def left_out(shapes: Iterable[OpShape]) -> list[str]:
    """What is published and not measured, one sentence a reason."""
    counts: dict[str, int] = {}
    for shape in shapes:
        reason = NOT_MEASURED.get(shape.family) or NOT_OURS.get(shape.dtype)
        if reason:
            text = f"{shape.family}{'' if shape.family in NOT_MEASURED else ' ' + shape.dtype}"
            counts[f"{text}: not measured, {reason}"] = counts.get(f"{text}: not measured, {reason}", 0) + 1
    return [f"{text} ({count:,} shapes)" for text, count in sorted(counts.items())]


def ours(shapes: Iterable[OpShape], ops: Sequence[str]) -> list[OpShape]:
    """Those that `kernels --against published` can measure, of the families that `ops` names. Raises `ResultsError` for an unknown name."""
    unknown = [name for name in ops if name not in OPS]
    if unknown or not ops:
        told = f"'{unknown[0]}'" if unknown else "empty"
        raise ResultsError(f"--ops is {told}; choose from {', '.join(OPS)}, separated by commas")
    families = {family for name in ops for family in OPS[name]}
    return [shape for shape in shapes if shape.family in families and shape.dtype not in NOT_OURS]
