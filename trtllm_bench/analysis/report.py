"""Explanations in the terminal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

from rich.console import Console

from trtllm_bench.analysis.advice import findings
from trtllm_bench.analysis.at_ceilings import rate_at_ceilings
from trtllm_bench.analysis.cells import MeasuredCell, constants_of, hardware_of, layout_of
from trtllm_bench.analysis.check import Checked, check, median_error
from trtllm_bench.analysis.explain import breakdown, difference
from trtllm_bench.analysis.slowest import SlowRequest, slow_request
from trtllm_bench.analysis.step_model import hosts_of
from trtllm_bench.build_progress import build_progress
from trtllm_bench.errors import BenchError
from trtllm_bench.profiling.record import CellProfile
from trtllm_dashboards.tables import Column, sentence, show
from trtllm_results.store.selection import keep, path_and_filters
from trtllm_results.store.table import read_rows

LEAST = 0.005
"""Parts below this share are summed up in one line."""
KERNELS = 3


def cell_facts(cell: MeasuredCell, percentile: float) -> dict[str, Any]:
    """What `report_cell` says, as data. Times in the unit of their name."""
    spent = breakdown(cell)
    facts: dict[str, Any] = {
        "cell": cell.label,
        "key": cell.row.key,
        "repeat": cell.row.repeat,
        "device": cell.row.environment.device,
        "output_tokens_per_s": cell.row.figures.get("output_tokens_per_s"),
        "output_tokens_per_s_at_ceilings": _at_ceilings(cell),
        "us_per_output_token": spent.per_token_us,
        "source": spent.source,
        "parts_us_per_output_token": dict(sorted(spent.parts.items(), key=lambda part: -abs(part[1]))),
        "note": "; ".join(_notes(cell)),
        "findings": [asdict(one) for one in findings(cell, spent)],
    }
    try:
        return facts | {"request": asdict(slow_request(cell, percentile))}
    except BenchError as error:
        return facts | {"request": None, "note": "; ".join(part for part in (facts["note"], str(error)) if part)}


def difference_facts(a: MeasuredCell, b: MeasuredCell) -> dict[str, Any]:
    """What `report_difference` says, as data."""
    change = difference(breakdown(a), breakdown(b))
    parts = [{"part": name, "a": x, "b": y} for name, x, y in change.rows]
    return {"a": a.label, "b": b.label, "us_per_output_token": dict(zip("ab", change.total, strict=True)), "parts": parts}


def all_facts(results: str) -> list[dict[str, Any]]:
    """What `report_all` says, as data: output tokens/s."""
    return [_fact(one) for one in _checked(results)]


def _fact(one: Checked) -> dict[str, Any]:
    revision = one.row.environment.git_revision[:7]
    return {
        "cell": one.row.label,
        "key": one.row.key,
        "revision": revision,
        "measured": one.measured,
        "predicted": one.predicted,
        "error": one.error,
    }


def report_cell(cell: MeasuredCell, percentile: float, console: Console) -> None:
    spent = breakdown(cell)
    rate = cell.row.figures.get("output_tokens_per_s", 0.0)
    which = f" in the last of {cell.repeats} runs" if cell.repeats > 1 else ""
    sentence(console, f"{cell.label} on {cell.row.environment.device}: {rate:,.1f} output tok/s{which}", "bold")
    if (most := _at_ceilings(cell)) is not None:
        sentence(console, f"{rate / most:.0%} of the {most:,.1f} output tok/s that it would make if every op ran at its ceiling")
    source = "its profile" if spent.source == "profile" else "its step log and the step model"
    console.print(f"{spent.per_token_us:,.2f} us an output token, by {source}:")
    for note in _notes(cell):
        sentence(console, f"note: {note}", "yellow")
    parts = sorted(spent.parts.items(), key=lambda part: -abs(part[1]))
    small = [us for name, us in parts if abs(spent.share(name)) < LEAST]
    for name, us in parts:
        if abs(spent.share(name)) >= LEAST:
            console.print(f"  {_short(name):<28}{us:>12,.2f} us {spent.share(name):>7.1%}")
    if small:
        console.print(f"  {f'{len(small)} smaller parts':<28}{sum(small):>12,.2f} us {sum(small) / spent.per_token_us:>7.1%}")
    console.print()
    for one in findings(cell, spent):
        gain = "" if one.gain is None else f" (predicted {one.gain:+.0%} tokens/s)"
        text = one.limit + ("; " if one.limit and one.change else "") + one.change + gain
        sentence(console, f"- {text[:1].upper()}{text[1:]}.")
    try:
        slow = slow_request(cell, percentile)
    except BenchError as error:
        sentence(console, f"note: {error}", "yellow")
        return
    console.print()
    _report_request(slow, cell, console)


def _notes(cell: MeasuredCell) -> list[str]:
    """What the step model takes from another GPU, or assumes."""
    hosts = hosts_of(layout_of(cell.row.cell), hardware_of(cell.row.environment)) if cell.row.environment.gpu else None
    return [note for note in (constants_of(cell.row).note, "" if hosts is None else hosts.note) if note]


def _at_ceilings(cell: MeasuredCell) -> float | None:
    """Output tokens/s at the ceilings; None for a cell without a step log, or whose device has no known ceilings."""
    try:
        return rate_at_ceilings(cell)
    except BenchError:
        return None


def _report_request(slow: SlowRequest, cell: MeasuredCell, console: Console) -> None:
    preempted = f", preempted {slow.preemptions} times" if slow.preemptions else ""
    sentence(
        console,
        f"p{slow.percentile:g} by end-to-end time: request {slow.index}, {slow.input_tokens} in, {slow.output_tokens} out, "
        f"{slow.e2e_s * 1e3:,.1f} ms{preempted}",
        "bold",
    )
    for stage in slow.stages:
        where = "no step" if stage.first is None else f"steps {stage.first}-{stage.last}"
        held = "" if stage.first is None else f", {stage.decode_tokens:,.0f} decode and {stage.context_tokens:,.0f} context tokens per step"
        sentence(console, f"  {stage.name:<8}{stage.seconds * 1e3:>10,.1f} ms  {where}{held}")
    if cell.profile is None:
        return
    profile = CellProfile.load(cell.profile)
    ran = ", ".join(f"{_short(row.role)} {row.share:.0%}" for row in profile.kernels[:KERNELS])
    sentence(console, f"  steps {profile.steps[0].number}-{profile.steps[-1].number} were profiled: {ran}; {cell.profile}")


def report_difference(a: MeasuredCell, b: MeasuredCell, console: Console) -> None:
    change = difference(breakdown(a), breakdown(b))
    before, after = change.total
    sentence(console, f"A {a.label}: {before:,.2f} us an output token", "bold")
    sentence(console, f"B {b.label}: {after:,.2f} us an output token ({after / before - 1:+.1%})", "bold")
    rows = [{"part": _short(name), "a": x, "b": y, "change": y - x, "share": (y - x) / before} for name, x, y in change.rows]
    rows.append({"part": "whole", "a": before, "b": after, "change": after - before, "share": after / before - 1})
    columns = [Column("part"), *(Column(name, name.upper(), unit="us", kind="number", places=2) for name in ("a", "b"))]
    columns += [Column("change", "B - A", unit="us", kind="number", places=2), Column("share", "of A", kind="percent")]
    show(rows, columns, console=console)


def report_all(results: str, console: Console) -> None:
    """Every cell of a store, or of its part (`RESULTS@precision=fp8`), measured and predicted."""
    with build_progress() as report:
        checked = _checked(results, partial(report, "cells"))
    numbers = [Column(name, unit="tok/s", kind="number") for name in ("measured", "predicted")]
    columns = [Column("cell", whole=True), Column("revision"), *numbers, Column("error", "predicted - measured", kind="percent")]
    show([_fact(one) for one in checked], columns, console=console)
    console.print(f"median error {median_error(checked):.1%} over {len(checked)} cells")


def _checked(results: str, progress: Callable[[int, int], None] = lambda done, total: None) -> list[Checked]:
    """The largest error first."""
    path, filters = path_and_filters(results)
    checked = check(keep(read_rows(path), filters), progress=progress)
    if not checked:
        raise BenchError(f"{results}: the memory of these GPUs is not known, so what fits them cannot be predicted")
    return sorted(checked, key=lambda one: -abs(one.error))


def _short(name: str) -> str:
    return name if " " in name else name.rpartition(".")[2]
