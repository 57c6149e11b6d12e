"""Kernel results in the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console

from trtllm_bench.micro.results import Run, lines
from trtllm_dashboards.tables import Column, show
from trtllm_results.compare.published_ops import OpRun, summaries
from trtllm_results.gate import verdict as gate

COLUMNS = (
    Column("op", hoist=False),
    Column("case", hoist=False),
    Column("m", "M", kind="number"),
    Column("cold", unit="us", kind="number", places=2),
    Column("warm", unit="us", kind="number", places=2, priority=2),
    Column("noise", unit="%", kind="number", places=2, priority=5),
    Column("tb", "", unit="TB/s", kind="number", places=2),
    Column("tflop", "", unit="TFLOP/s", kind="number", places=1),
    Column("share", "of ceiling", unit="%", kind="number", places=0),
    Column("chained", unit="us", kind="number", places=2, priority=1),
    Column("chained_share", "of ceiling", unit="%", kind="number", places=0, priority=1),
    Column("peer", "peer", unit="us", kind="number", places=2, priority=3),
    Column("versus", "speed-up", kind="number", places=2, priority=3),
    Column("by", "of peer", hoist=False, priority=6),
    Column("check", hoist=False, kind="verdict"),
    Column("state", hoist=False, priority=4),
)


def print_results(run: Run, console: Console, notes: Sequence[str]) -> None:
    rows = lines(run.results)
    used = [column for column in COLUMNS if column.kind != "number" or any(row[column.key] is not None for row in rows)]
    show(rows, used, title=f"{run.model} {run.precision} on {run.device}: kernels alone, L2 cold", console=console)
    for one in run.results:
        if not one.right:
            console.print(f"{one.key}: differs from its reference by {one.error:.2%} (root mean square)", style="bold red", soft_wrap=True)
        if one.cold.slowed:
            console.print(f"{one.key}: the GPU was slowed down (heat or power supply) in every attempt", style="yellow", soft_wrap=True)
    for note in notes:
        console.print(f"note: {note}", style="yellow", soft_wrap=True)


def print_findings(findings: Sequence[gate.Finding], console: Console) -> int:
    """The verdicts against a baseline; returns the exit code."""
    styles = {"pass": "green", "fail": "bold red", "inconclusive": "yellow"}
    console.print()
    for finding in findings:
        judged = finding.judged
        change = (
            "" if finding.change is None else f" ({finding.change.estimate:+.1%}, {finding.change.low:+.1%} to {finding.change.high:+.1%})"
        )
        console.print(
            f"{finding.verdict:<13}{judged.label}: {judged.a_value:,.2f} -> {judged.b_value:,.2f} us{change}",
            style=styles[finding.verdict],
            soft_wrap=True,
        )
    if any(finding.verdict == "inconclusive" for finding in findings):
        console.print(
            "inconclusive: the interval of the change, in brackets, reaches across the margin; a smaller --noise or longer --seconds "
            "narrows it",
            style="dim",
            soft_wrap=True,
        )
    return gate.EXIT_CODES[gate.combine(findings)]


MOST_BEHIND = 10
"""Shapes behind that are named a family."""


def print_beside(run: OpRun, console: Console) -> None:
    """Every shape, a table for each family, then one sentence per family."""
    engines = sorted({engine for row in run.rows for engine in row.theirs_us})
    rows = [
        {
            "op": row.shape.family,
            "dtype": row.shape.dtype,
            "shape": row.shape.text.replace(" heads of ", " x "),
            "ours": row.same_work_us,
            "all": row.ours_us,
            "alone": row.alone_us,
            "here": row.here_us,
            "ratio": row.ratio,
            "theirs": row.best[1],
            "best": row.best[0].split()[0],
            "share": None if row.share is None else 100 * row.share,
            **row.between_us,
            **row.theirs_us,
        }
        for row in run.rows
    ]
    console.print(f"our kernels on {run.device} beside {', '.join(engines)}", style="bold", soft_wrap=True)
    for op in dict.fromkeys(row["op"] for row in rows):
        console.print()
        between = dict.fromkeys(work for row in run.rows if row.shape.family == op for work in row.between_us)
        members = [row for row in rows if row["op"] == op]
        torch_too = any(row["here"] is not None for row in members)
        show(members, _columns_beside(engines, between, torch_too), title=str(op), console=console)
    console.print()
    says = (
        "attention: sequences of so many tokens, heads/KV heads x their size; ours: with the work that the engine's call holds; theirs: "
        "the engine that is fastest beside that; ratio: theirs / ours; all, alone: ours with the most work and with none; "
        "ceiling: share that the op alone reaches, above 100 where L2 holds its input"
    )
    console.print(f"{says}. {run.method}", style="dim", soft_wrap=True)
    for family in summaries(run.rows):
        console.print(family.sentence, style="green" if not family.behind else "yellow", soft_wrap=True)
        for row in family.behind[:MOST_BEHIND]:
            engine, theirs = row.best
            mine = f"ours {row.same_work_us:,.1f} us (alone {row.alone_us:,.1f})"
            text = f"  behind: {row.shape.dtype} {row.shape.text}: {mine}, {engine} {theirs:,.1f}, ratio {row.ratio:.2f}"
            console.print(text, style="dim", soft_wrap=True)
        if len(family.behind) > MOST_BEHIND:
            console.print(f"  and {len(family.behind) - MOST_BEHIND} more; --out keeps them all", style="dim")
    for text in run.wrong:
        console.print(text, style="bold red", soft_wrap=True)
    for note in run.notes:
        console.print(f"note: {note}", style="yellow", soft_wrap=True)


def _columns_beside(engines: Sequence[str], between: Iterable[str], torch_too: bool) -> list[Column]:
    return [
        Column("dtype"),
        Column("shape", hoist=False, whole=True),
        Column("ours", unit="us", kind="number", places=1),
        Column("all", unit="us", kind="number", places=1, priority=4),
        *(Column(work, unit="us", kind="number", places=1, priority=4) for work in between),
        Column("alone", unit="us", kind="number", places=1, priority=3),
        Column("theirs", unit="us", kind="number", places=1),
        *([Column("here", "torch, here", unit="us", kind="number", places=1, priority=3)] if torch_too else []),
        Column("best", "by", hoist=False, priority=2),
        Column("ratio", kind="number", places=2),
        Column("share", "ceiling", unit="%", kind="number", places=0, priority=1, hoist=False),
        *(Column(engine, engine.split()[0], unit="us", kind="number", places=1, priority=5) for engine in engines),
    ]
