"""Writes the tables of recorded runs into the documents that show them, and draws two pictures of the README.

    python docs/records.py              # rewrites what lies between `<!-- records: NAME -->` and `<!-- end -->`, in every document
    python docs/records.py --pictures   # and docs/pictures/published.png and gpus.png, of the same records
    python docs/records.py --predictions    # and the step model's tables, prediction_errors.toml, for intervals, and by these
                                            # results/recorded/predicted anew; takes minutes
    python docs/records.py --fit        # and before all that the step model's constants for an H200, from its recorded runs; a minute more
    python docs/records.py --ceilings   # and before them docs/facts/at-ceilings.csv, for the table of aims; takes half a minute

Every figure comes from `results/recorded`, every figure of other engines from `results/published`, every constant of the step model from
its files; nothing is typed. A line is the version of a case that was measured last (`trtllm_results.versions`), the mean over its repeats.
A case without a record has no line.
"""

from __future__ import annotations

import argparse
import csv
import re
import shlex
import shutil
import statistics
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtllm_results.compare.published import Beside, beside, measured_on_gpus, recorded_stores
from trtllm_results.compare.published_ops import OpRun, summaries
from trtllm_results.errors import ResultsError
from trtllm_results.gpus import gpu_class
from trtllm_results.record.cell import Cell
from trtllm_results.record.row import Row
from trtllm_results.store.table import read_rows
from trtllm_results.versions import measured_at, versions

if TYPE_CHECKING:
    from trtllm_bench.analysis.model_errors import PeerPoint

ROOT = Path(__file__).parents[1]
RECORDED = ROOT / "results" / "recorded"
OPS = (RECORDED / "h200" / "kernels-published.json", RECORDED / "h200-x2" / "kernels-published.json")
"""The first that is there."""
IN_FP8 = ", prompts fp8"
"""Of precisions: attention of prompts multiplies fp8."""
AIMS = ROOT / "docs" / "facts" / "aims.csv"
"""Aims for one H200, set before the work. A load is `queued`, a number of sequences, or latency limits as `arrivals` shows them."""
AT_CEILINGS = ROOT / "docs" / "facts" / "at-ceilings.csv"
"""By row id, the rate that `explain` gives for a row short of its aim if every op ran at its ceiling."""
DOCUMENTS = (
    *("README.md", "docs/observatory.md", "docs/profiling.md", "docs/facts/h200.md", "docs/facts/two-gpus.md"),
    *("docs/facts/precision-and-quality.md", "docs/facts/throughput.md"),
)
PREDICTION_DOCUMENTS = ("docs/facts/predictions.md", "docs/facts/step-model.md")
"""Documents that only `--predictions` rewrites."""
BLOCK = re.compile(r"(<!-- records: ([a-z0-9-]+) -->\n\n).*?(\n\n<!-- end -->)", re.DOTALL)
FEW = 64
"""Up to this many sequences a case may be one of latency; with more it is one of throughput."""
ENGINES = {"TensorRT-LLM": "TRT-LLM", "vLLM": "vLLM", "SGLang": "SGLang"}
OURS_FIRST = ("fp8", "bf16", "fp8_rowwise", "fp8_block", "fp8_wo", "int8_sq", "int8_wo", "w4a8", "int4", "nvfp4_wo", "mxfp4_wo", "nf4")


@dataclass(frozen=True)
class Line:
    """The repeats of one case, of its version measured last."""

    rows: tuple[Row, ...]

    @property
    def cell(self) -> Cell:
        return self.rows[0].cell

    @property
    def gpu(self) -> str:
        return gpu_class(self.rows[0].environment.gpu)

    @property
    def precision(self) -> str:
        """With its cache and what attention of prompts multiplies, where these are not the usual ones."""
        cell = self.cell
        cache = "" if self.usual_cache else f", KV {cell.kv_dtype}"
        return f"{cell.precision}{cache}{IN_FP8 if cell.settings.get('context_attention') == 'fp8' else ''}"

    @property
    def usual_cache(self) -> bool:
        """Wide under wide weights, else fp8."""
        return self.cell.kv_dtype in ("", "bf16" if self.cell.precision == "bf16" else "fp8")

    @property
    def layout(self) -> str:
        parts = [f"--{name} {getattr(self.cell, name)}" for name in ("tp", "pp", "replicas") if getattr(self.cell, name) > 1]
        return " ".join(parts) or "one GPU"

    @property
    def revision(self) -> str:
        """Short; a star where the checkout was changed."""
        environment = self.rows[0].environment
        return environment.git_revision[:7] + "\\*" * environment.git_dirty or "-"

    def mean(self, name: str) -> float | None:
        values = [row.figures[name] for row in self.rows if name in row.figures]
        return sum(values) / len(values) if values else None

    @property
    def rate(self) -> float:
        return self.mean("output_tokens_per_s") or 0.0

    @cached_property
    def counterparts(self) -> list[Beside]:
        """Other engines' figures for this case on this kind of GPU that the GPU can reach, as `compare --against published` has them."""
        try:
            return _fair(beside(self.rows))
        except ResultsError:
            return []

    def best_of(self, engine: str = "") -> Beside | None:
        """The highest counterpart, of one engine or of all."""
        chosen = [one for one in self.counterparts if engine in ("", _engine(one))]
        return max(chosen, key=lambda one: one.theirs.output_tokens_per_s, default=None)


