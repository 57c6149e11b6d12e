"""`kernels`: every op of a model on this GPU, one by one. Exit 1: a kernel is wrong or, with `--baseline`, slower; 2: inconclusive."""

from __future__ import annotations

import shlex
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from trtllm_bench.commands import _options as options
from trtllm_bench.errors import FAILURE, BenchError

OF_A_MODEL = ("name", "model", "precision", "kv_dtype", "m", "kv_len", "past", "peers", "baseline", "margin")
OF_PUBLISHED = ("ops", "limit")
"""Parameters that only one of the two ways to choose shapes takes."""


def command(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="[NAME]", help="Only ops whose name contains this, such as attention.")] = "",
    model: Annotated[str, typer.Option("--model", "-m", help="Model whose shapes to take.")] = "llama-3.1-8b",
    precision: Annotated[str, options.option("precision", help="fp8, int4, int8_sq, ... (docs/quantization.md; default bf16).")] = "bf16",
    kv_dtype: options.KvDtype = "auto",
    m: Annotated[str, typer.Option("--m", help="List: tokens in a step.")] = "1,64,1024",
    kv_len: Annotated[int, typer.Option("--kv-len", min=1, help="Tokens each decoding sequence has in the cache.")] = 1024,
    past: Annotated[
        int,
        typer.Option("--past", min=0, help="Tokens a prompt has in the cache before its M: chunked prefill."),
    ] = 0,
    page_size: Annotated[int, typer.Option("--page-size", help="Tokens in a page of the KV cache.")] = 32,
    noise: Annotated[float, typer.Option("--noise", help="Relative standard error at which a measurement ends.")] = 0.005,
    seconds: Annotated[float, typer.Option("--seconds", help="Longest measurement of one kernel.")] = 2.0,
    peers: Annotated[bool, typer.Option("--peers/--no-peers", help="Measure cuBLASLt and SDPA beside ours.")] = True,
    out: Annotated[Path | None, typer.Option("--out", help="JSON file to write the results to; a later --baseline.")] = None,
    plot: Annotated[Path | None, typer.Option("--plot", help="Draw each op's share of the ceiling (.png or .svg).")] = None,
    baseline: Annotated[Path | None, typer.Option("--baseline", help="Judge against results of an earlier --out.")] = None,
    margin: Annotated[float, typer.Option("--margin", help="Relative slow-down that --baseline tolerates.")] = 0.03,
    against: Annotated[
        str, typer.Option("--against", help="published: at the shapes of TensorRT-LLM's, vLLM's and SGLang's kernels.")
    ] = "",
    ops: Annotated[str, typer.Option("--ops", help="List for --against: gemm, attention.")] = "gemm,attention",
    limit: Annotated[
        int, typer.Option("--limit", min=0, help="Shapes for --against, spread over ops, types and sizes; 0: all (1,571 on an H200).")
    ] = 240,
) -> None:
    """Measure each kernel of a model alone: time, correctness, peers, share of the ceiling.

    Examples:
      trtllm-bench kernels attention --model llama-3.1-8b --precision fp8
      trtllm-bench kernels --against published --limit 240 --out ops.json
    """
    from trtllm_bench.machine import arch_of
    from trtllm_bench.micro.results import Run, judge
    from trtllm_bench.micro.run import KernelSelection, cases_of, parse_m, run
    from trtllm_bench.micro.show import print_findings, print_results
    from trtllm_bench.micro.timing import StoppingRule
    from trtllm_dashboards.tables import plain_console
    from trtllm_engines.quantization.precision import canonical

    if against not in ("", "published"):
        raise BenchError(f"--against {against}: only 'published' is known")
    if noise <= 0 or seconds <= 0 or not 0 < margin < 0.5:
        raise BenchError("--noise and --seconds must be above 0, and --margin between 0 and 0.5")
    if plot is not None and plot.suffix not in (".png", ".svg"):
        raise BenchError(f"--plot {plot}: the file must end in .png or .svg")
    if against and (idle := options.given(context, OF_A_MODEL)):
        raise BenchError(f"{idle} is for the kernels of a model, and --against published has shapes of its own; leave one of them out")
    if not against and (idle := options.given(context, OF_PUBLISHED)):
        raise BenchError(f"{idle} chooses among published shapes; add --against published, or leave it out")
    if against:
        _beside_published(ops, limit, page_size, noise, seconds, out, plot)
        return
    selection = KernelSelection(model, canonical(precision), parse_m(m), kv_len, name, past)
    earlier = None if baseline is None else Run.load(baseline)
    gpu = _gpu()

    from trtllm_bench.micro.bench import Bench
    from trtllm_bench.micro.timing import CuptiTimer
    from trtllm_bench.roofline.hardware import ceilings_for
    from trtllm_bench.tracing.collect import prime
    from trtllm_results.record.environment import Environment
    from trtllm_results.store.files import check_writable

    console = plain_console()
    check_writable(out, plot)
    environment = Environment.capture(use_gpu=True)
    hardware, notes = ceilings_for(environment)
    prime("cuda")
    bench = Bench(model, selection.precision, arch_of(gpu), cases_of(selection), page_size, kv_dtype=kv_dtype)
    results = run(
        selection,
        bench,
        CuptiTimer(),
        StoppingRule(noise=noise, seconds=seconds),
        hardware,
        lambda one: console.print(f"{one.key}: {one.cold.mean_us:,.2f} us", style="dim") if console.is_terminal else None,
        peers,
    )
    outcome = Run(model, selection.precision, environment.device, tuple(results), shlex.join(["trtllm-bench", *sys.argv[1:]]))
    written = []
    if out is not None:
        outcome.save(out)
        written.append(f"results: {out}")
    if plot is not None:
        from trtllm_bench.micro.results import draw

        written.append(f"plot: {draw(outcome, plot)}")
    print_results(outcome, console, notes)
    for line in written:
        console.print(line, soft_wrap=True)
    code = 0
    if earlier is not None:
        code = print_findings(judge(earlier, outcome, margin), console)
    if not all(one.right for one in results):
        code = FAILURE
    if code:
        raise typer.Exit(code)


