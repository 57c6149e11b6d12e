"""Flags that several commands share, each defined once, under NVIDIA's name where its tool has one (`_` and `-` are the same)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from trtllm_bench.errors import BenchError

Model = Annotated[str | None, typer.Option("--model", "-m", help="Preset name, or folder with config.json (and weights).")]
EngineDir = Annotated[Path | None, typer.Option("--engine-dir", help="Engine folder made by build, instead of --model.")]
Weights = Annotated[
    str | None, typer.Option("--weights", help="dummy, or a folder or .gguf file (default: the model folder's own; dummy for presets).")
]
Precision = Annotated[
    str | None,
    typer.Option("--precision", help="fp32, fp16, bf16, fp8 or fp8_rowwise (default: the checkpoint's; else bf16 on a GPU, fp32 on CPU)."),
]
KV_DTYPE_HELP = "KV cache: auto (fp8 with precision fp8), fp8, bf16, fp16 or fp32."
KvDtype = Annotated[str, typer.Option("--kv-dtype", help=KV_DTYPE_HELP)]
Device = Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")]
MaxBatchSize = Annotated[int | None, typer.Option("--max-batch-size", min=1, help="Most sequences in a step.")]
MaxNumTokens = Annotated[int | None, typer.Option("--max-num-tokens", min=1, help="Most tokens in a step.")]
MaxSeqLen = Annotated[int | None, typer.Option("--max-seq-len", min=1, help="Longest sequence, prompt and output together.")]
KvFraction = Annotated[
    float, typer.Option("--kv-cache-free-gpu-mem-fraction", min=0.01, max=1.0, help="Share of free memory given to the KV cache.")
]
NvtxDetail = Annotated[str, typer.Option("--nvtx-detail", help="NVTX ranges: off, step, layer or op.")]
Policy = Annotated[str, typer.Option("--scheduler-policy", help="guaranteed_no_evict, max_utilization or static_batch.")]
Target = Annotated[str, typer.Option("--target", help="native (our engine), a server's address, null or fake (these test the driver).")]
Dataset = Annotated[
    str | None, typer.Option("--dataset", help="JSON lines in NVIDIA's format, a trace, a workload .toml, or a shipped workload's name.")
]
Replay = Annotated[bool, typer.Option("--replay", help="Send at the dataset's own arrival times.")]
TimeScale = Annotated[float, typer.Option("--time-scale", help="Multiply the dataset's times; 0.1 is ten times as fast.")]
Isl = Annotated[int | None, typer.Option("--isl", min=1, help="Input sequence length, tokens (default 128).")]
Osl = Annotated[int | None, typer.Option("--osl", min=1, help="Output sequence length, tokens (default 128).")]
RequestRate = Annotated[float | None, typer.Option("--request-rate", help="Requests/s of an open loop (Poisson); inf: all at once.")]
Burstiness = Annotated[float, typer.Option("--burstiness", help="Shape of gamma gaps; 1 is Poisson, below 1 burstier.")]
ARRIVALS_HELP = "Another open loop: constant:R, linear-ramp:FROM,TO,S, exponential-ramp:FROM,TO,S, on-off:R,ON,OFF, rate-series:R/R/...,S."
Arrivals = Annotated[str | None, typer.Option("--arrivals", help=ARRIVALS_HELP)]
Warmup = Annotated[int, typer.Option("--warmup", min=0, help="Requests run before measuring, with short outputs.")]
MaxLag = Annotated[float, typer.Option("--max-lag-ms", min=0, help="Void the run when the driver itself sends this late (p99).")]
WarmupSeconds = Annotated[float, typer.Option("--warmup-seconds", min=0, help="Also leave out requests of the run's first seconds.")]
Goodput = Annotated[str | None, typer.Option("--goodput", help="Limits in ms, such as ttft:200,tpot:50,e2e:5000.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of prompts, arrivals and dummy weights.")]


def rate_from(request_rate: float | None, burstiness: float) -> float:
    """`--request-rate` as a wish has it: 0 where it is left out or infinite, as vLLM's is by default. Raises `BenchError`."""
    if burstiness != 1 and request_rate is None:
        raise BenchError("--burstiness shapes the gaps of --request-rate; give both")
    if request_rate is not None and not request_rate > 0:
        raise BenchError(f"--request-rate must be above 0, not {request_rate:g}")
    return 0.0 if request_rate is None or request_rate == math.inf else request_rate


NumRequests = Annotated[int | None, typer.Option("--num-requests", min=1, help="Requests to send (default: the whole dataset).")]
Out = Annotated[Path | None, typer.Option("--out", help="Also append the result to the store in this folder.")]
ReportJson = Annotated[Path | None, typer.Option("--report-json", help="Write the report here, with NVIDIA's field names.")]
