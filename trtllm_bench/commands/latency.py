"""`latency`: one measurement with one request at a time (or `--concurrency` of them), for first-token and per-token times."""

from __future__ import annotations

import typer

from trtllm_bench.commands import _options as options
from trtllm_bench.errors import FAILURE, BenchError

OPEN_LOOP = ("request_rate", "burstiness", "arrivals", "replay", "time_scale", "duration")
PER_PLACE = 10


@options.measures(without=OPEN_LOOP, help={"concurrency": "Requests in flight (default 1)."})
def command(asked: options.Asked, report_json: options.ReportJson = None, out: options.Out = None) -> None:
    """Measure time to first token and per token, one request at a time.

    Examples:
      trtllm-bench latency --model llama-3.1-8b --isl 2048 --osl 128
      trtllm-bench latency --engine-dir llama.engine --report-json r.json
    """
    from trtllm_bench.measure.single import Single, run

    if asked.get("concurrency", 1) < 1:
        raise BenchError(f"--concurrency must be at least 1, not {asked['concurrency']}; throughput sends without a bound")
    spec = options.single({"concurrency": 1, **asked})
    if run(Single(spec, 0, PER_PLACE, streaming=True, report_json=report_json, out=out)).status != "ok":
        raise typer.Exit(FAILURE)
