"""Other people's figures, and ours beside them.

A published figure is one number with a source: no repeats, no environment, a method known only in part. So it gets a ratio and a sentence
on what differs, never a verdict or an interval. Ours is the fastest cell (newest version, mean over repeats) of the same target, model,
precision, shape and parallel layout, because the published ones are maximum throughput; a figure taken at so many requests at once meets
cells with as many sequences in flight only. A published ISL within 10% is matched and the difference said (GPT-J cannot do 2048/128 within
its 2048 positions).
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from trtllm_results.errors import ResultsError
from trtllm_results.gpus import gpu_class, has_sheet_rates
from trtllm_results.model_sizes import canonical
from trtllm_results.plausibility import Claim, Implausible, judge
from trtllm_results.record.cell import OWN_TARGET, Cell
from trtllm_results.record.environment import Environment
from trtllm_results.record.row import Row
from trtllm_results.store.layout import ROWS
from trtllm_results.versions import newest

ISL_TOLERANCE = 0.10
HANDFUL = 256
"""Up to this many requests all run at once, so the figure is one of a fixed batch."""
HALF = frozenset({"fp16", "bf16"})
SLOWER = ("gate", "nvtx-overhead")
"""Stores recorded on purpose with slower engines."""


@dataclass(frozen=True)
class Published:
    """One figure from elsewhere. `measured` marks our own measurement of a peer. `requests`: queued at once and no more; `concurrency`: at
    once, each followed by the next. Either is 0 where not told."""

    source: str
    gpu: str
    model: str
    precision: str
    kv_dtype: str
    isl: int
    osl: int
    tp: int
    output_tokens_per_s: float
    method: str
    measured: bool = False
    requests: int = 0
    concurrency: int = 0
    ttft_ms: float = 0.0
    tpot_ms: float = 0.0
    """Medians; 0 where not told."""

    @property
    def at_once(self) -> int:
        """Sequences in flight that a counterpart must have; 0: any number."""
        return self.concurrency or (self.requests if self.requests <= HANDFUL else 0)

    @property
    def implausible(self) -> Implausible | None:
        """What is wrong with the figure, by what it asks of its GPUs."""
        claim = Claim(self.gpu, self.model, self.precision, self.isl, self.osl, self.output_tokens_per_s, self.tp, self.kv_dtype)
        return judge(replace(claim, batch=self.at_once))

    def as_row(self) -> Row:
        """The figure as a row, for tables and plots that take rows."""
        return Row(
            cell=Cell(
                model=self.model,
                precision=self.precision,
                kv_dtype=self.kv_dtype,
                batch=self.concurrency,
                isl=self.isl,
                osl=self.osl,
                tp=self.tp,
                num_requests=self.requests,
                target=self.source,
            ),
            environment=Environment(gpu=self.gpu),
            figures={
                "output_tokens_per_s": self.output_tokens_per_s,
                "output_tokens_per_s_per_gpu": self.output_tokens_per_s / self.tp,
                **{name: value for name, value in (("ttft_p50_ms", self.ttft_ms), ("tpot_p50_ms", self.tpot_ms)) if value},
            },
            warnings=() if self.implausible is None else (self.implausible.text,),
            run_id="published",
            started_at="",
            extra={"method": self.method},
            row_id=f"published-{self.source}-{self.gpu}-{self.model}-{self.precision}-{self.kv_dtype}-{self.isl}-{self.osl}-{self.tp}"
            + f"-{self.concurrency}" * bool(self.concurrency),
        )


@dataclass(frozen=True)
class Beside:
    """Ours beside one published figure. `ratio` is ours / theirs; `differs` names what the two do not share and what of either cannot be,
    `here` our method, `doubt` why ours cannot be."""

    ours: Row
    ours_tokens_per_s: float
    repeats: int
    theirs: Published
    same_gpu: bool
    differs: tuple[str, ...]
    here: str
    doubt: Implausible | None = None

    @property
    def ratio(self) -> float:
        return self.ours_tokens_per_s / self.theirs.output_tokens_per_s


def measured_on_gpus(root: Path) -> list[Path]:
    """The folders in `results/recorded` with stores of one kind and number of GPUs: those that have ceilings."""
    return sorted(path.parent for path in root.glob("*/ceilings.json"))


def recorded_stores(folder: Path) -> list[Path]:
    """The stores in such a folder whose engines were as fast as they could be."""
    return [table.parent for table in sorted(folder.glob(f"*/{ROWS}")) if table.parent.name not in SLOWER]


def recorded() -> Path | None:
    """The folder of stores that the published figures' neighbours were recorded in, in a checkout; None where installed without it."""
    place = folder().parent / "recorded" / "h100"
    return place if place.is_dir() else None


