"""`throughput`: one measurement under load. All requests at once unless `--concurrency` bounds them or `--request-rate` spaces them."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from trtllm_bench.commands import _options as options
from trtllm_bench.errors import FAILURE


def command(
    model: options.Model = None,
    engine_dir: options.EngineDir = None,
    precision: options.Precision = None,
    kv_dtype: options.KvDtype = "auto",
    weights: options.Weights = None,
    dataset: options.Dataset = None,
    isl: options.Isl = None,
    osl: options.Osl = None,
    num_requests: options.NumRequests = None,
    concurrency: Annotated[int, typer.Option("--concurrency", help="Most requests in flight; 0 or less: no bound.")] = -1,
    request_rate: options.RequestRate = None,
    burstiness: options.Burstiness = 1.0,
    arrivals: options.Arrivals = None,
    replay: options.Replay = False,
    time_scale: options.TimeScale = 1.0,
    streaming: Annotated[bool, typer.Option("--streaming", help="Report token timings (TTFT, TPOT) in the JSON too.")] = False,
    warmup: options.Warmup = 2,
    warmup_seconds: options.WarmupSeconds = 0.0,
    max_lag_ms: options.MaxLag = 25.0,
    goodput: options.Goodput = None,
    target: options.Target = "native",
    device: options.Device = "auto",
    max_batch_size: options.MaxBatchSize = None,
    max_num_tokens: options.MaxNumTokens = None,
    max_seq_len: options.MaxSeqLen = None,
    kv_cache_fraction: options.KvFraction = 0.9,
    policy: options.Policy = "guaranteed_no_evict",
    nvtx_detail: options.NvtxDetail = "off",
    seed: options.Seed = 0,
    report_json: options.ReportJson = None,
    out: options.Out = None,
    keep_loaded: Annotated[bool, typer.Option("--keep-loaded", hidden=True)] = False,
) -> None:
    """Measure tokens/s of one engine under load."""
    from dataclasses import replace

    from trtllm_bench.measure.session import Load
    from trtllm_bench.measure.single import Single, case_of, follow, run
    from trtllm_bench.measure.spec import EngineWish, WorkloadWish, default_model
    from trtllm_results.metrics.requests import parse_slo

    rate = options.rate_from(request_rate, burstiness)
    lengths = case_of(isl, osl, dataset)
    bound = max(concurrency, 0)
    requests = num_requests or (None if dataset is not None else max(32, 4 * bound))
    batch = max_batch_size or bound or (None if engine_dir is not None else min(requests or 256, 256))
    name, kind = default_model(model, precision, engine_dir, target, device, kv_dtype)
    sizes = (batch, max_num_tokens, max_seq_len)
    engine = EngineWish(name, kind, engine_dir, weights, device, *sizes, kv_cache_fraction, policy, seed, kv_dtype)
    workload = WorkloadWish(requests, *lengths, dataset, rate, burstiness, replay, time_scale, seed, arrivals)
    single = Single(
        target=target,
        engine=replace(engine, nvtx_detail=nvtx_detail),
        workload=workload,
        load=Load(bound, workload.open_loop, warmup, warmup_seconds, parse_slo(goodput) if goodput else {}, max_lag_ms),
        streaming=streaming,
        report_json=report_json,
        out=out,
    )
    if keep_loaded:  # the other end is `gate run --keep-loaded`
        follow(single, sys.stdin)
        return
    if run(single).status != "ok":
        raise typer.Exit(FAILURE)
