"""`search`: the highest request rate, or concurrency, at which the goodput limits are still met. Exit 1 when no load meets them."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Literal

import typer

from trtllm_bench.commands import _options as options
from trtllm_bench.errors import FAILURE, BenchError

SEARCHED = ("goodput", "concurrency", "request_rate", "num_requests", "duration", "arrivals", "replay", "warmup_seconds", "burstiness")
"""Knobs that the search sets itself, or has a flag of its own for."""


@options.measures(without=SEARCHED)
def command(
    goodput: Annotated[str, options.option("goodput")],
    by: Annotated[Literal["rate", "concurrency"], typer.Option("--by", help="What is raised.")] = "rate",
    attainment: Annotated[float, typer.Option("--attainment", help="Share of requests that must be within every limit.")] = 0.95,
    confidence: Annotated[float, typer.Option("--confidence", help="That the limit lies in the interval printed.")] = 0.95,
    tolerance: Annotated[float, typer.Option("--tolerance", help="Relative width of the interval to stop at.")] = 0.1,
    repeats: Annotated[int, typer.Option("--repeats", help="Most runs of one load, when one does not decide.")] = 1,
    max_seconds: Annotated[
        float | None,
        typer.Option(
            "--max-seconds",
            help="Seconds for all runs: none is begun that would likely end later (default: what the tolerance takes, 2 min or more).",
        ),
    ] = None,
    start: Annotated[
        float | None, typer.Option("--start", help="Load to begin with (default: what makes a run --duration long; 1 at a time).")
    ] = None,
    highest: Annotated[float | None, typer.Option("--highest", help="Load not to go beyond (default: 10000/s, or 4096 at a time).")] = None,
    duration: Annotated[float, typer.Option("--duration", help="Seconds of arrivals in a run, at least.")] = 20.0,
    burstiness: Annotated[float, options.option("burstiness")] = 1.0,
    asked: options.Asked = MappingProxyType({}),
    report_json: Annotated[Path | None, typer.Option("--report-json", help="Write probes and answer here.")] = None,
    out: options.Out = None,
) -> None:
    """Find the highest load that still meets an SLO, as an interval with confidence.

    Examples:
      trtllm-bench search --goodput ttft:200,tpot:50 --model llama-3.1-8b
      trtllm-bench search --goodput e2e:5000 --by concurrency --out runs/limit
    """
    from trtllm_bench.load.saturation import Search
    from trtllm_bench.measure.search import Settings, requests_to_decide, run

    by_rate = by == "rate"
    top = highest if highest is not None else (10_000.0 if by_rate else 4096.0)
    search = Search(
        attainment,
        confidence,
        tolerance,
        repeats,
        whole=not by_rate,
        alone=by_rate,
        highest=top,
        budget_s=max_seconds,
        burstiness=burstiness,
    )
    begin = start if start is not None else 1.0
    if start is None and by_rate and duration > 0:
        begin = max(1.0, round(requests_to_decide(search) / duration))
    for flag, value in (("--start", begin), ("--highest", top), ("--duration", duration), ("--max-seconds", max_seconds)):
        if value is not None and not value > 0:
            raise BenchError(f"{flag} is {value:g}; it must be above 0")
    if start is not None and start > top:
        raise BenchError(f"--start is {start:g} and --highest is {top:g}; give a --start that is at most --highest")
    begin = min(begin, top)
    if not by_rate and (begin != int(begin) or top != int(top)):
        raise BenchError("--start and --highest must be whole numbers when concurrency is searched")
    spec = options.single({**asked, "goodput": goodput})
    settings = Settings(spec, search, by_rate, begin, duration, report_json, out)
    if run(settings).passed == 0:
        raise typer.Exit(FAILURE)