def folder() -> Path:
    """Where the CSV files lie: beside the package in a checkout, inside it when installed. Raises `ResultsError` if neither has them."""
    package = Path(__file__).parents[1]
    for place in (package / "published", package.parent / "published"):
        if (place / "published.csv").exists():
            return place
    raise ResultsError("the published figures are not part of this installation; reinstall trtllm-bench")


@cache
def load() -> tuple[Published, ...]:
    """All published figures and measured peers."""
    with open(folder() / "published.csv", newline="") as handle:
        figures = [
            Published(
                source=f"{line['source']} {line['version']}".strip(),
                gpu=line["gpu"],
                model=line["model"],
                precision=line["weights"].split()[0],
                kv_dtype=line["kv_cache"].split()[0] if line["kv_cache"] else "",
                isl=int(line["isl"]),
                osl=int(line["osl"]),
                tp=int(line["tp"]),
                output_tokens_per_s=float(line["output_tokens_per_s"]),
                method=line["note"] + (f"; weights {line['weights']}" if " " in line["weights"] else ""),
            )
            for line in csv.DictReader(handle)
        ]
    with open(folder() / "measured_peers.csv", newline="") as handle:
        figures += [
            Published(
                source=line["engine"].split(" (")[0],
                gpu=line["gpu"],
                model=line["model"],
                precision=line["weights"].split()[0],
                kv_dtype=line["kv_cache"],
                isl=int(line["isl"]),
                osl=int(line["osl"]),
                tp=int(line["tp"]),
                output_tokens_per_s=float(line["output_tokens_per_s"]),
                method=f"{_counted(int(line['num_requests']))} queued at once, up to {line['max_num_seqs']} running, random token ids"
                + (f"; weights {line['weights']}" if " " in line["weights"] else ""),
                measured=True,
                requests=int(line["num_requests"]),
            )
            for line in csv.DictReader(handle)
        ]
    return (*figures, *_points())


def _counted(requests: int) -> str:
    return f"{requests} request{'s' * (requests != 1)}"


def _points() -> Iterator[Published]:
    """End-to-end points at fixed concurrency. Their throughput is derived: concurrency x OSL / (TTFT + TPOT x (OSL - 1))."""
    engines = {"trtllm": "TensorRT-LLM", "vllm": "vLLM", "sglang": "SGLang"}
    with open(folder() / "peers_end_to_end.csv", newline="") as handle:
        for line in csv.DictReader(handle):
            engine, _, version = line["engine"].partition(" ")
            concurrency = int(line["concurrency"])
            yield Published(
                source=f"{engines.get(engine, engine)} {version or 'of unknown version'} (AIConfigurator)",
                gpu=gpu_class(line["system"]),
                model=canonical(line["model"]),
                precision=line["precision"],
                kv_dtype="",
                isl=int(line["isl"]),
                osl=int(line["osl"]),
                tp=int(line["tp"]),
                output_tokens_per_s=float(line["derived_output_tok_s_total"]),
                method=f"{line['model']}, {_counted(concurrency)} at once, throughput derived from medians of TTFT and TPOT"
                + ("" if line["precision"] else "; precision not stated"),
                concurrency=concurrency,
                ttft_ms=float(line["ttft_ms"]),
                tpot_ms=float(line["tpot_ms"]),
            )


