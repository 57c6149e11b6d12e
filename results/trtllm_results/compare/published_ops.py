"""Other engines' kernels, one by one: latencies of GEMM, attention, MoE and all-reduce at stated shapes, and ours beside them.

The figures are AIConfigurator's (`results/published/ORIGIN.md`), and the source of its collectors says how they were taken: in a CUDA
graph, after a few warm-up replays, the mean of six replays (20 of SGLang's attention) between two events. A GEMM's graph holds up to six
calls with a weight each, so that weights come from memory; attention's holds one call, so a cache of keys and values that fits into L2 is
found there. What a call holds differs by engine (`CALLS`), so ours is measured with each work (`Work`), and a ratio is of an engine's call
and ours of the same work.

A published latency is one number without an interval, so a ratio is one too and no verdict. A shape is ahead when ours takes less time than
every engine's call there, each beside ours of its work.
"""

from __future__ import annotations

import csv
import gzip
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
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
    "theirs and ours: CUDA graph, warm-up, mean of several replays between two events, a pause before; GEMM weights rotate through "
    "copies, attention finds in L2 what fits; ours does the work that the engine's call does: quantization with a scale a row before an "
    "fp8 GEMM, before attention the cache write (vLLM, SGLang) or rotation and cache write (TensorRT-LLM)"
)
Work = Literal["alone", "given scale", "row scales", "cache write", "rotation"]
"""What a call does besides the product or attention, each more than the one before it: nothing; quantization of a GEMM's input with a scale
that is given, or with one for each row that it finds first; the write of keys and values to the cache, or rotation and that."""


@dataclass(frozen=True)
class Calls:
    """What the published calls of an engine hold."""

    fp8_gemm: Work
    attention: Work


CALLS: Mapping[str, Calls] = {
    "trtllm": Calls("row scales", "rotation"),
    "vllm": Calls("row scales", "cache write"),
    "sglang": Calls("row scales", "cache write"),
}
"""By engine, as its collector has it (`docs/observatory.md`). TensorRT-LLM's fp8 GEMM has one scale for all rows, which it finds first too;
of ours, what finds a scale finds one for each row."""
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


def work_of(engine: str, shape: OpShape) -> Work | None:
    """What the call of `engine` (`vllm 0.24.0`) at a shape does besides the op; None where that is not known."""
    if shape.family == "gemm" and shape.dtype == "bf16":
        return "alone"
    calls = CALLS.get(engine.split()[0])
    return None if calls is None else calls.fp8_gemm if shape.family == "gemm" else calls.attention


@dataclass(frozen=True)
class OpBeside:
    """Ours beside theirs at one shape, microseconds: `ours_us` with the most work that any of them does, `alone_us` with none. `roof_us`:
    what the ceilings allow the op alone; None where they are not known."""

    shape: OpShape
    ours_us: float
    alone_us: float
    theirs_us: Mapping[str, float]
    roof_us: float | None = None
    noise: float = 0.0
    """Relative standard error of ours."""
    slowed: bool = False
    between_us: Mapping[Work, float] = field(default_factory=dict)
    """Ours with a work between these two. Records from before ratios were of the same work have none."""
    here_us: float | None = None
    """What all engines there call, where it is one and the same and at hand (torch's product, in bf16), timed here as ours is."""

    def ours_beside(self, engine: str) -> float:
        """Ours with the work that this engine's call does; with the most where that is not known or was not measured."""
        work = work_of(engine, self.shape)
        return self.alone_us if work == "alone" else self.between_us.get(work, self.ours_us) if work else self.ours_us

    @property
    def best(self) -> tuple[str, float]:
        """The engine that is fastest beside ours of the same work, and its time."""
        return min(self.theirs_us.items(), key=lambda item: item[1] / self.ours_beside(item[0]))

    @property
    def same_work_us(self) -> float:
        """Ours with the work of that engine's call."""
        return self.ours_beside(self.best[0])

    @property
    def ratio(self) -> float:
        """Theirs / ours of the same work: above 1 ours is faster."""
        return self.best[1] / self.same_work_us

    @property
    def alone_ratio(self) -> float:
        """The fastest of theirs / the op alone, whatever theirs holds."""
        return min(self.theirs_us.values()) / self.alone_us

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
