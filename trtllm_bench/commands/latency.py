"""`latency`: one measurement with one request at a time (or `--concurrency` of them), for first-token and per-token times."""

from __future__ import annotations

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
    concurrency: Annotated[int, typer.Option("--concurrency", min=1, help="Requests in flight.")] = 1,
    warmup: options.Warmup = 2,
    max_lag_ms: options.MaxLag = 25.0,
    target: options.Target = "native",
    device: options.Device = "auto",
    max_num_tokens: options.MaxNumTokens = None,
    max_seq_len: options.MaxSeqLen = None,
    kv_cache_fraction: options.KvFraction = 0.9,
    nvtx_detail: options.NvtxDetail = "off",
    seed: options.Seed = 0,
    report_json: options.ReportJson = None,
    out: options.Out = None,
) -> None:
    """Measure time to first token and per token, one request at a time."""
    from dataclasses import replace

    from trtllm_bench.measure.session import Load
    from trtllm_bench.measure.single import Single, case_of, run
    from trtllm_bench.measure.spec import EngineWish, WorkloadWish, default_model

    lengths = case_of(isl, osl, dataset)
    requests = num_requests or (None if dataset is not None else 10 * concurrency)
    name, kind = default_model(model, precision, engine_dir, target, device, kv_dtype)
    sizes = (concurrency, max_num_tokens, max_seq_len)
    engine = EngineWish(name, kind, engine_dir, weights, device, *sizes, kv_cache_fraction, seed=seed, kv_dtype=kv_dtype)
    row = run(
        Single(
            target=target,
            engine=replace(engine, nvtx_detail=nvtx_detail),
            workload=WorkloadWish(requests, *lengths, dataset, seed=seed),
            load=Load(concurrency, warmup=warmup, max_lag_ms=max_lag_ms),
            streaming=True,
            report_json=report_json,
            out=out,
        )
    )
    if row.status != "ok":
        raise typer.Exit(FAILURE)