def beside(rows: Iterable[Row], published: Sequence[Published] | None = None) -> list[Beside]:
    """Each published figure that has a counterpart in `rows`, same GPU first; predictions are none. Raises `ResultsError` when nothing
    matches."""
    published = load() if published is None else published
    every = list(rows)
    rows = [row for row in every if not row.predicted]
    if every and not rows:
        raise ResultsError("these results are predictions, and ours beside published figures is what was measured; measure the cells")
    groups: dict[tuple[str, str, str, str, int, int, int], list[Row]] = {}
    for row in rows:
        if row.status == "ok" and row.figures.get("output_tokens_per_s", 0) > 0 and row.cell.gpus == row.cell.tp:
            cell = row.cell
            key = (cell.target, row.environment.gpu, canonical(cell.model), _precision(cell.precision), cell.isl, cell.osl, cell.tp)
            groups.setdefault(key, []).append(row)
    comparisons: list[Beside] = []
    for group in groups.values():
        for theirs in published:
            candidates = [row for row in group if _matches(row.cell, theirs)]
            if candidates:
                repeats, rate = _fastest(candidates)
                best, doubt = repeats[0], next((row.implausible for row in repeats if row.implausible), None)
                same = _same_board(best.environment.gpu, theirs.gpu)
                differs = (*_differences(best, theirs, same), *([f"here: {doubt.text}"] if doubt else []))
                comparisons.append(Beside(best, rate, len(repeats), theirs, same, differs, _method(best.cell), doubt))
    if not comparisons:
        raise ResultsError(
            "none of these results has a published counterpart (same model, precision, ISL/OSL and tensor parallelism); "
            "published are " + ", ".join(sorted({p.model for p in published}))
        )
    return sorted(
        comparisons,
        key=lambda b: (b.ours.cell.model, b.ours.cell.precision, b.ours.cell.isl, b.ours.cell.osl, not b.same_gpu, b.theirs.source),
    )


def _same_board(ours: str, theirs: str) -> bool:
    """Whether two GPUs are of one class and, by their names, of its rates: an H100 PCIe is no H100 SXM."""
    return gpu_class(ours) == gpu_class(theirs) and has_sheet_rates(ours) == has_sheet_rates(theirs)


def _matches(cell: Cell, theirs: Published) -> bool:
    """A figure for a handful of sequences, or at a fixed concurrency, is matched by that many in flight, one for maximum throughput by any
    cell. A figure whose precision is not stated matches nothing."""
    return (
        canonical(cell.model) == canonical(theirs.model)
        and _precision(cell.precision) == _precision(theirs.precision)
        and cell.tp == theirs.tp
        and cell.osl == theirs.osl
        and abs(cell.isl - theirs.isl) <= ISL_TOLERANCE * theirs.isl
        and theirs.at_once in (0, _in_flight(cell))
    )


def _in_flight(cell: Cell) -> int:
    """Sequences at once, of a cell whose requests are all queued."""
    return min((count for count in (cell.batch, cell.num_requests) if count), default=0)


def _fastest(group: list[Row]) -> tuple[tuple[Row, ...], float]:
    """The case of highest mean throughput, each by its newest version: its repeats and their mean."""
    found = newest(group)
    means = [sum(row.figures["output_tokens_per_s"] for row in rows) / len(rows) for rows in found]
    best = means.index(max(means))
    return found[best], means[best]


def _precision(name: str) -> str:
    return "half" if name in HALF else name


def _differences(ours: Row, theirs: Published, same_gpu: bool) -> tuple[str, ...]:
    cell, parts = ours.cell, []
    if not same_gpu:
        here = ours.environment.device
        here = gpu_class(here) if gpu_class(here) != gpu_class(theirs.gpu) else here.removeprefix("NVIDIA ")
        parts.append(f"{gpu_class(theirs.gpu)} there, {here} here")
    if cell.model.lower() != theirs.model:
        parts.append(f"{theirs.model} there (same shapes)")
    if cell.precision != theirs.precision:
        parts.append(f"{theirs.precision} there, {cell.precision} here")
    if cell.kv_dtype and theirs.kv_dtype and cell.kv_dtype != theirs.kv_dtype:
        parts.append(f"KV {theirs.kv_dtype} there, {cell.kv_dtype} here")
    if cell.isl != theirs.isl:
        parts.append(f"ISL {theirs.isl} there, {cell.isl} here")
    doubt = theirs.implausible
    return (*parts, *([f"there: {doubt.text}"] if doubt else []), f"there: {theirs.method}")


def _method(cell: Cell) -> str:
    load = (
        f"{cell.request_rate:g} requests/s" if cell.request_rate else _counted(cell.num_requests) if cell.num_requests else "all requests"
    )
    attention = cell.settings.get("context_attention")
    parts = [
        "" if cell.target == OWN_TARGET else f"{cell.target} {cell.target_version}".strip(),
        load,
        f"up to {cell.batch} running" if cell.batch else "",
        f"workload {cell.workload}" if cell.workload else "",
        f"attention of prompts in {attention}" if attention not in (None, "wide") else "",
    ]
    return ", ".join(part for part in parts if part)
