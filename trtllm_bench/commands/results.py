"""`results`: look into, export, merge, import and clean result stores."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from trtllm_results.record.row import Row

HELP = """List, show, export, merge, import and clean results.

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
) -> None:
    """List the rows of stores, one line each.

    Examples:
      trtllm-bench results ls runs/a
      trtllm-bench results ls runs/a runs/b --where precision=fp8
    """
    from trtllm_dashboards.tables import Column, plain_console, show
    from trtllm_results.metrics.registry import METRICS, common_words, title
    from trtllm_results.store import selection

    if as_json:
        sets = [selection.load_set(spec) for spec in store]
        _echo_json([{"store": one.name, **flat} for one in sets for flat in _flats(selection.keep(one.rows, where or []))])
        return
    figures = figure or ["output_tokens_per_s", "ttft_p50_ms", "tpot_p50_ms"]
    lines = []
    for spec in store:
        one = selection.load_set(spec)
        for row in selection.keep(one.rows, where or []):
            line = {"store": one.name, "key": row.key[:8], "cell": row.cell.label, "repeat": row.repeat, "status": row.status}
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
        Column(name, title(name), unit=METRICS[name].unit if name in METRICS else "", kind="number", priority=1) for name in figures
    ]
    show(lines, columns, title=shared, console=plain_console())