def _fair(found: Iterable[Beside]) -> list[Beside]:
    return [one for one in found if one.same_gpu and one.theirs.implausible is None and _engine(one)]


def _engine(one: Beside) -> str:
    return next((name for name in ENGINES if one.theirs.source.startswith(name)), "")


@cache
def recorded_rows() -> list[Row]:
    """Of every GPU measured on; a row that lies in two stores counts once."""
    rows: dict[str, Row] = {}
    for folder in measured_on_gpus(RECORDED):
        for store in recorded_stores(folder):
            rows |= {row.row_id: row for row in read_rows(store)}
    return list(rows.values())


@cache
def newest() -> tuple[Line, ...]:
    """Every case recorded, by model, GPUs, lengths, precision and sequences."""
    latest: dict[tuple[Any, ...], Line] = {}
    for group in versions(recorded_rows()):
        line = Line(group)
        cell = line.cell
        load = cell.batch, cell.request_rate, cell.named_workload
        lengths = (cell.isl, cell.osl) if not load[2] else ()
        tokens = 0 if few_at_once(line) or short(line) else cell.settings.get("max_num_tokens", 0)
        case = line.gpu, cell.model, line.precision, line.layout, *lengths, *load, tokens
        if case not in latest or measured_at(group) > measured_at(latest[case].rows):
            latest[case] = line
    return tuple(sorted(latest.values(), key=_order))


@cache
def lines() -> tuple[Line, ...]:
    """The lines of `newest` that no later case supersedes."""
    found = newest()
    return tuple(line for line in found if not any(_supersedes(other, line) for other in found))


def _supersedes(new: Line, old: Line) -> bool:
    """Of throughput: a later revision that makes as much of the same lengths, with other sequences or requests."""
    same = [
        (line.gpu, line.cell.model, line.precision, line.layout, line.cell.isl, line.cell.osl, closed(line), few_at_once(line))
        for line in (new, old)
    ]
    later = measured_at(new.rows) > measured_at(old.rows) and new.revision != old.revision
    return later and same[0] == same[1] and closed(old) and not few_at_once(old) and not short(old) and new.rate >= old.rate


def _order(line: Line) -> tuple[Any, ...]:
    cell = line.cell
    place = OURS_FIRST.index(cell.precision) if cell.precision in OURS_FIRST else len(OURS_FIRST)
    models = ("llama-3.1-8b", "llama-3.1-70b", "gptj-6b", "llama-2-7b")
    model = models.index(cell.model) if cell.model in models else len(models)
    lengths = (cell.isl + cell.osl, cell.isl) if closed(line) else ()
    return model, cell.gpus, place, line.precision, not closed(line), *lengths, cell.batch, cell.request_rate, line.layout


def closed(line: Line) -> bool:
    """Fixed lengths, and as many requests in flight as asked for."""
    return not line.cell.request_rate and not line.cell.named_workload


def few_at_once(line: Line) -> bool:
    """A case of latency, named by its sequences; where prompts outweigh, throughput is nearly the same from few sequences on."""
    return line.cell.batch <= FEW and line.cell.osl >= line.cell.isl


def short(line: Line) -> bool:
    """Of the rows that a batch is swept over: 128/256 with up to 256 sequences."""
    return closed(line) and (line.cell.isl, line.cell.osl) == (128, 256)


def number(value: float | None, places: int = 0) -> str:
    return "-" if value is None else f"{value:,.{places}f}"


