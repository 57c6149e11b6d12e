"""`build`: model + precision + ranges -> engine folder. Kernels are compiled ahead of time for each architecture named, GPU or not."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trtllm_bench import options
from trtllm_bench.errors import BenchError


def command(
    model: options.Model = None,
    precision: options.Precision = None,
    weights: options.Weights = None,
    arch: Annotated[
        str | None, typer.Option("--arch", help="List of sm_80, sm_86, sm_89, sm_90, cpu (default: this machine's GPU, else cpu).")
    ] = None,
    max_batch_size: Annotated[int, typer.Option("--max-batch-size", min=1, help="Most sequences in a step.")] = 256,
    max_num_tokens: Annotated[int, typer.Option("--max-num-tokens", min=1, help="Most tokens in a step.")] = 8192,
    max_seq_len: Annotated[int, typer.Option("--max-seq-len", min=1, help="Longest sequence, prompt and output together.")] = 4096,
    page_size: Annotated[int, typer.Option("--page-size", min=16, help="Tokens of a KV cache page, a power of two.")] = 32,
    mark_output: Annotated[list[str] | None, typer.Option("--mark-output", help="Value to add as an output; may be repeated.")] = None,
    seed: options.Seed = 0,
    out: Annotated[Path | None, typer.Option("--out", "--output-dir", help="Engine folder (default: <model>-<precision>.engine).")] = None,
) -> None:
    """Build an engine ahead of time; works without a GPU."""
    import time

    from trtllm_bench.build_progress import build_progress
    from trtllm_bench.machine import arch_of, gpus
    from trtllm_engines.build import build
    from trtllm_engines.engine_dir import load_engine
    from trtllm_engines.plan import Profile

    if model is None:
        raise BenchError("--model is missing: a preset's name, or a folder with config.json")
    found = gpus()
    arches = [name.strip() for name in arch.split(",")] if arch else [arch_of(found[0]) if found else "cpu"]
    kind = precision or ("fp32" if arches == ["cpu"] else "bf16")
    folder = out or Path(f"{Path(model).name}-{kind}.engine")
    profile = Profile(max_batch_size, max_num_tokens, max_seq_len, page_size)
    began = time.perf_counter()
    with build_progress() as report:
        build(
            model,
            kind,
            out=folder,
            weights=weights or "auto",
            seed=seed,
            profile=profile,
            arches=arches,
            mark_outputs=mark_output or (),
            progress=report,
        )
    plan = load_engine(folder).plan
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 2**20
    typer.echo(f"{folder}: {model} {kind} for {', '.join(plan.fingerprint.arches)}, {len(plan.ops)} ops, {size:,.1f} MiB")
    typer.echo(f"built in {time.perf_counter() - began:.1f} s")
