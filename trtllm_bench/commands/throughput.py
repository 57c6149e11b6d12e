"""`throughput`: one measurement under load. All requests at once unless `--concurrency` bounds them or `--request-rate` spaces them."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from trtllm_bench.commands import _options as options
from trtllm_bench.errors import FAILURE

LEAST_REQUESTS, PER_PLACE = 32, 4


@options.measures(help={"concurrency": "Most requests in flight; 0 or less: no bound (default)."})
def command(
    asked: options.Asked,
    streaming: Annotated[bool, typer.Option("--streaming", help="Report token timings (TTFT, TPOT) in the JSON too.")] = False,
    report_json: options.ReportJson = None,
    out: options.Out = None,
    keep_loaded: Annotated[bool, typer.Option("--keep-loaded", hidden=True)] = False,
) -> None:
    """Measure tokens/s of one engine under load.

    Examples:
      trtllm-bench throughput --model llama-3.1-8b --isl 128 --osl 128
      trtllm-bench throughput --model smollm2 --dataset data.jsonl --out runs/a
    """
    from trtllm_bench.measure.single import Single, follow, run

    single = Single(options.single(asked), LEAST_REQUESTS, PER_PLACE, streaming, report_json, out)
    if keep_loaded:  # the other end is `gate run --keep-loaded`
        follow(single, sys.stdin)
        return
    if run(single).status != "ok":
        raise typer.Exit(FAILURE)