def significant(value: float | None) -> str:
    """Three digits, or all before the point."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}".rstrip(".")


def _of_kernel(name: str) -> dict[str, tuple[str, str]]:
    """Where the step model's files have the constants that every kind of kernel has."""
    return {
        "bandwidth": ("bandwidth_share", name),
        "stream": ("stream_tb_per_s", name),
        "fixed": ("kernel_us", name),
        "pdl": ("pdl_us", name),
    }


def markdown(columns: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """A column is its head; one that ends in `:` is of numbers."""
    head = [name.removesuffix(":") for name in columns]
    rule = ["--:" if name.endswith(":") else "---" for name in columns]
    lines = list(body)
    if any(len(cells) != len(head) for cells in lines):
        raise ValueError(f"a row of the table with columns {', '.join(head)} has another number of cells")
    rows = [f"| {' | '.join(cells)} |" for cells in lines]
    return "\n".join([f"| {' | '.join(head)} |", f"|{'|'.join(rule)}|", *rows]) if rows else "Not measured yet."


def rate_of(line: Line) -> str:
    return significant(line.rate)


def theirs_of(one: Beside | None) -> str:
    """The figure, and its input length where that is another."""
    if one is None:
        return "-"
    cell, theirs = one.ours.cell, one.theirs
    differs = [f"{theirs.isl}/{theirs.osl}"] * (theirs.isl != cell.isl) + [theirs.precision] * (theirs.precision != cell.precision)
    return significant(theirs.output_tokens_per_s) + (f" ({', '.join(differs)})" if differs else "")


def ratio_of(line: Line) -> str:
    best = line.best_of()
    return "-" if best is None else f"{line.rate / best.theirs.output_tokens_per_s:.2f}"


def detailed(chosen: Iterable[Line]) -> str:
    columns = ["model", "precision", "in/out", "at once:", "tokens:", "requests:", "n:", "tok/s:", "TRT-LLM:", "vLLM:", "ratio:"]
    columns += ["TPOT ms:", "W:", "J/token:", "revision"]
    return markdown(
        columns,
        (
            [
                line.cell.model,
                line.precision,
                f"{line.cell.isl}/{line.cell.osl}",
                f"{line.cell.batch:,}",
                f"{line.cell.settings.get('max_num_tokens', 0):,}",
                f"{line.cell.num_requests:,}",
                str(len(line.rows)),
                f"**{rate_of(line)}**",
                theirs_of(line.best_of("TensorRT-LLM")),
                theirs_of(line.best_of("vLLM")),
                ratio_of(line),
                significant(line.mean("tpot_p50_ms")),
                number(line.mean("power_mean_w")),
                significant(line.mean("energy_per_output_token_j")),
                line.revision,
            ]
            for line in chosen
        ),
    )


def few() -> str:
    """One H200, 128/256: what a batch makes of each precision."""
    mine = [line for line in lines() if line.gpu == "H200" and line.cell.gpus == 1 and short(line) and line.cell.model == "llama-3.1-8b"]
    columns = ["precision", "at once:", "n:", "tok/s:", "vLLM:", "ratio:", "TTFT ms:", "TPOT ms:", "W:", "MHz:", "J/token:", "revision"]
    return markdown(
        columns,
        (
            [
                line.precision,
                f"{line.cell.batch:,}",
                str(len(line.rows)),
                f"**{rate_of(line)}**",
                theirs_of(line.best_of("vLLM")),
                ratio_of(line),
                significant(line.mean("ttft_p50_ms")),
                significant(line.mean("tpot_p50_ms")),
                number(line.mean("power_mean_w")),
                number(line.mean("sm_clock_mean_mhz")),
                significant(line.mean("energy_per_output_token_j")),
                line.revision,
            ]
            for line in mine
        ),
    )


def queued() -> str:
    mine = [line for line in lines() if line.gpu == "H200" and line.cell.gpus == 1 and closed(line)]
    return detailed(line for line in mine if not (short(line) and line.cell.model == "llama-3.1-8b"))


def h100() -> str:
    """One H100 in fp8, and bf16 of as many sequences."""
    mine = [line for line in lines() if line.gpu == "H100" and line.cell.gpus == 1 and closed(line)]
    return detailed(line for line in mine if line.cell.precision == "fp8" or line.cell.batch >= 1024)


def arrivals() -> str:
    """Of a dataset, offline and at a rate of arrivals, on one H200."""
    mine = [line for line in lines() if line.gpu == "H200" and line.cell.gpus == 1 and not closed(line)]
    columns = [
        *("workload", "arrivals", "tokens:", "requests:", "tok/s:", "limits ms:", "finished/s:", "within:"),
        *("TTFT p50 ms:", "p99:", "TPOT p50 ms:", "p99:", "W:", "J/token:", "revision"),
    ]
    return markdown(
        columns,
        (
            [
                line.cell.workload or f"{line.cell.isl}/{line.cell.osl}",
                f"{line.cell.request_rate:g}/s" if line.cell.request_rate else "all queued",
                f"{line.cell.settings.get('max_num_tokens', 0):,}",
                f"{line.cell.num_requests:,}",
                f"**{rate_of(line)}**",
                *_limits(line),
                *(significant(line.mean(name)) for name in ("ttft_p50_ms", "ttft_p99_ms", "tpot_p50_ms", "tpot_p99_ms")),
                number(line.mean("power_mean_w")),
                significant(line.mean("energy_per_output_token_j")),
                line.revision,
            ]
            for line in mine
        ),
    )


def _limits(line: Line) -> list[str]:
    """Of TTFT and TPOT, requests/s that ended, and the share of them within the limits."""
    limits = line.cell.settings.get("slo_ms", {})
    finished, good = line.mean("requests_per_s"), line.mean("goodput_requests_per_s")
    share = "-" if good is None or not finished else f"{good / finished:.1%}"
    return [" / ".join(f"{limits[name]:g}" for name in ("ttft", "tpot") if name in limits) or "-", significant(finished), share]


def several() -> str:
    """Two H200, with the speed-up over one of the same revision."""
    mine = [line for line in lines() if line.gpu == "H200" and line.cell.gpus > 1 and closed(line)]
    columns = [
        "model",
        "in/out",
        "layout",
        "at once:",
        "tokens:",
        "requests:",
        "tok/s:",
        "one GPU:",
        "times:",
        "best other:",
        "ratio:",
        "TTFT ms:",
    ]
    columns += ["TPOT ms:", "J/token:", "revision"]
    body = []
    for line in mine:
        one, best = _on_one_gpu(line), line.best_of()
        body.append(
            [
                line.cell.model,
                f"{line.cell.isl}/{line.cell.osl}",
                f"`{line.layout}`",
                f"{line.cell.batch:,}",
                f"{line.cell.settings.get('max_num_tokens', 0):,}",
                f"{line.cell.num_requests:,}",
                f"**{rate_of(line)}**",
                "-" if one is None else rate_of(one),
                "-" if one is None else f"{line.rate / one.rate:.2f}",
                "-" if best is None else f"{theirs_of(best)} {ENGINES[_engine(best)]}",
                ratio_of(line),
                significant(line.mean("ttft_p50_ms")),
                significant(line.mean("tpot_p50_ms")),
                significant(line.mean("energy_per_output_token_j")),
                line.revision,
            ]
        )
    return markdown(columns, body)


def _on_one_gpu(line: Line) -> Line | None:
    """Of the same revision and load: ranks share a batch, copies and stages have one each."""
    cell = line.cell
    batch = cell.batch // (cell.pp * cell.replicas)
    tokens = cell.settings.get("max_num_tokens")
    case = line.gpu, line.revision, cell.model, line.precision, cell.isl, cell.osl, batch
    found = [
        one
        for one in map(Line, versions(recorded_rows()))
        if (one.gpu, one.revision, one.cell.model, one.precision, one.cell.isl, one.cell.osl, one.cell.batch) == case
        and (short(one) or one.cell.settings.get("max_num_tokens") == tokens)
        and one.cell.gpus == 1
        and closed(one)
    ]
    return max(found, key=lambda one: measured_at(one.rows), default=None)


def overview() -> str:
    """The README's: a case a line, H200 and H100 side by side; of those measured on an H200 that another engine has a figure for, too."""
    cases: dict[tuple[Any, ...], dict[str, Line]] = {}
    for line in lines():
        cell = line.cell
        layout = not (cell.pp > 1 or cell.replicas > 1)
        if not closed(line) or cell.precision not in ("fp8", "bf16") or not line.usual_cache or not layout:
            continue
        if short(line) and cell.batch not in (1, FEW):
            continue
        at_once = f"{cell.batch} at once" if few_at_once(line) else "queued"
        case = cell.model, line.precision, cell.tp, f"{cell.isl}/{cell.osl}", at_once
        fastest = cases.setdefault(case, {})
        if line.gpu not in fastest or line.rate > fastest[line.gpu].rate:
            fastest[line.gpu] = line
    columns = ["model", "in/out", "load", "H200:", "best other:", "ratio:", "J/token:", "H100:", "best other:", "ratio:", "J/token:"]
    body = []
    for (model, precision, tp, lengths, at_once), by_gpu in cases.items():
        if "H200" not in by_gpu or all(line.best_of() is None for line in by_gpu.values()):
            continue
        name = f"{model} {precision}" + (f", {tp} GPUs" if tp > 1 else "")
        body.append([name, lengths, at_once, *(text for gpu in ("H200", "H100") for text in _of_gpu(by_gpu.get(gpu)))])
    return markdown(columns, body)


def _of_gpu(line: Line | None) -> list[str]:
    if line is None:
        return ["-"] * 4
    best = line.best_of()
    other = "-" if best is None else f"{theirs_of(best)} {ENGINES[_engine(best)]}"
    return [f"**{rate_of(line)}**", other, ratio_of(line), significant(line.mean("energy_per_output_token_j"))]


def precisions() -> str:
    """One H200: rates relative to fp8 at the same revision, for up to 256 sequences at 128/256 and for 1,024 at 128/128."""
    mine = [line for line in newest() if line.gpu == "H200" and line.cell.gpus == 1 and closed(line) and line.cell.model == "llama-3.1-8b"]
    columns = {n: (128, 256 if n <= 256 else 128, n) for n in (1, 8, 64, 256, 1024)}
    of_case: dict[tuple[int, int, int], dict[str, Line]] = {}
    for line in mine:
        of_case.setdefault((line.cell.isl, line.cell.osl, line.cell.batch), {})[line.precision] = line
    ratios: dict[str, dict[int, float]] = {}
    for n, case in columns.items():
        for precision, line in of_case.get(case, {}).items():
            fp8 = _of_the_revision(line, "fp8")
            if precision != "fp8" and fp8 is not None:
                ratios.setdefault(precision, {})[n] = line.rate / fp8.rate
    body = [
        [precision, *("-" if n not in found else f"{found[n]:.2f}" for n in columns)]
        for precision, found in sorted(ratios.items(), key=lambda item: -next(iter(item[1].values())))
    ]
    return markdown(["precision", "1 sequence:", *(f"{n:,}:" for n in columns if n > 1)], body)


def _of_the_revision(line: Line, precision: str) -> Line | None:
    """The same case in another precision at the same revision, the one measured last. None where the checkout had local changes: it is
    unknown which."""
    cell = line.cell
    if line.rows[0].environment.git_dirty:
        return None
    case = line.gpu, line.revision, cell.gpus, cell.model, cell.isl, cell.osl, cell.batch, precision
    found = [
        one
        for one in map(Line, versions(recorded_rows()))
        if (one.gpu, one.revision, one.cell.gpus, one.cell.model, one.cell.isl, one.cell.osl, one.cell.batch, one.precision) == case
        and closed(one)
    ]
    return max(found, key=lambda one: measured_at(one.rows), default=None)


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def short_of_aims() -> str:
    """One H200: how many aims are met, which have no record, and the rows that fall short."""
    met, unknown, body = 0, [], []
    aims = read_csv(AIMS)
    most = {row["row_id"]: float(row["output_tokens_per_s"]) for row in read_csv(AT_CEILINGS)}
    for aim in aims:
        line, rate = _for_aim(aim), float(aim["aim"])
        name = f"{aim['model']} {aim['precision']}"
        if line is None:
            unknown.append(f"{name} at {aim['case']}")
        elif line.rate >= rate:
            met += 1
        else:
            watts = line.mean("power_mean_w")
            load = f"{line.cell.request_rate:g}/s, {aim['load']} ms" if line.cell.request_rate else f"{line.cell.batch:,}"
            body.append(
                [
                    *(name, aim["case"], load, rate_of(line), significant(rate), f"{1 - line.rate / rate:.1%}"),
                    significant(most.get(line.rows[-1].row_id)),
                    *(number(watts), number(line.mean("sm_clock_mean_mhz")), significant(line.mean("energy_per_output_token_j"))),
                    "-" if watts is None else significant(watts / rate),
                ]
            )
    columns = ["model", "lengths", "at once:", "tok/s:", "aim:", "short by:", "at ceilings:", "W:", "MHz:", "J/token:", "at the aim:"]
    told = f"{met} of {len(aims)} aims are met" + (f"; no record: {', '.join(unknown)}" if unknown else "")
    return "\n".join(textwrap.wrap(f"{told}. Short:", 120, break_on_hyphens=False)) + f"\n\n{markdown(columns, body)}"


def write_at_ceilings() -> None:
    """Rewrites `AT_CEILINGS` for the last repeat of every row short of its aim, except open-loop rows, whose rate is that of the
    arrivals."""
    from trtllm_bench.analysis.at_ceilings import rate_at_ceilings
    from trtllm_bench.analysis.cells import MeasuredCell
    from trtllm_results.store.table import Store

    folders = {row.row_id: table.parent for table in RECORDED.glob("h200/*/results.parquet") for row in read_rows(table.parent)}
    found = [(_for_aim(aim), float(aim["aim"])) for aim in read_csv(AIMS)]
    short_rows = [line.rows[-1] for line, aim in found if line is not None and line.rate < aim and not line.cell.request_rate]
    with AT_CEILINGS.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["row_id", "output_tokens_per_s"])
        for row in short_rows:
            cell = MeasuredCell(row, Store(folders[row.row_id], create=False), None)
            writer.writerow([row.row_id, f"{rate_at_ceilings(cell):.5g}"])