@app.command("show")
def show_row(
    store: Annotated[str, typer.Argument(help="Store folder or table.")],
    key: Annotated[str, typer.Argument(help="Start of a cell key, as ls prints it (default: every cell).")] = "",
    definitions: Annotated[
        str, typer.Option("--definitions", help="Latencies as another tool defines them: vllm, aiperf, nvidia, guidellm, or all.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Everything about the rows of one cell, or of all: settings, figures with their units, environment, command.

    Examples:
      trtllm-bench results show runs/a
      trtllm-bench results show runs/a 3f2a --definitions vllm
    """
    from trtllm_results.errors import ResultsError
    from trtllm_results.metrics.registry import METRICS, brief
    from trtllm_results.store import selection

    rows = [row for row in selection.load_set(store).rows if row.key.startswith(key)]
    if not rows:
        raise ResultsError(
            f"No cell of {store} has a key that starts with '{key}'; results ls lists them." if key else f"{store} is empty."
        )
    if as_json:
        _echo_json(_flats(rows))
        return
    if definitions:
        _by_definitions(Path(store), rows, definitions)
        return
    for row in rows:
        typer.echo(f"{row.cell.label}  repeat {row.repeat}  {row.status}{': ' + row.reason if row.reason else ''}")
        typer.echo(f"  key {row.key}  started {row.started_at}")
        for text in row.warnings:
            typer.echo(f"  note: {text}")
        for name in [name for name in METRICS if name in row.figures] + [name for name in row.figures if name not in METRICS]:
            typer.echo(f"  {name:<32}{brief(row.figures[name]):>16} {METRICS[name].unit if name in METRICS else ''}".rstrip())
        for title, fields in (("settings", dict(row.cell.settings)), ("environment", vars(row.environment)), ("extra", dict(row.extra))):
            shown = ", ".join(f"{name} {value}" for name, value in fields.items() if value not in ("", 0, 0.0, False, None))
            if shown:
                typer.echo(f"  {title}: {shown}")
        if row.command:
            typer.echo(f"  command: {row.command}")


def _flats(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Columns by name; those that hold JSON as what it says."""
    flats = [row.to_flat() for row in rows]
    return [flat | {name: json.loads(flat[name]) for name in ("settings", "warnings", "extra")} for flat in flats]


def _echo_json(rows: list[dict[str, Any]]) -> None:
    typer.echo(json.dumps(rows, indent=1))


def _by_definitions(store: Path, rows: list[Row], wanted: str) -> None:
    """The stored requests of each row under the named tools' definitions, side by side."""
    from trtllm_dashboards.tables import Column, plain_console, show
    from trtllm_results.errors import ResultsError
    from trtllm_results.metrics.definitions import DEFINITIONS, figures
    from trtllm_results.metrics.registry import METRICS
    from trtllm_results.metrics.requests import RequestLog
    from trtllm_results.store.table import Store

    tools = list(DEFINITIONS) if wanted == "all" else ["trtllm-bench", wanted]
    for row in rows:
        table = Store(store, create=False).read_side("requests", row)
        if table is None:
            raise ResultsError(f"{row.cell.label} has no stored requests, so it cannot be told under other definitions.")
        log = RequestLog.from_side(table, gpus=row.cell.gpus)
        found = {tool: figures(log, tool) for tool in tools}
        shown = [name for name in METRICS if name.endswith(("_mean_ms", "_p50_ms", "_p99_ms", "_per_s", "_per_user"))]
        names = [name for name in shown if any(name in one for one in found.values()) and not name.startswith(("queue", "lag"))]
        lines = [{"figure": _with_unit(name)} | {tool: one.get(name) for tool, one in found.items()} for name in names]
        columns = [Column("figure"), *(Column(tool, kind="number") for tool in tools)]
        show(lines, columns, title=f"{row.cell.label}, repeat {row.repeat}", console=plain_console())


def _with_unit(name: str) -> str:
    from trtllm_results.metrics.registry import METRICS, title

    unit = METRICS[name].unit
    return f"{title(name)} ms" if unit == "ms" else f"{title(name).split()[0]} {unit}"


@app.command("export")
def export(
    store: Annotated[str, typer.Argument(help="Store folder or table.")],
    out: Annotated[Path, typer.Argument(help="File to write: .csv (opens in a spreadsheet), .json or .parquet.")],
    where: Where = None,
) -> None:
    """Write the rows as one CSV, JSON or Parquet file.

    Examples:
      trtllm-bench results export runs/a a.csv
      trtllm-bench results export runs/a fp8.parquet --where precision=fp8
    """
    from trtllm_results.errors import ResultsError
    from trtllm_results.store import selection
    from trtllm_results.store import table as stores

    rows = selection.keep(selection.load_set(store).rows, where or [])
    if not rows:
        raise ResultsError("No result passes the filters.")
    writers = {".csv": stores.write_csv, ".json": stores.write_json, ".parquet": stores.write_parquet}
    if out.suffix not in writers:
        raise ResultsError(f"{out}: export writes .csv, .json or .parquet files.")
    writers[out.suffix](rows, out)
    typer.echo(f"{len(rows)} rows written to {out}")


@app.command("merge")
def merge(
    into: Annotated[Path, typer.Argument(help="Store that receives (made if absent).")],
    sources: Annotated[list[Path], typer.Argument(help="Stores or tables to take rows from.")],
) -> None:
    """Add the rows of other stores; rows already there are left alone, so merging twice is safe.

    Examples:
      trtllm-bench results merge runs/all runs/a
      trtllm-bench results merge runs/all runs/a runs/b
    """
    from trtllm_results.store.table import Store, merge_store

    store = Store(into)
    for source in sources:
        typer.echo(f"{merge_store(store, source)} new rows from {source}")


@app.command("clean")
def clean(store: Annotated[Path, typer.Argument(help="Store folder.")]) -> None:
    """Remove what killed runs left: temporary files, and per-request tables without a row."""
    from trtllm_results.store.table import Store

    removed = Store(store, create=store.is_dir()).clean()
    for path, _ in removed:
        typer.echo(f"removed {path}")
    typer.echo(f"{len(removed)} files, {sum(size for _, size in removed) / 2**20:,.1f} MiB freed" if removed else "nothing to remove")


@app.command("import")
def import_results(
    store: Annotated[Path, typer.Argument(help="Store that receives (made if absent).")],
    files: Annotated[
        list[Path], typer.Argument(help="Results of vLLM, SGLang, GenAI-Perf, AIPerf, GuideLLM, MLPerf or NVIDIA: files or folders.")
    ],
    tool: Annotated[
        str, typer.Option("--tool", help="nvidia, vllm, sglang, genai-perf, aiperf, guidellm or mlperf (default: recognised).")
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
    from trtllm_results import importers
    from trtllm_results.errors import ResultsError
    from trtllm_results.store.table import Store, extend

    overrides = {}
    for text in settings or []:
        name, equals, value = text.partition("=")
        if not equals:
            raise ResultsError(f"--set {text}: write FIELD=VALUE.")
        overrides[name] = value
    imported = [(path, importers.read(path, tool, overrides)) for path in files]
    target = Store(store)
    for path, rows in imported:
        present = target.rows()
        known = {row.row_id for row in present}
        new = importers.as_repeats([row for row in rows if row.row_id not in known], present)
        typer.echo(f"{extend(target, new)} new of {len(rows)} rows from {path} ({rows[0].extra.get('definitions', 'trtllm-bench')})")
