"""`ceilings`: measure what this device can do at best (GEMM rates, memory bandwidth) and keep it for MFU and MBU."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trtllm_bench.errors import BenchError

if TYPE_CHECKING:
    from trtllm_bench.roofline.ceilings import Ceilings


def command(
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")] = "auto",
    seconds: Annotated[float, typer.Option("--seconds", help="Length of each measurement.")] = 1.0,
    again: Annotated[bool, typer.Option("--again", help="Measure even when there is a cached result.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    apply: Annotated[Path | None, typer.Option("--apply", help="Fill in MFU and MBU of this store's rows that lack them.")] = None,
    file: Annotated[Path | None, typer.Option("--from", help="With --apply: ceilings kept in this file, of another machine.")] = None,
) -> None:
    """Measure peak FLOP/s, memory bandwidth and links of this machine's GPUs (or its CPU), and cache them.

    Examples:
      trtllm-bench ceilings
      trtllm-bench ceilings --again --apply runs/a
    """
    import json
    from dataclasses import asdict

    from trtllm_bench.machine import has_gpu
    from trtllm_bench.roofline import ceilings
    from trtllm_bench.roofline.links import reduction_text
    from trtllm_results.record.environment import Environment
    from trtllm_results.store.files import check_writable
    from trtllm_results.store.table import Store

    if file is not None:
        if apply is None:
            raise BenchError("--from needs --apply, which says whose rows to fill in")
        _apply(apply, ceilings.load(file))
        return
    if device not in ("auto", "cpu", "cuda"):
        raise BenchError(f"unknown device '{device}'; choose from auto, cpu, cuda")
    if device == "cuda" and not has_gpu():
        raise BenchError("a GPU was asked for (--device cuda) but none is usable here; use --device cpu, or see trtllm-bench doctor")
    if not 0.01 <= seconds <= 600:
        raise BenchError(f"--seconds is {seconds:g}; it must lie in [0.01, 600]")
    if apply is not None:
        Store(apply, create=False)  # before anything is measured for it
    environment = Environment.capture(use_gpu=device != "cpu" and has_gpu())
    measured = None if again else ceilings.cached(environment)
    fresh = measured is None
    if measured is None:
        check_writable(ceilings.cache_file(environment))
        measured = ceilings.measure(environment, seconds, None if as_json else typer.echo)
        ceilings.keep(measured, environment)
    if apply is None and environment.gpu and environment.gpu_count > 1 and measured.link_gpus != environment.gpu_count:
        measured = ceilings.with_links(measured, environment.gpu_count, seconds, None if as_json else typer.echo)
        ceilings.keep(measured, environment)
    elif not fresh and not as_json and measured.link_gpus:
        typer.echo(f"links: copy {measured.peer_copy_bytes_per_s / 1e9:,.1f} GB/s one way ({measured.link_gpus} GPUs, slowest pair)")
        for size, us in measured.all_reduce_us.items():
            typer.echo(reduction_text(int(size), us, measured.nccl_all_reduce_us.get(size)))
    if apply is not None:
        _apply(apply, measured)
        return
    if as_json:
        typer.echo(json.dumps(asdict(measured), indent=2))
        return
    if not fresh:
        for name, rate in measured.flops_per_s.items():
            typer.echo(f"{name}: {ceilings.rate_text(rate)}")
        typer.echo(f"memory: copy {measured.copy_bytes_per_s / 1e9:,.1f} GB/s, read {measured.read_bytes_per_s / 1e9:,.1f} GB/s")
    typer.echo(
        f"{measured.device}, {measured.measured_s:g} s a figure; {'kept in' if fresh else 'from'} {ceilings.cache_file(environment)}"
    )


def _apply(store: Path, measured: Ceilings) -> None:
    from trtllm_bench.analysis.fill_utilisation import fill

    filled, left, others = fill(store, measured)
    without = f"; {left} left alone, their requests or steps were not kept" if left else ""
    without += f"; {others} left alone, of another device, driver, power limit or torch" if others else ""
    typer.echo(f"{store}: MFU and MBU of {filled} row{'' if filled == 1 else 's'} filled in{without}")
