"""`results`: look into, query, export, push, merge, import and clean result stores."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trtllm_bench.commands._price import GpuPrice

if TYPE_CHECKING:
    from trtllm_results.cost import Price
    from trtllm_results.record.row import Row

HELP = """Look into, query, export, push, merge, import and clean stores of results.

Examples:
  trtllm-bench results ls runs/a
  trtllm-bench results export runs/a a.csv
"""
app = typer.Typer(help=HELP, no_args_is_help=True, add_completion=False)
Strings = list[str] | None
AsJson = Annotated[bool, typer.Option("--json", help="One JSON list of rows, as results.json holds them.")]
Where = Annotated[Strings, typer.Option("--where", help="Filter such as precision=fp8 or status=ok; repeatable.")]


@app.command("ls")
def ls(
    store: Annotated[list[str], typer.Argument(help="Store folders or tables.")],
    where: Where = None,
    figure: Annotated[Strings, typer.Option("--figure", help="Figure to show; repeatable.")] = None,
    as_json: AsJson = False,
    gpu_price: GpuPrice = None,
) -> None:
    """List the rows of stores, one line each.

    Examples:
      trtllm-bench results ls runs/a
      trtllm-bench results ls runs/a runs/b --where precision=fp8
    """
    from trtllm_dashboards.tables import Column, plain_console, sentence, show
    from trtllm_results.cost import ADDED, Price, check_priced, places, priced, short, short_unit
    from trtllm_results.metrics.registry import METRICS, common_words, title
    from trtllm_results.store import selection
    from trtllm_results.store.table import stores_deeper

    price = Price.parse(gpu_price) if gpu_price else None
    check_priced(figure or [], price)
    if as_json:
        sets = [selection.load_set(spec) for spec in store]
        kept = [(one.name, selection.keep(one.rows, where or [])) for one in sets]
        _echo_json([{"store": name, **flat} for name, rows in kept for flat in _flats(_priced(rows, price))])
        return
    figures = figure or ["output_tokens_per_s", *(ADDED if price else ("ttft_p50_ms", "tpot_p50_ms"))]
    lines, all_rows = [], []
    for spec in store:
        one = selection.load_set(spec)
        for stored in selection.keep(one.rows, where or []):
            row = priced(stored, price)
            all_rows.append(row)
            line = {"store": one.name, "key": row.key[:8], "cell": row.label, "repeat": row.repeat, "status": row.status}
            lines.append(line | {name: selection.field_of(row, name) for name in figures} | {"gpu": row.environment.device})
    if not lines:
        typer.echo("no rows")
        return
    shared, labels = common_words([str(line["cell"]) for line in lines])
    lines = [line | {"cell": label} for line, label in zip(lines, labels, strict=True)]
    columns = [
        Column("store", priority=3),
        Column("key", hoist=False),
        Column("cell", hoist=False, whole=True),
        Column("repeat", "rep", kind="number"),
    ]
    columns += [Column("status", kind="verdict"), Column("gpu", "device", priority=2)]
    columns += [
        Column(name, short(name), unit=short_unit(name), kind="number", places=places(name), priority=1)
        if name in ADDED
        else Column(name, title(name), unit=METRICS[name].unit if name in METRICS else "", kind="number", priority=1)
        for name in figures
    ]
    console = plain_console()
    show(lines, columns, title=shared, console=console)
    for text in dict.fromkeys(f"{row.key[:8]}, repeat {row.repeat}: {doubt.text}" for row in all_rows if (doubt := row.implausible)):
        sentence(console, text, "yellow")
    for why, count in Counter(why for row in all_rows if (why := row.not_judged)).items():
        sentence(console, f"{count} of {len(all_rows)} rows not held against what their GPUs can do: {why}")
    for note in price.notes(all_rows) if price else []:
        typer.echo(note)
    for folder in (Path(spec) for spec in store if Path(spec).is_dir()):
        if deeper := stores_deeper(folder):
            several = f"{len(deeper)} stores that lie deeper, such as" if len(deeper) > 1 else "a store that lies deeper,"
            sentence(console, f"not read: {several} {deeper[0]}; name the folder above {'them' if len(deeper) > 1 else 'it'}")


@app.command("show")
def show_row(
    store: Annotated[str, typer.Argument(help="Store folder or table.")],
    key: Annotated[str, typer.Argument(help="Start of a cell key, as ls prints it (default: every cell).")] = "",
    definitions: Annotated[
        str, typer.Option("--definitions", help="Latencies as another tool defines them: vllm, aiperf, nvidia, guidellm, or all.")
    ] = "",
    as_json: AsJson = False,
    gpu_price: GpuPrice = None,
) -> None:
    """Everything about the rows of one cell, or of all: settings, figures with their units, environment, command.

    Examples:
      trtllm-bench results show runs/a
      trtllm-bench results show runs/a 3f2a --definitions vllm
    """
    from trtllm_results.cost import Price, priced
    from trtllm_results.errors import ResultsError
    from trtllm_results.metrics.registry import METRICS, brief
    from trtllm_results.store import selection

    price = Price.parse(gpu_price) if gpu_price else None
    rows = [row for row in selection.load_set(store).rows if row.key.startswith(key)]
    if not rows:
        raise ResultsError(f"no cell of {store} has a key that starts with '{key}'; results ls lists them" if key else f"{store} is empty")
    if definitions and (as_json or gpu_price):
        idle = "--json" if as_json else "--gpu-price-per-hour"
        raise ResultsError(f"--definitions prints a table of its own, which knows no {idle}; leave one of them out")
    if as_json:
        _echo_json(_flats(_priced(rows, price)))
        return
    if definitions:
        _by_definitions(Path(store), rows, definitions)
        return
    rows = [priced(row, price) for row in rows]
    for row in rows:
        typer.echo(f"{row.label}  repeat {row.repeat}  {row.status}{': ' + row.reason if row.reason else ''}")
        typer.echo(f"  key {row.key}  started {row.started_at}")
        doubt = row.implausible
        unknown = f"not held against what its GPUs can do: {row.not_judged}" if row.not_judged else ""
        for text in dict.fromkeys([*row.warnings, *([doubt.text] if doubt else []), *([unknown] if unknown else [])]):
            typer.echo(f"  note: {text}")
        for name in [name for name in METRICS if name in row.figures] + [name for name in row.figures if name not in METRICS]:
            typer.echo(f"  {name:<32}{brief(row.figures[name]):>16} {METRICS[name].unit if name in METRICS else ''}".rstrip())
        for title, fields in (("settings", dict(row.cell.settings)), ("environment", vars(row.environment)), ("extra", dict(row.extra))):
            shown = ", ".join(f"{name} {value}" for name, value in fields.items() if value not in ("", 0, 0.0, False, None))
            if shown:
                typer.echo(f"  {title}: {shown}")
        if row.command:
            typer.echo(f"  command: {row.command}")
    if price is not None:
        for line in [*cost_lines(rows), *price.notes(rows)]:
            typer.echo(line)


def cost_lines(rows: list[Row]) -> list[str]:
    """Cost of each cell of priced rows over its repeats, a sentence each; the interval is that of throughput, inverted."""
    from trtllm_dashboards.points import points
    from trtllm_results.cost import COST

    lines = []
    for point in points(rows):
        if (cost := point.get(COST)) is None:
            continue
        kind = {0: "interval of the prediction", 1: "one repeat", 2: "two repeats:"}.get(cost.n, "95% interval")
        top = f"to {cost.high:.4f}" if cost.high < math.inf else "upwards, since that of throughput reaches 0"
        spread = kind if cost.n == 1 else f"{kind} {cost.low:.4f} {top}"
        lines.append(f"{point.rows[0].label}: {cost.mean:.4f} USD per million output tokens ({spread})")
    return lines


def _priced(rows: list[Row], price: Price | None) -> list[Row]:
    """Rows with the derived figures where a price was asked for."""
    from trtllm_results.cost import priced

    return rows if price is None else [priced(row, price) for row in rows]


def _flats(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Columns by name; those that hold JSON as what it says."""
    flats = [row.to_flat() for row in rows]
    return [flat | {name: json.loads(flat[name]) for name in ("settings", "warnings", "extra")} for flat in flats]


