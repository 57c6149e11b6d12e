"""`search`: the highest request rate, or concurrency, at which the goodput limits are still met. Exit 1 when no load meets them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal

import typer

from trtllm_bench.commands import _options as options
from trtllm_bench.errors import FAILURE, BenchError


def command(
    goodput: Annotated[str, typer.Option("--goodput", help="Limits in ms, such as ttft:200,tpot:50,e2e:5000.")],
    by: Annotated[Literal["rate", "concurrency"], typer.Option("--by", help="What is raised.")] = "rate",
    attainment: Annotated[float, typer.Option("--attainment", help="Share of requests that must be within every limit.")] = 0.95,
    confidence: Annotated[float, typer.Option("--confidence", help="That the limit lies in the interval printed.")] = 0.95,
    tolerance: Annotated[float, typer.Option("--tolerance", help="Relative width of the interval to stop at.")] = 0.05,
    repeats: Annotated[int, typer.Option("--repeats", help="Most runs of one load, when one does not decide.")] = 3,
    start: Annotated[
        float | None, typer.Option("--start", help="Load to begin with (default: what makes a run --duration long; 1 at a time).")
    ] = None,
    highest: Annotated[float | None, typer.Option("--highest", help="Load not to go beyond (default: 10000/s, or 4096 at a time).")] = None,
    duration: Annotated[float, typer.Option("--duration", help="Seconds of arrivals in a run, at least.")] = 20.0,
    burstiness: options.Burstiness = 1.0,
    model: options.Model = None,
    engine_dir: options.EngineDir = None,
    precision: options.Precision = None,
    kv_dtype: options.KvDtype = "auto",
    weights: options.Weights = None,
    dataset: options.Dataset = None,
    isl: options.Isl = None,
    osl: options.Osl = None,
    warmup: options.Warmup = 2,
    max_lag_ms: options.MaxLag = 25.0,
    target: options.Target = "native",
    device: options.Device = "auto",
    max_batch_size: options.MaxBatchSize = None,
    max_num_tokens: options.MaxNumTokens = None,
    max_seq_len: options.MaxSeqLen = None,
    kv_cache_fraction: options.KvFraction = 0.9,
    policy: options.Policy = "guaranteed_no_evict",
    seed: options.Seed = 0,
    report_json: Annotated[Path | None, typer.Option("--report-json", help="Write probes and answer here.")] = None,
    out: options.Out = None,
) -> None:
    """Find the highest load that still meets an SLO, by bisection with confidence."""
    from trtllm_bench.load.saturation import Search
    from trtllm_bench.measure.search import Settings, requests_to_decide, run
    from trtllm_bench.measure.single import case_of
    from trtllm_bench.measure.spec import EngineWish, WorkloadWish, default_model
    from trtllm_results.metrics.requests import parse_slo

    by_rate = by == "rate"
    top = highest if highest is not None else (10_000.0 if by_rate else 4096.0)
    search = Search(attainment, confidence, tolerance, repeats, whole=not by_rate, alone=by_rate, highest=top)
    begin = start if start is not None else 1.0
    if start is None and by_rate and duration > 0:
        begin = max(1.0, round(requests_to_decide(search) / duration))
    for flag, value in (("--start", begin), ("--highest", top), ("--duration", duration)):
        if not 0 < value < math.inf:
            raise BenchError(f"{flag} is {value:g}; it must be above 0")
    if not by_rate and (begin != int(begin) or top != int(top)):
        raise BenchError("--start and --highest must be whole numbers when concurrency is searched")
    sizes = (max_batch_size, max_num_tokens, max_seq_len)
    name, kind = default_model(model, precision, engine_dir, target, device, kv_dtype)
    found = run(
        Settings(
            target=target,
            engine=EngineWish(name, kind, engine_dir, weights, device, *sizes, kv_cache_fraction, policy, seed, kv_dtype),
            workload=WorkloadWish(None, *case_of(isl, osl, dataset), dataset, burstiness=burstiness, seed=seed),
            search=search,
            slo_ms=parse_slo(goodput),
            by_rate=by_rate,
            start=begin,
            duration_s=duration,
            warmup=warmup,
            max_lag_ms=max_lag_ms,
            report_json=report_json,
            out=out,
        )
    )
    if found.passed == 0:
        raise typer.Exit(FAILURE)