def _for_aim(aim: Mapping[str, str]) -> Line | None:
    """The fastest row of the aim's case and load; for latency limits, among rows in which 99% of the requests met them. None without
    one."""
    found = []
    for line in lines():
        cell, load = line.cell, aim["load"]
        lengths = f"{cell.isl}/{cell.osl}" if closed(line) else cell.workload
        precision = line.precision.removesuffix(IN_FP8)
        if (line.gpu, cell.gpus, cell.model, precision, lengths) != ("H200", 1, aim["model"], aim["precision"], aim["case"]):
            continue
        if load == "queued":
            fits = not cell.request_rate
        elif load.isdigit():
            fits = cell.batch == int(load)
        else:
            finished, good = line.mean("requests_per_s"), line.mean("goodput_requests_per_s")
            fits = bool(cell.request_rate and finished) and _limits(line)[0] == load and (good or 0) / (finished or 1) >= 0.99
        if fits:
            found.append(line)
    return max(found, key=lambda line: line.rate, default=None)


def against() -> str:
    """`compare --against published` of all rows of H200: how many figures of the same GPU are behind ours, and those that are ahead."""
    found = _fair(beside(row for line in lines() if line.gpu == "H200" for row in line.rows))
    body = []
    for name in ENGINES:
        for measured, said in ((False, "published"), (True, "measured here")):
            ratios = [one.ratio for one in found if _engine(one) == name and one.theirs.measured == measured]
            if ratios:
                ahead = sum(ratio > 1 for ratio in ratios)
                body.append([name, said, str(len(ratios)), str(ahead), f"{statistics.median(ratios):.2f}", f"{min(ratios):.2f}"])
    table = markdown(["engine", "figures", "with a counterpart:", "ours ahead:", "ours / theirs, median:", "least:"], body)
    behind = sorted((one for one in found if one.ratio <= 1), key=lambda one: one.ratio)
    if not behind:
        return table
    listed = markdown(
        ["case", "ours:", "theirs:", "ratio:", "of"],
        (
            [
                f"{one.ours.cell.model} {one.ours.cell.precision} {one.ours.cell.isl}/{one.ours.cell.osl}"
                + (f", tp {one.ours.cell.tp}" if one.ours.cell.tp > 1 else "")
                + (f", {one.theirs.at_once} at once" if one.theirs.at_once else ""),
                significant(one.ours_tokens_per_s),
                significant(one.theirs.output_tokens_per_s),
                f"{one.ratio:.2f}",
                one.theirs.source.replace(" (AIConfigurator)", "").replace("perf-overview ", ""),
            ]
            for one in behind
        ),
    )
    return f"{table}\n\nFigures ahead of ours:\n\n{listed}"


