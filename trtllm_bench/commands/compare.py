"""`compare`: result sets side by side, or beside published figures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trtllm_bench.commands._price import GpuPrice

if TYPE_CHECKING:
    from trtllm_results.compare.align import Comparison
    from trtllm_results.cost import Price
    from trtllm_results.record.row import Row
    from trtllm_results.store.selection import ResultSet

Strings = list[str] | None
AIC = "AIC"
ENDINGS = {".md": "markdown", ".csv": "csv", ".json": "json"}
"""Of `--out`, and the format that each asks for."""
HEADER = 12
"""Longer names of result sets head no column: they would widen it beyond its numbers."""


def command(
    results: Annotated[
        list[str], typer.Argument(metavar="RESULTS...", help="Store folders or tables, PATH or NAME=PATH; the first is the base.")
    ],
    against: Annotated[str, typer.Option("--against", help="published: beside TensorRT-LLM's and other published figures.")] = "",
    by: Annotated[str, typer.Option("--by", help="Split one store by this field (target, precision, ...) and compare the parts.")] = "",
    figure: Annotated[Strings, typer.Option("--figure", help="Figure to compare; repeatable (default output_tokens_per_s).")] = None,
    where: Annotated[Strings, typer.Option("--where", help="Filter such as precision=fp8 or batch>=64; repeatable.")] = None,
    ignore: Annotated[Strings, typer.Option("--ignore", help="Field that may differ between matched cells; repeatable.")] = None,
    sort: Annotated[str, typer.Option("--sort", help="Field or column to sort by; prefix - for descending.")] = "",
    across_gpus: Annotated[bool, typer.Option("--across-gpus", help="Allow results from different GPUs.")] = False,
    accuracy: Annotated[bool, typer.Option("--accuracy", help="Show quality beside speed, of sweeps with --accuracy.")] = False,
    pareto: Annotated[
        bool, typer.Option("--pareto", help="Show each workload's front of throughput per GPU against per-user speed.")
    ] = False,
    gpu_price: GpuPrice = None,
    form: Annotated[
        str | None, typer.Option("--format", help="table, markdown, csv or json (default: as --out ends: .md, .csv, .json; else table).")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Write there instead of the terminal.")] = None,
) -> None:
    """Compare result sets by cell, with change, interval and verdict.

    Examples:
      trtllm-bench compare runs/a runs/b
      trtllm-bench compare runs/a --against published
    """
    from trtllm_results.cost import ADDED, Price, check_priced, priced
    from trtllm_results.errors import ResultsError
    from trtllm_results.store import selection

    of_ending = ENDINGS.get(out.suffix.lower(), "") if out is not None else ""
    output = form or of_ending or "table"
    if output not in ("table", "markdown", "csv", "json"):
        raise ResultsError(f"--format {output}: choose table, markdown, csv or json")
    if of_ending not in ("", output):
        raise ResultsError(f"--format {output} and --out {out} name different formats; leave --format out")
    if against not in ("", "published"):
        raise ResultsError(f"--against {against}: only 'published' is known; name a second store to compare with it")
    tables = [flag for flag, asked in (("--against", against), ("--accuracy", accuracy), ("--pareto", pareto)) if asked]
    if len(tables) > 1:
        raise ResultsError(f"{' and '.join(tables)} are tables of their own; give one of them")
    of_sets = (("--by", by), ("--figure", figure), ("--ignore", ignore), ("--across-gpus", across_gpus), ("--sort", sort and not against))
    for flag, asked in of_sets if tables else ():
        if asked:
            raise ResultsError(f"{flag} is for comparing result sets, and {tables[0]} is another table; leave one of them out")
    if gpu_price and (against or accuracy):
        raise ResultsError(f"{tables[0]} shows no cost, so --gpu-price-per-hour changes nothing there; leave one of them out")
    sets = [selection.load_set(spec) for spec in results]
    sets = [selection.ResultSet(one.name, tuple(selection.keep(one.rows, where or []))) for one in sets]
    if not any(one.rows for one in sets):
        raise ResultsError(selection.none_passes(where or []))
    figures, notes = figure or [], list[str]()
    price = Price.parse(gpu_price) if gpu_price else None
    check_priced(figures, price)
    if gpu_price or set(figures) & set(ADDED):
        sets = [selection.ResultSet(one.name, tuple(priced(row, price) for row in one.rows)) for one in sets]
        notes = price.notes(row for one in sets for row in one.rows) if price else []
    if gpu_price and not figures:
        from trtllm_results.metrics.registry import HEADLINE

        present = {name for one in sets for row in one.rows for name in row.figures}
        figures = [HEADLINE, *(name for name in ADDED if name in present)]
    if against == "published":
        _published([row for one in sets for row in one.rows], sort, output, out)
    elif accuracy:
        _accuracy(sets, output, out)
    elif pareto:
        _pareto(sets, output, out, price)
    else:
        _compare(sets, by, figures, ignore or [], across_gpus, sort, output, out)
    if output == "table" and out is None:
        for note in notes:
            typer.echo(note)


def _compare(
    sets: list[ResultSet], by: str, figures: list[str], ignore: list[str], across_gpus: bool, sort: str, output: str, out: Path | None
) -> None:
    from trtllm_results.compare import report as compare_text
    from trtllm_results.compare.align import compare
    from trtllm_results.errors import ResultsError
    from trtllm_results.metrics.registry import HEADLINE
    from trtllm_results.record.cell import ALIGN_FIELDS
    from trtllm_results.store import selection
    from trtllm_results.versions import varied_in

    if by:
        if len(sets) != 1:
            raise ResultsError("--by splits one store; name only one")
        sets = selection.split_by(sets[0].rows, by)
        lined_up = (*ALIGN_FIELDS, *varied_in(row for one in sets for row in one.rows), "arm")
        ignore = [*ignore, *([by] if by in lined_up else []), *(["kv_dtype"] if by == "precision" else [])]
    comparison = compare(sets, figures or [HEADLINE], ignore, across_gpus or by == "gpu")
    if output == "table" and out is None:
        _print(comparison, sort)
        return
    rows = _sorted(compare_text.records(comparison), sort)
    if output == "json":
        text = compare_text.to_json(comparison, rows)
    elif output == "csv":
        text = compare_text.to_csv(rows)
    else:
        text = compare_text.to_markdown(comparison, rows)
    _emit(text, out)


def _print(comparison: Comparison, sort: str) -> None:
    from trtllm_bench.commands._verdict_table import show_verdicts
    from trtllm_dashboards.tables import Column, plain_console, sentence
    from trtllm_results.compare import report as compare_text
    from trtllm_results.metrics.registry import brief, common_words, title

    console = plain_console()
    rows = _sorted(compare_text.records(comparison), sort)
    base, *others = comparison.sets
    shared, labels = common_words([one["label"] for one in rows])
    for one, label in zip(rows, labels, strict=True):
        one |= {"label": label, "figure": title(one["figure"])}
        one["interval"] = compare_text.interval_text(one["low"], one["high"])
        one["repeats"] = f"{one['base_repeats']}/{one['other_repeats']}"
        one |= {name: brief(one[name]) for name in ("base_value", "other_value")}  # as pages and figures write them
    columns = [
        Column("label", "cell"),
        Column("figure"),
        Column("unit"),
        *([Column("other", "against")] if len(others) > 1 else []),
        Column("base_value", base if len(base) <= HEADER else "base", kind="number"),
        Column("other_value", others[0] if len(others) == 1 and len(others[0]) <= HEADER else "other", kind="number"),
        Column("change", kind="percent"),
        Column("interval", "95% interval"),
        Column("repeats", priority=2),
        Column("verdict", kind="verdict"),
    ]
    heading = f"base {base} against {', '.join(others)}; {compare_text.MEANS}" + (f": {shared}" if shared else "")
    show_verdicts(rows, columns, ("label", "figure", *(["other"] if len(others) > 1 else [])), heading, console)
    for line in compare_text.explanations(comparison):
        sentence(console, line, "dim")
    for label, why in comparison.left_out:
        sentence(console, f"left out: {label} ({why})", "dim")
    for note in [*comparison.notes, *dict.fromkeys(text for change in comparison.changes for text in change.warnings)]:
        sentence(console, f"note: {note}", "yellow")


def _published(rows: list[Row], sort: str, output: str, out: Path | None) -> None:
    import json

    from trtllm_dashboards.tables import Column, plain_console, sentence, show
    from trtllm_results.compare import report as compare_text
    from trtllm_results.compare.published import beside

    comparisons = beside(rows)
    flat_in_order = compare_text.beside_records(comparisons)
    flat = _sorted(flat_in_order, sort)
    if output != "table" or out is not None:
        texts = {"json": lambda: json.dumps(flat, indent=1), "csv": lambda: compare_text.to_csv(flat)}
        place = {id(one): comparison for one, comparison in zip(flat_in_order, comparisons, strict=True)}
        _emit(texts.get(output, lambda: compare_text.beside_markdown([place[id(one)] for one in flat]))(), out)
        return
    console = plain_console()
    marks, meanings = compare_text.lettered(comparisons)
    marked = {id(one): mark for one, mark in zip(flat_in_order, marks, strict=True)}
    several_targets = len({one["target"] for one in flat}) > 1
    for one in flat:
        one["shape"] = f"{one['precision']} {one['isl']}/{one['osl']} b{one['batch']}"
        one["gpu"] += f", {one['target']}" * several_targets
        one["source"] = f"{_short_source(one['source'])}, {one['their_gpu']}"
        one["mark"] = marked[id(one)]
    columns = [
        Column("model", whole=True),
        Column("shape", "cell", whole=True),
        Column("tp", "TP", priority=2),
        Column("gpu", "our GPU"),
        Column("ours", unit="tok/s", kind="number", places=0, priority=1),
        Column("source", hoist=False, whole=True),
        Column("theirs", unit="tok/s", kind="number", places=0, priority=1),
        Column("ratio", kind="number", places=2),
        Column("mark", "note", hoist=False),
    ]
    sentence(console, "ours beside published figures; ours is an arithmetic mean over repeats, ratio is ours / theirs", "bold")
    together = [flat] if sort else [[one for one in flat if one["model"] == model] for model in dict.fromkeys(one["model"] for one in flat)]
    for group in together:  # a model's apart, so that what names a row has room
        console.print()
        show(group, columns, console=console)
    console.print()
    if any(AIC in one["source"] for one in flat):
        sentence(console, f"{AIC}: of AIConfigurator's points, which do not all name a version", "dim")
    for letter, meaning in meanings.items():
        sentence(console, f"{letter}  {meaning}", "dim")
    for text in dict.fromkeys(f"here, {one['model']} {one['shape']}: {one['here']}" for one in flat):
        sentence(console, text, "dim")


def _short_source(source: str) -> str:
    """As a narrow table has room for it."""
    for long, short in (("TensorRT-LLM", "TRT-LLM"), (" perf-overview", ""), (" of unknown version", ""), ("AIConfigurator", AIC)):
        source = source.replace(long, short)
    return source


def _accuracy(sets: list[ResultSet], output: str, out: Path | None) -> None:
    import json

    from trtllm_dashboards.quality import print_quality, quality_markdown
    from trtllm_dashboards.tables import plain_console, sentence
    from trtllm_results.compare.quality import beside_speed, why_not_scored
    from trtllm_results.compare.report import to_csv
    from trtllm_results.errors import ResultsError

    rows = [row for one in sets for row in one.rows]
    lines, unscored = beside_speed(rows), why_not_scored(rows)
    if not lines:
        reason = next(iter(unscored), "")
        raise ResultsError(f"no result carries accuracy{reason and f': {reason}'}; measure it: trtllm-bench sweep --accuracy text.txt")
    if output == "table" and out is None:
        console = plain_console()
        print_quality(lines, console)
        for reason, labels in unscored.items():
            more = f" and {len(labels) - 2} more" if len(labels) > 2 else ""
            sentence(console, f"{', '.join(labels[:2])}{more}: no accuracy: {reason}", "yellow")
        return
    flat = [line.record() for line in lines]
    texts = {"json": lambda: json.dumps(flat, indent=1), "csv": lambda: to_csv(flat)}
    _emit(texts.get(output, lambda: quality_markdown(lines))(), out)


def _pareto(sets: list[ResultSet], output: str, out: Path | None, price: Price | None) -> None:
    import json

    from trtllm_dashboards.points import short_device
    from trtllm_dashboards.tables import Column, plain_console, sentence, show, to_markdown
    from trtllm_results.compare.align import fronts
    from trtllm_results.compare.report import to_csv
    from trtllm_results.cost import ADDED, places, priced, short, short_unit
    from trtllm_results.errors import ResultsError

    per_user, per_gpu = "output_tokens_per_s_per_user", "output_tokens_per_s_per_gpu"
    more = ADDED if price else ()
    flat = [
        {"set": one.name, "workload": workload, "cell": row.label, "batch": row.cell.batch, "repeats": repeats}
        | {"device": short_device(row.environment.device), "target": row.cell.target}
        | {name: row.figures.get(name) for name in (per_user, per_gpu, *more)}
        | {"implausible": "" if row.implausible is None else row.implausible.text}
        for one in sets
        for workload, mean, repeats in fronts(one.rows)
        for row in [priced(mean, price)]
    ]
    if not flat:
        raise ResultsError(f"no result carries both {per_user} and {per_gpu}; measure with token times")
    columns = [
        Column("set", priority=3),
        Column("cell", hoist=False, whole=True),
        Column("device", priority=2),
        *[Column("target", priority=2)] * (len({line["target"] for line in flat}) > 1),
        Column("repeats", "rep", kind="number", priority=2),
        Column(per_user, "per user", unit="tok/s/user", kind="number"),
        Column(per_gpu, "per GPU", unit="tok/s/GPU", kind="number"),
        *(Column(name, short(name), unit=short_unit(name), kind="number", places=places(name), priority=1) for name in more),
    ]
    if output != "table" or out is not None:
        texts = {"json": lambda: json.dumps(flat, indent=1), "csv": lambda: to_csv(flat)}
        _emit(texts.get(output, lambda: to_markdown(flat, columns))(), out)
        return
    console = plain_console()
    for workload in dict.fromkeys(line["workload"] for line in flat):
        words = workload.split()
        lines = [line for line in flat if line["workload"] == workload]
        lines = [line | {"cell": " ".join(word for word in line["cell"].split() if word not in words)} for line in lines]
        show(lines, columns, title=f"{workload}, Pareto front", console=console)
        console.print()
    for text in dict.fromkeys(f"{line['cell']}: {line['implausible']}" for line in flat if line["implausible"]):
        sentence(console, text, "yellow")
    sentence(console, "of each set and workload the cells that no other one beats in both; arithmetic means over repeats", "dim")


def _sorted(rows: list[dict[str, Any]], sort: str) -> list[dict[str, Any]]:
    from trtllm_results.errors import ResultsError

    name = sort.lstrip("-")
    if not name or not rows:
        return rows
    if name not in rows[0]:
        raise ResultsError(f"--sort {name}: no such column; choose from {', '.join(rows[0])}")
    return sorted(rows, key=lambda one: (one[name] is None, one[name]), reverse=sort.startswith("-"))


def _emit(text: str, out: Path | None) -> None:
    from trtllm_results.store.files import write_text

    if out is None:
        typer.echo(text.rstrip("\n"))
        return
    write_text(out, text if text.endswith("\n") else text + "\n")
    typer.echo(f"written: {out}")