def _gpu() -> dict[str, Any]:
    """The GPU that is measured."""
    from trtllm_bench.machine import gpus

    devices = gpus()
    if not devices:
        raise BenchError("kernels measures GPU kernels and no NVIDIA GPU is usable here; see trtllm-bench doctor")
    return devices[0]


MOST_SECONDS = 0.5
"""Of measuring one shape, at most: there are hundreds."""
SAVED_EVERY = 20
"""Shapes between two writes of the record, so that a run cut short leaves what it measured."""


def _beside_published(ops: str, limit: int, page_size: int, noise: float, seconds: float, record: Path | None, plot: Path | None) -> None:
    from trtllm_bench.machine import arch_of
    from trtllm_results.compare import published_ops
    from trtllm_results.record.environment import Environment
    from trtllm_results.store.files import check_writable

    gpu = _gpu()
    check_writable(record, plot)
    environment = Environment.capture(use_gpu=True)
    published = published_ops.by_shape(environment.device)
    able = published_ops.ours(published, [name.strip() for name in ops.split(",") if name.strip()])

    from trtllm_bench.build_progress import build_progress
    from trtllm_bench.micro.observatory import compile_groups, groups_of, rule_of, run
    from trtllm_bench.micro.show import print_beside
    from trtllm_bench.micro.timing import CuptiTimer
    from trtllm_bench.roofline.hardware import ceilings_for
    from trtllm_dashboards.tables import plain_console

    console = plain_console()
    chosen = published_ops.sample(able, limit)
    groups, arch = groups_of(chosen), arch_of(gpu)
    console.print(f"{len(chosen):,} of {len(able):,} shapes; compiling the kernels of {len(groups)} plans", style="dim")
    with build_progress() as report:
        compile_groups(groups, arch, page_size, partial(report, "kernels"))
    hardware, notes = ceilings_for(environment)
    done: list[published_ops.OpBeside] = []

    def outcome_of(rows: list[published_ops.OpBeside], wrong: list[str]) -> published_ops.OpRun:
        command = shlex.join(["trtllm-bench", *sys.argv[1:]])
        told = (*published_ops.left_out(published), *notes)
        return published_ops.OpRun(environment.device, tuple(rows), command, environment.git_revision, wrong=tuple(wrong), notes=told)

    def tell(one: published_ops.OpBeside) -> None:
        done.append(one)
        if record is not None and len(done) % SAVED_EVERY == 0:
            outcome_of(done, []).save(record)
        if console.is_terminal:
            console.print(f"{one.shape.text}: {one.same_work_us:,.1f} us", style="dim")

    rule = rule_of(noise, min(seconds, MOST_SECONDS))
    rows, wrong = run(groups, published, arch, CuptiTimer(), rule, hardware, tell, page_size)
    outcome = outcome_of(rows, wrong)
    written = []
    if record is not None:
        outcome.save(record)
        written.append(f"results: {record}")
    if plot is not None:
        from trtllm_dashboards.plots.ops import write

        written.append(f"plot: {write(outcome, plot)}")
    print_beside(outcome, console)
    for line in written:
        console.print(line, soft_wrap=True)
    if wrong:
        raise typer.Exit(FAILURE)