def _echo_json(rows: list[dict[str, Any]]) -> None:
    typer.echo(json.dumps(rows, indent=1))


def _by_definitions(store: Path, rows: list[Row], named_tool: str) -> None:
    """The stored requests of each row under the named tools' definitions, side by side."""
    from trtllm_dashboards.tables import Column, plain_console, show
    from trtllm_results.errors import ResultsError
    from trtllm_results.metrics.definitions import DEFINITIONS, figures
    from trtllm_results.metrics.registry import METRICS
    from trtllm_results.metrics.requests import RequestLog
    from trtllm_results.store.table import store_of

    tools = list(DEFINITIONS) if named_tool == "all" else ["trtllm-bench", named_tool]
    for row in rows:
        home = store_of(row, store)
        table = home.read_side("requests", row) if home is not None else None
        if table is None:
            raise ResultsError(f"{row.label} has no stored requests, so it cannot be told under other definitions")
        log = RequestLog.from_side(table, gpus=row.cell.gpus)
        by_tool = {tool: figures(log, tool) for tool in tools}
        shown = [name for name in METRICS if name.endswith(("_mean_ms", "_p50_ms", "_p99_ms", "_per_s", "_per_user"))]
        names = [name for name in shown if any(name in one for one in by_tool.values()) and not name.startswith(("queue", "lag"))]
        lines = [{"figure": _with_unit(name)} | {tool: one.get(name) for tool, one in by_tool.items()} for name in names]
        columns = [Column("figure"), *(Column(tool, kind="number") for tool in tools)]
        show(lines, columns, title=f"{row.label}, repeat {row.repeat}", console=plain_console())