def ops() -> str:
    """`kernels --against published` by family, and the shapes at which another engine is faster."""
    run = OpRun.load(next(path for path in OPS if path.is_file()))
    families = [
        [one.family, f"{one.ahead} of {one.shapes}", str(one.ahead_alone), f"{one.geometric_ratio:.2f}"] for one in summaries(run.rows)
    ]
    behind = [
        [
            f"{one.shape.family}, {one.shape.dtype}: {one.shape.text}",
            significant(one.same_work_us),
            significant(one.ours_us),
            significant(one.alone_us),
            f"{significant(one.best[1])} {one.best[0]}",
            "-" if one.here_us is None else significant(one.here_us),
            f"{one.ratio:.2f}",
        ]
        for family in summaries(run.rows)
        for one in family.behind
    ]
    table = markdown(["family", "ours ahead:", "alone:", "theirs / ours, geometric mean:"], families)
    columns = ["shape", "ours us:", "all us:", "alone us:", "theirs us:", "torch, here us:", "theirs / ours:"]
    apart = any(one.between_us for one in run.rows)
    works = "each call beside ours of its work" if apart else "a record from before works were told apart: ours does all of the work"
    return f"{len(run.rows)} shapes, {works}.\n\n{table}\n\nBehind:\n\n{markdown(columns, behind)}"


