"""`build`: model + precision + ranges -> engine folder. Kernels are compiled ahead of time for each architecture named, GPU or not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from trtllm_bench.commands import _options as options
from trtllm_bench.errors import BenchError


def command(
    model: options.Model = None,
    precision: options.Precision = None,
    kv_dtype: Annotated[str | None, options.option("kv_dtype")] = None,
    weights: options.Weights = None,
    arch: Annotated[
        str | None, typer.Option("--arch", help="List of sm_80, sm_86, sm_89, sm_90, cpu (default: this machine's GPU, else cpu).")
    ] = None,
    recipe: Annotated[str | None, typer.Option("--recipe", help="A ready recipe's name or a .toml; other flags win over it.")] = None,
    max_batch_size: options.MaxBatchSize = None,
    max_num_tokens: options.MaxNumTokens = None,
    max_seq_len: options.MaxSeqLen = None,
    page_size: Annotated[int | None, typer.Option("--page-size", min=16, help="Tokens of a KV cache page, a power of two.")] = None,
    tp: Annotated[int | None, options.option("tp")] = None,
    pp: Annotated[int | None, options.option("pp")] = None,
    mark_output: Annotated[list[str] | None, typer.Option("--mark-output", help="Value to add as an output; may be repeated.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Seed of dummy weights (default 0).")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Engine folder (default: <model>-<precision>.engine).")] = None,
) -> None:
    """Build an engine ahead of time; works without a GPU.

    Examples:
      trtllm-bench build --model llama-3.1-8b --precision fp8 --arch sm_90
      trtllm-bench build --model tiny-llama --arch cpu --out tiny.engine
    """
    import time

    from trtllm_bench.build_progress import build_progress
    from trtllm_engines.checkpoints.checkpoint_precision import default_precision
    from trtllm_engines.compiler.plan import ParallelLayout
    from trtllm_engines.engine.build import DEFAULT_PROFILE, build
    from trtllm_engines.engine.folder import load_engine
    from trtllm_engines.engine.recipes import load_recipe

    chosen: dict[str, Any] = {"profile": DEFAULT_PROFILE} if recipe is None else load_recipe(recipe).build_arguments()
    chosen |= {
        name: value for name, value in {"model": model, "kv_dtype": kv_dtype, "weights": weights, "seed": seed}.items() if value is not None
    }
    if "model" not in chosen:
        raise BenchError("no model named; give --model (a preset, or a folder with config.json) or --recipe")
    if arch is not None or recipe is None:
        chosen["arches"] = _arches(arch)
    if precision is not None or recipe is None:
        chosen["precision"] = precision or default_precision(chosen["model"], tuple(chosen["arches"]) != ("cpu",))
    if tp is not None or pp is not None:
        chosen["layout"] = ParallelLayout(tp or 1, pp or 1)
    sizes = {"max_batch_size": max_batch_size, "max_num_tokens": max_num_tokens, "max_seq_len": max_seq_len, "page_size": page_size}
    chosen["profile"] = replace(chosen["profile"], **{name: size for name, size in sizes.items() if size is not None})
    folder = out or Path(f"{Path(chosen['model']).name}-{chosen['precision']}.engine")
    began = time.perf_counter()
    with build_progress() as report:
        build(**chosen, out=folder, mark_outputs=mark_output or (), progress=report)
    plan = load_engine(folder).plan
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 2**20
    types = f"{plan.precision}, KV cache {plan.kv_dtype}" + (f", for {plan.parallel.ranks} GPUs" if plan.parallel.ranks > 1 else "")
    typer.echo(f"{folder}: {plan.config.name} {types}, for {', '.join(plan.fingerprint.arches)}, {len(plan.ops)} ops, {size:,.1f} MiB")
    typer.echo(f"built in {time.perf_counter() - began:.1f} s")


def _arches(names: str | None) -> tuple[str, ...]:
    """Those named, else this machine's GPU, else none."""
    from trtllm_bench.machine import arch_of, gpus

    if names is not None:
        return tuple(name.strip() for name in names.split(",") if name.strip())
    devices = gpus()
    return (arch_of(devices[0]) if devices else "cpu",)
