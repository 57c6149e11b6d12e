"""The table at a sweep's end: one line per cell, repeats as mean and spread."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from rich.console import Console

from trtllm_bench.measure.rows import ASKED
from trtllm_bench.spec.knobs import KnobField
from trtllm_bench.spec.measurement import all_knobs
from trtllm_dashboards.quality import print_quality
from trtllm_dashboards.scaling import print_scaling
from trtllm_dashboards.tables import Column, sentence, show
from trtllm_results.compare.quality import beside_speed, not_scored
from trtllm_results.cost import ADDED, COST, Price, cost_per_million, places, priced, short, short_unit
from trtllm_results.metrics.requests import slo_text
from trtllm_results.record.row import INTERVAL, Row

COLUMNS = (
    Column("precision"),
    Column("batch", kind="number", hoist=False),
    Column("rate", unit="req/s", kind="number"),
    Column("isl", "ISL", kind="number"),
    Column("osl", "OSL", kind="number"),
    Column("output_tokens_per_s", "output", unit="tok/s", kind="number"),
    Column("low", "from", unit="tok/s", kind="number", priority=1),
    Column("high", "to", unit="tok/s", kind="number", priority=1),
    Column("spread", unit="+-%", kind="number", places=1, priority=3),
    Column("goodput_requests_per_s", "goodput", unit="req/s", kind="number"),
    Column("ttft_p50_ms", "TTFT p50", unit="ms", kind="number", priority=1),
    Column("tpot_p50_ms", "TPOT p50", unit="ms", kind="number", priority=1),
    Column("e2e_p99_ms", "E2E p99", unit="ms", kind="number", priority=4),
    Column("mfu_percent", "MFU", unit="%", kind="number", places=1, priority=5),
    Column("mbu_percent", "MBU", unit="%", kind="number", places=1, priority=5),
    Column("power_mean_w", "power", unit="W", kind="number", priority=5),
    Column("perplexity", kind="number", places=3, priority=4),
    Column("task_percent", "task", unit="%", kind="number", places=0, priority=4),
    Column("status", kind="verdict"),
)


PER_GPU = Column("output_tokens_per_s_per_gpu", "per GPU", unit="tok/s", kind="number", priority=2)
"""Where the rows differ in how many GPUs they took."""
PRICED = (
    Column(COST, short(COST), unit=short_unit(COST), kind="number", places=places(COST)),
    Column("cost_low", "from", unit=short_unit(COST), kind="number", places=places(COST), priority=1),
    Column("cost_high", "to", unit=short_unit(COST), kind="number", places=places(COST), priority=1),
    *(Column(name, short(name), unit=short_unit(name), kind="number", places=places(name), priority=1) for name in ADDED if name != COST),
)
"""Where a price is given."""
ALWAYS = frozenset({"precision", "concurrency", "request_rate", "isl", "osl"})
"""Axes that have a column in any case."""


def summarise(rows: Iterable[Row], axes: Iterable[str] = (), price: Price | None = None) -> list[dict[str, Any]]:
    """One mapping per cell, in order of first appearance: means over `ok` repeats, the output rate's sample deviation in percent, and at a
    price what `priced` says of the means.

    `axes`: knobs that vary over the rows, which each mapping then names too.
    """
    varying = [one for one in all_knobs() if one.name in set(axes) - ALWAYS]
    by_cell: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        values = tuple(_asked(row, one) for one in varying)
        by_cell.setdefault((*row.cell.align, row.cell.target, row.cell.engine_fingerprint, *values), []).append(row)
    return [{**{one.name: _asked(repeats[0], one) for one in varying}, **_line(repeats, price)} for repeats in by_cell.values()]


def _asked(row: Row, one: KnobField) -> Any:
    """What a row says of a knob: in a column, in its settings, or beside them. None where the knob is not set."""
    name = {"dataset": "workload"}.get(one.name, one.name)
    places = (vars(row.cell), row.cell.settings, row.extra.get(ASKED, {}))
    if isinstance(limits := row.cell.settings.get(one.setting), Mapping):
        return slo_text(limits)
    value = next((place[key] for place, key in zip(places, (name, one.setting, one.name), strict=True) if key in place), one.default)
    return value if value is None or isinstance(value, int) else f"{value:g}" if isinstance(value, float) else str(value)


def _line(repeats: Sequence[Row], price: Price | None) -> dict[str, Any]:
    cell = repeats[0].cell
    good = [row for row in repeats if row.status == "ok"]
    bad = [row for row in repeats if row.status != "ok"]
    line: dict[str, Any] = {"precision": cell.precision, "batch": cell.batch, "isl": cell.isl, "osl": cell.osl}
    line["rate"] = cell.request_rate or None
    line["status"] = bad[0].status if bad else "suspect" if any(row.warnings for row in good) else "ok"
    for column in (*COLUMNS, PER_GPU):
        values = [row.figures[column.key] for row in good if column.key in row.figures]
        if values:
            line[column.key] = statistics.fmean(values)
    bounds: dict[str, float] = next((row.extra[INTERVAL] for row in good if INTERVAL in row.extra), {})
    line |= {name: bounds[name] for name in ("low", "high") if name in bounds}
    for name in ("mfu", "mbu"):
        shares = [row.figures[name] for row in good if name in row.figures]
        if shares:
            line[f"{name}_percent"] = 100 * statistics.fmean(shares)
    answered = [row.figures["task_accuracy"] for row in good if "task_accuracy" in row.figures]
    if answered:
        line["task_percent"] = 100 * statistics.fmean(answered)
    rates = [row.figures["output_tokens_per_s"] for row in good if "output_tokens_per_s" in row.figures]
    if len(rates) > 1:
        line["spread"] = 100 * statistics.stdev(rates) / statistics.fmean(rates)
    return line | (_costs(good, bounds, price) if good and price else {})


def _costs(good: Sequence[Row], bounds: Mapping[str, float], price: Price) -> dict[str, float]:
    """Of the means over the repeats; cost is lowest where throughput is highest."""
    each = {
        name: [row.figures[name] for row in good if name in row.figures] for name in ("output_tokens_per_s", "energy_per_output_token_j")
    }
    mean = priced(replace(good[0], figures={name: statistics.fmean(values) for name, values in each.items() if values}), price).figures
    hour, gpus = price.of(good[0].environment.gpu), good[0].cell.gpus
    ends = {"cost_low": bounds.get("high", 0.0), "cost_high": bounds.get("low", 0.0)}
    found = {name: cost_per_million(hour, gpus, rate) for name, rate in ends.items() if hour and rate > 0}
    return found | {name: mean[name] for name in ADDED if name in mean}


def _column(one: KnobField) -> Column:
    title = one.name.replace("_", " ")
    return Column(one.name, title, kind="number") if one.type is int else Column(one.name, title, whole=True)


def _short(lines: Sequence[Mapping[str, Any]], name: str) -> dict[Any, str]:
    """Values of an axis by what a column shows: of paths, as much of their ends as tells them apart."""
    values = list(dict.fromkeys(line[name] for line in lines if line[name] is not None))
    parts = [str(value).split("/") for value in values]
    for length in range(1, max(map(len, parts), default=0) + 1):
        ends = ["/".join(one[-length:]) for one in parts]
        if len(set(ends)) == len(values):
            return dict(zip(values, ends, strict=True))
    return {value: str(value) for value in values}


def print_table(rows: Sequence[Row], console: Console, axes: Iterable[str] = (), price: Price | None = None) -> None:
    """The sweep's result, with a column for each of `axes` and what it costs at a `price`, and below it why cells failed."""
    lines = summarise(rows, axes, price)
    extra = [_column(one) for one in all_knobs() if one.name in set(axes) - ALWAYS]
    extra = [column for column in extra if any(line[column.key] is not None for line in lines)]
    for name in (column.key for column in extra if column.kind != "number"):
        short = _short(lines, name)
        lines = [line | {name: short.get(line[name])} for line in lines]
    columns = (*COLUMNS[:-1], *PRICED, COLUMNS[-1])
    used = [column for column in columns if column.kind != "number" or any(line.get(column.key) is not None for line in lines)]
    used[1:1] = extra
    if len({row.cell.gpus for row in rows}) > 1:
        used.insert(next(i for i, column in enumerate(used) if column.kind == "verdict"), PER_GPU)
    device = rows[0].environment.gpu or rows[0].environment.cpu or "this machine"
    models, targets = (list(dict.fromkeys(getattr(row.cell, name) for row in rows)) for name in ("model", "target"))
    show(lines, used, title=f"{', '.join(models)} on {device}, target {', '.join(targets)}", console=console)
    for text in price.notes(rows) if price else []:
        sentence(console, text, "dim")
    if any(row.repeat for row in rows):
        console.print(
            "figures are arithmetic means over a cell's repeats, +-% the sample standard deviation of the output rate", style="dim"
        )
    reasons: dict[str, list[str]] = {}
    for row in rows:
        unscored = [f"no accuracy: {why}"] if (why := not_scored(row)) else []
        for reason in ([row.reason] if row.status != "ok" else []) + list(row.warnings) + unscored:
            where = row.label.removeprefix(f"{row.cell.model} ")
            reasons.setdefault(reason, [])
            if where not in reasons[reason]:
                reasons[reason].append(where)
    for reason, cells in reasons.items():
        more = f" and {len(cells) - 2} more" if len(cells) > 2 else ""
        sentence(console, f"{', '.join(cells[:2])}{more}: {reason}", "yellow")
    if scored := beside_speed(rows):
        console.print()
        print_quality(scored, console)
    if len({row.cell.gpus for row in rows if row.status == "ok"}) > 1:
        console.print()
        print_scaling(rows, console)