def accuracy() -> str:
    """`sweep --accuracy` of one model on a GPU and on a CPU."""
    by_case: dict[tuple[str, str], dict[str, Mapping[str, float]]] = {}
    for device in ("cuda", "cpu"):
        for row in read_rows(RECORDED / "h200" / "accuracy" / device):
            by_case.setdefault((row.cell.precision, row.cell.kv_dtype), {})[device] = row.figures
    places = {"perplexity": ".3f", "perplexity_change": "+.2%", "kl_divergence": ".5f", "top1_agreement": ".1%"}
    names = ("perplexity", "change", "KL", "top-1")
    columns = ["precision", "KV cache", *(f"{text}{end}:" for name in names for text, end in ((name, ", GPU"), ("CPU", "")))]
    body = [
        [
            *case,
            *(format(both[device][name], places[name]) if name in both[device] else "-" for name in places for device in ("cuda", "cpu")),
        ]
        for case, both in sorted(by_case.items(), key=lambda item: OURS_FIRST.index(item[0][0]))
        if len(both) > 1
    ]
    return markdown(columns, body)


KERNELS: Mapping[str, Mapping[str, tuple[str, str]]] = {
    "GEMV: one row of a narrow product, or in int8": {"peak": ("peak_share", "gemv"), **_of_kernel("gemv")},
    "skinny GEMM, 1 to 128 rows, our kernels": {"peak": ("peak_share", "skinny"), **_of_kernel("skinny")},
    "other GEMMs, cuBLASLt": {"peak": ("peak_share", "gemm"), **_of_kernel("gemm")},
    "decode attention": _of_kernel("attention"),
    "decode attention with equal shares": {
        "bandwidth": ("attention", "even_bandwidth_share"),
        "stream": ("attention", "even_stream_tb_per_s"),
        "fixed": ("attention", "even_us"),
    },
    "attention of prompts": {"peak": ("peak_share", "attention"), **_of_kernel("attention")},
    "others": _of_kernel("rows"),
}
"""Of each kind of kernel, where the step model's files have what its time is made of (section, name)."""