def _with_unit(name: str) -> str:
    from trtllm_results.metrics.registry import METRICS, title

    unit = METRICS[name].unit
    return f"{title(name)} ms" if unit == "ms" else f"{title(name).split()[0]} {unit}"


@app.command("export")
def export(
    store: Annotated[str, typer.Argument(help="Store folder or table.")],
    out: Annotated[Path, typer.Argument(help="File to write: .xlsx or .csv (open in a spreadsheet), .json or .parquet.")],
    where: Where = None,
) -> None:
    """Write the rows as one XLSX, CSV, JSON or Parquet file, which every command reads like the store.

    Examples:
      trtllm-bench results export runs/a a.csv
      trtllm-bench results export runs/a fp8.parquet --where precision=fp8
    """
    from trtllm_results.errors import ResultsError
    from trtllm_results.store import selection, sheets
    from trtllm_results.store.rows import write_json, write_parquet

    rows = selection.keep(selection.load_set(store).rows, where or [])
    if not rows:
        raise ResultsError(selection.none_passes(where or []))
    writers = {".xlsx": sheets.write_xlsx, ".csv": sheets.write_csv, ".json": write_json, ".parquet": write_parquet}
    if (ending := out.suffix.lower()) not in writers:
        raise ResultsError(f"{out}: export writes .csv, .json, .parquet or .xlsx files")
    writers[ending](rows, out)
    typer.echo(f"{len(rows)} rows written to {out}")


@app.command("query")
def query(
    sql: Annotated[str, typer.Argument(metavar="SQL", help="Statement over the table `results`: one row per measurement, docs/schema.md.")],
    store: Annotated[list[str], typer.Argument(help="Store folders, folders or addresses of stores, or tables.")],
    where: Where = None,
    output: Annotated[str, typer.Option("--format", help="table, csv or json.")] = "table",
) -> None:
    """Answer a question in SQL over any number of stores (DuckDB). The column `store` names where a row is from.

    Examples:
      trtllm-bench results query "SELECT max(mfu) FROM results" runs/a runs/b
      trtllm-bench results query "FROM results SELECT model" s3://bucket/set
    """
    from trtllm_results.errors import ResultsError
    from trtllm_results.store import selection
    from trtllm_results.store.query import query as answer_to

    if output not in ("table", "csv", "json"):
        raise ResultsError(f"--format {output}: choose table, csv or json")
    sets = [selection.load_set(spec) for spec in store]
    answer = answer_to(sql, [selection.ResultSet(one.name, tuple(selection.keep(one.rows, where or []))) for one in sets])
    rows = answer.to_pylist()
    if output == "json":
        typer.echo(json.dumps(rows, indent=1, default=str))
        return
    if output == "csv":
        typer.echo(answer.to_pandas().to_csv(index=False), nl=False)
        return
    from trtllm_dashboards.tables import GAP, MIN_TEXT, Column, plain_console, show

    console = plain_console()
    names = answer.column_names
    texts = {name for row in rows for name, value in row.items() if isinstance(value, str | bool | list | dict)}
    wide = sum(max(MIN_TEXT, len(name)) + GAP for name in names) - GAP > console.width
    columns = [
        Column(name, name, kind="text" if name in texts else "number", priority=index if wide else 0, hoist=False, whole=not wide)
        for index, name in enumerate(names)
    ]
    show(rows, columns, console=console)


@app.command("push")
def push(
    store: Annotated[str, typer.Argument(help="Store folder, folder or address of stores, or table.")],
    to: Annotated[str, typer.Option("--to", help="mlflow or wandb.")],
    place: Annotated[str, typer.Option("--uri", help="Server or tracking URI (default: the tracker's own).")] = "",
    project: Annotated[str, typer.Option("--project", help="Experiment of MLflow, project of W&B.")] = "trtllm-bench",
    where: Where = None,
) -> None:
    """Send rows to an experiment tracker, one run per row; rows already there are left alone.

    Examples:
      trtllm-bench results push runs/a --to mlflow
      trtllm-bench results push runs/a --to mlflow --uri http://127.0.0.1:5000
    """
    from trtllm_results.errors import ResultsError
    from trtllm_results.store import selection
    from trtllm_results.trackers import push as push_to

    rows = selection.keep(selection.load_set(store).rows, where or [])
    if not rows:
        raise ResultsError(selection.none_passes(where or []))
    typer.echo(f"{push_to(to, rows, place, project)} of {len(rows)} rows are new and sent to {to}{f' at {place}' if place else ''}")


