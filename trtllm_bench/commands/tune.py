"""`tune`: measure the tile configurations and routines that each op could use, and record those that are faster than the defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trtllm_bench.commands import _options as options
from trtllm_bench.errors import FAILURE, BenchError

OPS_M, STEPS_M = "1,16,32,64,2048", "1,8,16,32,64,128"
"""Tokens in a step by default."""


def command(
    name: Annotated[str, typer.Argument(metavar="[NAME]", help="Only ops whose name contains this, such as attention.")] = "",
    model: Annotated[str, typer.Option("--model", "-m", help="Model whose shapes to tune for.")] = "llama-3.1-8b",
    precision: Annotated[str, typer.Option("--precision", help="List, such as bf16,fp8,int4.")] = "bf16,fp8",
    kv_dtype: options.KvDtype = "auto",
    m: Annotated[
        str, typer.Option("--m", help=f"List: tokens in a step (default: {OPS_M} for ops, {STEPS_M} for whole steps).", show_default=False)
    ] = "",
    by: Annotated[
        str, typer.Option("--by", help="List: ops (each op alone), steps (whole decode steps, in which kernels overlap).")
    ] = "ops,steps",
    tp: Annotated[
        int, typer.Option("--tp", min=1, help="Shapes of one rank among so many, on one GPU, without what ranks exchange; with --by steps.")
    ] = 1,
    kv_len: Annotated[int, typer.Option("--kv-len", min=1, help="Tokens each decoding sequence has in the cache.")] = 1024,
    page_size: Annotated[int, typer.Option("--page-size", help="Tokens in a page of the KV cache.")] = 32,
    seconds: Annotated[float, typer.Option("--seconds", help="Time for all of it, compiling included.")] = 300.0,
    out: Annotated[
        Path | None, typer.Option("--out", help="Tactics file to write into (default: this GPU's own, which builds for it read).")
    ] = None,
) -> None:
    """Choose tiles and routines for each op by measuring them on this GPU; builds then use what was recorded.

    Examples:
      trtllm-bench tune --model llama-3.1-8b --precision bf16,fp8
      trtllm-bench tune --by steps --model llama-3.1-70b --precision fp8 --tp 2
    """
    import time

    from trtllm_bench.machine import arch_of, gpus
    from trtllm_bench.micro.run import parse_m
    from trtllm_dashboards.tables import plain_console
    from trtllm_engines.quantization.precision import canonical
    from trtllm_engines.runtime.buckets import LARGEST_GRAPH

    if seconds <= 0:
        raise BenchError("--seconds must be above 0")
    precisions = [canonical(part.strip()) for part in precision.split(",") if part.strip()]
    if not precisions:
        raise BenchError("--precision is empty; give a list such as bf16,fp8")
    kinds = [part.strip() for part in by.split(",") if part.strip()]
    if not kinds or not {*kinds} <= {"ops", "steps"}:
        raise BenchError(f"--by is '{by}'; give ops, steps, or both")
    if tp > 1 and "ops" in kinds:
        raise BenchError(f"--tp {tp} is measured by whole steps only; add --by steps")
    ops_m, steps_m = parse_m(m or OPS_M), [tokens for tokens in parse_m(m or STEPS_M) if tokens <= LARGEST_GRAPH]
    if "steps" in kinds and not steps_m:
        raise BenchError(f"--m is '{m}', and decode steps of more than {LARGEST_GRAPH} tokens are no CUDA graphs; give fewer, or --by ops")
    devices = gpus()
    if not devices:
        raise BenchError("tune measures GPU kernels and no NVIDIA GPU is usable here; builds use recorded tactics, or stated defaults")

    from trtllm_bench.tune.session import Asked, Summary, tune_on_gpu, tune_steps_on_gpu
    from trtllm_kernels import tactics
    from trtllm_results.store.files import check_writable

    began = time.monotonic()
    arch, gpu = arch_of(devices[0]), str(devices[0]["gpu"])
    path = out or tactics.own_file(gpu)
    check_writable(path)
    console = plain_console()
    asked = Asked(model, precisions, kv_dtype, kv_len, page_size, name, tp, arch, gpu, path, console)
    summary = Summary(0, 0, 0, ())
    if "ops" in kinds:
        summary += tune_on_gpu(asked, ops_m, seconds / len(kinds))
    if "steps" in kinds:
        summary += tune_steps_on_gpu(asked, steps_m, seconds - (time.monotonic() - began))
    console.print(
        f"{summary.changed} choices differ from the default, {summary.kept} keep it; {time.monotonic() - began:.0f} s", soft_wrap=True
    )
    console.print(f"tactics: {path}", soft_wrap=True)
    if summary.skipped:
        console.print(
            f"note: no time was left for {summary.skipped} choices; give more --seconds, or a NAME", style="yellow", soft_wrap=True
        )
    if summary.failed:
        console.print(f"differ from their reference: {', '.join(summary.failed)}", style="bold red", soft_wrap=True)
        raise typer.Exit(FAILURE)