def kernel_times() -> str:
    """What the step model makes a kernel's time of: the H200's constants, the H100's in brackets."""
    from trtllm_bench.analysis.step_constants import FOLDER, read_file

    h200, h100 = (read_file(FOLDER / f"{gpu}.toml") for gpu in ("h200", "h100"))

    def cell(place: tuple[str, str] | None) -> str:
        section, name = place or ("", "")
        here, there = (f"{gpu[section][name]['value']:.3g}" if name in gpu.get(section, {}) else "" for gpu in (h200, h100))
        return f"{here} ({there})" if there else here

    columns = ("bandwidth", "stream", "peak", "fixed", "pdl")
    return markdown(
        ["kernel", "share of the bandwidth:", "SMs take in, TB/s:", "share of the peak:", "fixed time, us:", "with PDL, us:"],
        ([kernel, *(cell(places.get(column)) for column in columns)] for kernel, places in KERNELS.items()),
    )


TABLES: dict[str, Callable[[], str]] = {
    "overview": overview,
    "few": few,
    "precisions": precisions,
    "queued": queued,
    "short": short_of_aims,
    "arrivals": arrivals,
    "two-gpus": several,
    "against": against,
    "accuracy": accuracy,
    "h100": h100,
    "ops": ops,
    "kernel-times": kernel_times,
}