@app.command("merge")
def merge(
    into: Annotated[Path, typer.Argument(help="Store that receives (made if absent).")],
    sources: Annotated[list[str], typer.Argument(help="Stores, folders or addresses (s3://...) of stores, or tables.")],
    where: Where = None,
) -> None:
    """Add the rows of other stores, as of several hosts; rows already there are left alone, so merging twice is safe.

    What the sources say differently is told.

    Examples:
      trtllm-bench results merge runs/all runs/a runs/b
      trtllm-bench results merge runs/fp8 s3://bucket/set --where precision=fp8
    """
    from trtllm_results.compare.conflicts import conflicts
    from trtllm_results.errors import ResultsError
    from trtllm_results.store import selection
    from trtllm_results.store.remote import is_address
    from trtllm_results.store.table import Store, merge_store, read_rows

    if is_address(str(into)) or ":/" in str(into):
        raise ResultsError(f"{into} is an address; merge into a folder of this machine")
    rows = {source: selection.keep(read_rows(source), where or []) for source in sources}  # all of them, before a store is made
    if where and not any(rows.values()):
        raise ResultsError(selection.none_passes(where))
    store = Store(into)
    for source in sources:
        told = conflicts(store.rows(), into.name, rows[source], source)
        ids = {row.row_id for row in rows[source]} if where else None
        typer.echo(f"{merge_store(store, source, ids)} new rows from {source}")
        for text in told:
            typer.echo(f"  note: {text}")


@app.command("clean")
def clean(store: Annotated[Path, typer.Argument(help="Store folder, or a folder of them.")]) -> None:
    """Remove what killed runs left: temporary files, and per-request tables without a row.

    Examples:
      trtllm-bench results clean runs/a
      trtllm-bench results clean ~/measurements/h200
    """
    from trtllm_results.store.table import Store, stores_below

    stores = stores_below(store) if store.is_dir() else []
    removed = [one for each in stores or [store] for one in Store(each, create=store.is_dir()).clean()]
    for path, _ in removed:
        typer.echo(f"removed {path}")
    typer.echo(f"{len(removed)} files, {sum(size for _, size in removed) / 2**20:,.1f} MiB freed" if removed else "nothing to remove")


@app.command("import")
def import_results(
    store: Annotated[Path, typer.Argument(help="Store that receives (made if absent).")],
    files: Annotated[
        list[Path],
        typer.Argument(
            help="Results of vLLM, SGLang, GenAI-Perf, AIPerf, GuideLLM, LLMPerf, inference-perf, MLPerf or NVIDIA: files or folders."
        ),
    ],
    tool: Annotated[
        str,
        typer.Option(
            "--tool", help="nvidia, vllm, sglang, genai-perf, aiperf, guidellm, mlperf, llmperf or inference-perf (default: recognised)."
        ),
    ] = "",
    settings: Annotated[
        Strings, typer.Option("--set", help="FIELD=VALUE the file does not tell, such as precision=fp8; repeatable.")
    ] = None,
) -> None:
    """Read other tools' result files into a store.

    Times they wrote without a zone are taken to be this machine's (TZ changes it).

    Examples:
      trtllm-bench results import runs/vllm result.json
      trtllm-bench results import runs/nv report.json --set precision=fp8
    """
    from trtllm_bench.spec.named_values import named_values
    from trtllm_results import importers
    from trtllm_results.store.table import Store, extend

    overrides = named_values("--set", settings, "FIELD=VALUE")
    imported = [(path, importers.read(path, tool, overrides, lambda other: typer.echo(f"note: {other}", err=True))) for path in files]
    target = Store(store)
    for path, rows in imported:
        present = target.rows()
        known = {row.row_id for row in present}
        changed = importers.corrected(present, rows, overrides)
        others = [row for row in present if row.row_id not in {one.row_id for one in changed}]
        changed = importers.as_repeats(changed, others)
        twice = importers.in_another_form([*others, *changed], rows) - known
        new = importers.as_repeats([row for row in rows if row.row_id not in known | twice], [*others, *changed])
        target.append(*changed)
        tools = dict.fromkeys(str(row.extra.get("definitions", "trtllm-bench")) for row in rows)
        told = f"{extend(target, new)} new of {len(rows)} rows from {path} ({', '.join(tools)})"
        there = sum(row.row_id in known for row in rows) - len(changed)
        told += f"; {len(changed)} already there, now with {', '.join(settings or [])}" if changed else ""
        told += f"; {len(twice)} already there from another file of the same run" if twice else ""
        typer.echo(told + (f"; {there} already there, unchanged" if there else ""))
