"""`build`: model + precision + ranges -> engine folder. Kernels are compiled ahead of time for each architecture named, GPU or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from trtllm_bench.commands import _options as options
from trtllm_bench.errors import BenchError


def command(
    model: options.Model = None,
    precision: options.Precision = None,
    precision_map: Annotated[Path | None, typer.Option("--precision-map", help="TOML file: the precision of each module.")] = None,
    kv_dtype: Annotated[str | None, options.option("kv_dtype")] = None,
    context_attention: options.ContextAttention = None,
    weights: options.Weights = None,
    arch: Annotated[
        str | None, typer.Option("--arch", help="List of sm_80, sm_86, sm_89, sm_90, cpu (default: this machine's GPU, else cpu).")
    ] = None,
    gpu: Annotated[
        str | None, typer.Option("--gpu", help="GPU whose recorded tactics to take, such as h200 (default: this machine's).")
    ] = None,
    recipe: Annotated[str | None, typer.Option("--recipe", help="A ready recipe's name or a .toml; other flags win over it.")] = None,
    max_batch_size: options.MaxBatchSize = None,
    max_num_tokens: options.MaxNumTokens = None,
    max_seq_len: options.MaxSeqLen = None,
    page_size: Annotated[int | None, typer.Option("--page-size", min=16, help="Tokens in a page of the KV cache, a power of two.")] = None,
    tp: Annotated[int | None, options.option("tp")] = None,
    pp: Annotated[int | None, options.option("pp")] = None,
    nnodes: Annotated[int, typer.Option("--nnodes", min=1, help="Hosts whose GPUs run the ranks, each as many.")] = 1,
    mark_output: Annotated[list[str] | None, typer.Option("--mark-output", help="Value to add as an output; may be repeated.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Seed of dummy weights (default 0).")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Engine folder (default: <model>-<precision>.engine).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was built as JSON.")] = False,
) -> None:
    """Build an engine ahead of time; works without a GPU.

    Examples:
      trtllm-bench build --model llama-3.1-8b --precision fp8 --arch sm_90
      trtllm-bench build --model tiny-llama --arch cpu --out tiny.engine --json
    """
    import time

    from trtllm_bench.build_progress import build_progress
    from trtllm_engines.checkpoints.checkpoint_precision import default_precision
    from trtllm_engines.compiler.plan import ParallelLayout
    from trtllm_engines.engine.build import build, default_profile
    from trtllm_engines.engine.recipes import load_recipe
    from trtllm_engines.models.presets import resolve_model
    from trtllm_engines.quantization.precision import canonical
    from trtllm_engines.quantization.registry import MIXED

    chosen: dict[str, Any] = {} if recipe is None else load_recipe(recipe).build_arguments()
    given = {"model": model, "kv_dtype": kv_dtype, "context_attention": context_attention, "weights": weights, "seed": seed}
    chosen |= {name: value for name, value in given.items() if value is not None}
    if "model" not in chosen:
        raise BenchError("no model named; give --model (a preset, or a folder with config.json) or --recipe")
    if arch is not None or recipe is None:
        chosen["arches"] = _arches(arch)
    named_by = "--gpu" if gpu is not None else f"{recipe}: gpu"
    gpu = chosen.get("gpu") or None if gpu is None else gpu
    if gpu is not None:
        check_gpu(gpu, chosen["arches"], named_by)
    chosen["gpu"] = _gpu(gpu)
    if precision_map is not None:
        if precision not in (None, MIXED):
            raise BenchError(f"--precision-map says the precision of each module, and --precision is {precision}; leave one of them out")
        precision, chosen["precision_map"] = MIXED, precision_map
    if precision is not None or recipe is None:
        default = default_precision(chosen["model"], tuple(chosen["arches"]) != ("cpu",)) if precision is None else canonical(precision)
        chosen["precision"] = default
    if tp is not None or pp is not None or nnodes > 1:
        chosen["layout"] = ParallelLayout(tp or 1, pp or 1, nnodes)
    sizes = {"max_batch_size": max_batch_size, "max_num_tokens": max_num_tokens, "max_seq_len": max_seq_len, "page_size": page_size}
    asked = {name: size for name, size in sizes.items() if size is not None}
    known = chosen.get("profile")
    chosen["profile"] = replace(known, **asked) if known else default_profile(resolve_model(chosen["model"]).config, asked)
    _note_if_too_large(chosen)
    note_if_not_tuned(gpu, chosen["arches"])
    folder = out or Path(f"{Path(chosen['model']).name}-{chosen['precision']}.engine")
    began = time.perf_counter()
    with build_progress() as report:
        build(**chosen, out=folder, mark_outputs=mark_output or (), progress=report)
    _print_built(folder, time.perf_counter() - began, as_json)


def _print_built(folder: Path, build_s: float, as_json: bool) -> None:
    from trtllm_engines.engine.folder import load_engine
    from trtllm_engines.engine.inspect import describe
    from trtllm_engines.quantization.scheme import WIDE

    if as_json:
        import json

        typer.echo(json.dumps({**describe(folder), "build_s": round(build_s, 3)}, indent=2, default=str))
        return
    plan = load_engine(folder).plan
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 2**20
    context = "" if plan.quant.context_attention == WIDE else f", context attention {plan.quant.context_attention}"
    types = f"{plan.precision}, KV cache {plan.kv_dtype}{context}" + (
        f", for {plan.parallel.ranks} GPUs" if plan.parallel.ranks > 1 else ""
    )
    typer.echo(f"{folder}: {plan.config.name} {types}, for {', '.join(plan.fingerprint.arches)}, {len(plan.ops)} ops, {size:,.1f} MiB")
    typer.echo(f"built in {build_s:.1f} s")


def _note_if_too_large(chosen: Mapping[str, Any]) -> None:
    """Says before the build what of it cannot run on this machine; another may run it."""
    from trtllm_engines.checkpoints.checkpoint_precision import plan_for
    from trtllm_engines.compiler.plan import ONE_GPU
    from trtllm_engines.engine.fits import too_large
    from trtllm_engines.models.presets import resolve_model

    source = resolve_model(chosen["model"])
    weights = chosen.get("weights", "auto")
    origin = source.path if weights in ("auto", "dummy") else weights
    kv_dtype, precision_map = chosen.get("kv_dtype", "auto"), chosen.get("precision_map")
    quant = plan_for(origin, chosen["precision"], kv_dtype, precision_map, chosen["arches"])
    for arch in chosen["arches"]:
        if said := too_large(source.config, quant, chosen["profile"], arch, chosen.get("layout", ONE_GPU)):
            typer.echo(f"trtllm-bench: note: this machine cannot run the engine: {said}", err=True)


def note_if_not_tuned(gpu: str | None, arches: Sequence[str]) -> None:
    """Says whose tactics are taken for a GPU that was asked for and has none."""
    from trtllm_kernels import tactics

    for arch in arches if gpu and tuple(arches) != ("cpu",) else ():
        taken = tactics.in_use(arch, gpu or "")
        if taken != tactics.short_name(gpu or ""):
            known = f"those of {taken} are taken" if taken else "defaults are taken"
            typer.echo(f"trtllm-bench: note: no tactics of {gpu} are recorded for {arch}; {known}", err=True)


def check_gpu(gpu: str, arches: Sequence[str], named_by: str) -> None:
    """Raises `BenchError` for an unknown GPU in a build for the CPU alone; `note_if_not_tuned` tells of others."""
    from trtllm_bench.roofline.hardware import GPUS
    from trtllm_kernels import tactics

    known = dict.fromkeys([*GPUS, *sorted(file.stem for file in tactics.folder().glob("*.json"))])
    if tuple(arches) == ("cpu",) and tactics.short_name(gpu) not in known:
        raise BenchError(
            f"{named_by} is '{gpu}', which no tactics or data sheet here are of; choose from {', '.join(known)}, or leave it out"
        )


def _gpu(name: str | None) -> str:
    """That named, else this machine's, else none."""
    from trtllm_bench.machine import gpus

    return name if name is not None else next((str(device["gpu"]) for device in gpus()), "")


def _arches(names: str | None) -> tuple[str, ...]:
    """Those named, else this machine's GPU, else none."""
    from trtllm_bench.machine import arch_of, gpus

    if names is not None:
        return tuple(name.strip() for name in names.split(",") if name.strip())
    devices = gpus()
    return (arch_of(devices[0]) if devices else "cpu",)