def predictions() -> dict[str, Callable[[], str]]:
    """The tables of `python -m trtllm_bench.analysis.peers`, after writing prediction_errors.toml as its `--write` does. Takes minutes."""
    from trtllm_bench.analysis import model_errors, peers
    from trtllm_results.compare.published import load

    chosen, why = model_errors.coverage(load())
    points = list(model_errors.predicted(chosen))
    own = model_errors.own_errors(RECORDED) + model_errors.errors_left_out(RECORDED)
    model_errors.write_tables(own, points)
    left_out = ", ".join(f"{reason} ({count})" for reason, count in why.most_common())
    return {
        "own-errors": lambda: "\n".join(peers.own_table(own)),
        "intervals": lambda: "\n".join(peers.interval_table()),
        "cover": lambda: "\n".join(peers.cover_table(own)),
        "steps-h200": lambda: "\n".join(peers.step_table(own, "H200", False)),
        "steps-h200-quantized": lambda: "\n".join(peers.step_table(own, "H200", True)),
        "steps-h100": lambda: "\n".join(peers.step_table(own, "H100", False)),
        "constants": _constants,
        "factors": lambda: "\n".join(peers.factor_table(model_errors.factors(points))),
        "left-out": lambda: "\n".join(textwrap.wrap(f"{len(points)} rows; left out: {left_out}", 120, break_on_hyphens=False)),
        "ranks": lambda: _of_ranks(points),
    }


def _constants() -> str:
    """The step model's constants with a physical meaning, from both GPUs' files."""
    from trtllm_bench.analysis.step_constants import FOLDER, read_file

    h200, h100 = (read_file(FOLDER / f"{gpu}.toml") for gpu in ("h200", "h100"))
    sections = ("energy_pj", "power", "stream_tb_per_s", "decoding_cycles", "quantized_share", "quantized_pj")
    names = [(section, name) for section in sections for name in h200[section]]
    return markdown(
        ["constant", "unit", "H200:", "H100:"],
        (
            [
                f"`{section}.{name}`",
                h200[section][name]["unit"],
                *(f"{gpu[section][name]['value']:.3g}" if section in gpu else "-" for gpu in (h200, h100)),
            ]
            for section, name in names
        ),
    )


def _of_ranks(points: Sequence[PeerPoint]) -> str:
    errors: dict[tuple[str, str, str, int], list[float]] = {}
    for point in points:
        if point.theirs.tp > 1:
            case = point.engine, point.gpu, f"{point.theirs.model} {point.theirs.precision}", point.theirs.tp
            errors.setdefault(case, []).append(point.error)
    return markdown(
        ["engine", "GPU", "model", "tp:", "rows:", "median:", "from, to"],
        (
            [*case[:3], str(case[3]), str(len(found)), f"{statistics.median(found):+.0%}", f"{min(found):+.0%}, {max(found):+.0%}"]
            for case, found in sorted(errors.items())
        ),
    )


def written(text: str, tables: Mapping[str, Callable[[], str]] = TABLES) -> str:
    """A document with its tables made anew. Raises `KeyError` for a table that is not known."""
    return BLOCK.sub(lambda block: block[1] + tables[block[2]]() + block[3], text)


def pictures() -> None:
    """As `plot published` and `plot gpus` draw them, of the newest version of every case."""
    from trtllm_dashboards.plots import render

    folder = ROOT / "docs" / "pictures"
    h200 = {"H200": [row for line in lines() if line.gpu == "H200" and line.cell.gpus == 1 for row in line.rows]}
    for path in (*render("published", h200, folder, formats=["png"]), *render("gpus", {}, folder, formats=["png"])):
        print(f"drawn: {path.relative_to(ROOT)}")


def predict_recorded() -> None:
    """The rows of `recorded/predicted` anew, by the commands that they carry: they follow constants, intervals and data sheets."""
    commands = dict.fromkeys(row.command for row in read_rows(RECORDED / "predicted"))
    shutil.rmtree(RECORDED / "predicted")
    for command in commands:
        print(command)
        subprocess.run([sys.executable, "-m", "trtllm_bench", *shlex.split(command)[1:]], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for flag in ("--pictures", "--predictions", "--fit", "--ceilings"):
        parser.add_argument(flag, action="store_true")
    asked = parser.parse_args(arguments)
    if asked.ceilings:
        write_at_ceilings()
    tables = dict.fromkeys(DOCUMENTS, TABLES)
    if asked.fit:
        from trtllm_bench.analysis import fit

        fit.main(["--gpu", "h200", "--write"])
    if asked.predictions or asked.fit:
        tables |= dict.fromkeys(PREDICTION_DOCUMENTS, predictions())
    for name, made in tables.items():
        path = ROOT / name
        text = path.read_text(encoding="utf-8")
        if (new := written(text, made)) != text:
            path.write_text(new, encoding="utf-8")
            print(f"written: {name}")
    if asked.predictions or asked.fit:
        predict_recorded()
    if asked.pictures:
        pictures()


if __name__ == "__main__":
    main(sys.argv[1:])
