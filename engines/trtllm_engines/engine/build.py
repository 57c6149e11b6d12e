"""Building an engine: resolve the model, compile its plan and its kernels for every architecture, write the folder. No GPU is needed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from trtllm_engines.checkpoints import WeightSource, open_weights
from trtllm_engines.checkpoints.checkpoint_precision import plan_for
from trtllm_engines.checkpoints.write import assemble, check_weights, weight_bytes, write_safetensors
from trtllm_engines.compiler.compile import compile_model
from trtllm_engines.compiler.plan import ONE_GPU, ParallelLayout, Plan, Profile
from trtllm_engines.engine.fingerprint import CPU, parse_arches
from trtllm_engines.engine.folder import CHECKSUMS, CONSTANTS, COPIED, PLAN, load_engine, rank_weights, writing
from trtllm_engines.models.presets import ModelSource, resolve_model

Progress = Callable[[str, int, int], None]
"""(stage, done, total): stages are `compile`, `kernels sm_90`, `weights`."""

DEFAULT_PROFILE = Profile(max_batch_size=256, max_num_tokens=8192, max_seq_len=4096)
_CPU_DEVICE = torch.device("cpu")


def build(
    model: str | Path,
    precision: str,
    *,
    out: Path | str,
    weights: str | Path = "auto",
    seed: int = 0,
    kv_dtype: str = "auto",
    profile: Profile = DEFAULT_PROFILE,
    arches: Sequence[str] = (CPU,),
    layout: ParallelLayout = ONE_GPU,
    mark_outputs: Sequence[str] = (),
    progress: Progress | None = None,
) -> Path:
    """Builds `model` (preset, Hugging Face folder or .gguf file) into engine folder `out` and returns it.

    `weights`: `auto` (the model's own, drawn from `seed` for a preset), `dummy`, or a folder or .gguf file. `arches`: `sm_80`, `sm_90`,
    ..., or `cpu` for no machine code. `layout`: over how many GPUs it runs. Raises `EngineError` for anything asked for that cannot be
    built or written.
    """
    out = Path(out)
    report = progress or (lambda stage, done, total: None)
    arches = parse_arches(arches)
    resolved = resolve_model(model)
    source = _weights(resolved, weights, seed)
    report("compile", 0, 1)
    quant = plan_for(source.description.get("path", resolved.path), precision, kv_dtype)
    compiled = compile_model(
        resolved.config,
        quant,
        profile,
        arches=arches,
        weights_source=source.description,
        mark_outputs=mark_outputs,
        layout=layout,
    )
    check_weights(compiled.plan, source)
    made_by = {**compiled.plan.fingerprint.provenance, "model": str(model if resolved.path is None else resolved.path.resolve())}
    plan = replace(compiled.plan, fingerprint=replace(compiled.plan.fingerprint, provenance=made_by))
    report("compile", 1, 1)
    stored = 0 if source.description["kind"] == "dummy" else plan.parallel.tp * weight_bytes(plan.weights)
    with writing(out, stored) as folder:
        (folder / PLAN).write_text(plan.to_json())
        write_safetensors(folder / CONSTANTS, plan.constants, lambda name: compiled.constants[name])
        for arch in arches:
            _compile_kernels(plan, arch, folder, report)
        _write_weights(plan, source, folder, report)
        _copy_tokenizer(resolved.path or _existing(weights), folder)
    return out


def refit(engine: Path | str, weights: str | Path, *, seed: int = 0, progress: Progress | None = None) -> None:
    """Replaces an engine's weights, recompiling nothing. The engine stays as it was if the new weights do not fit."""
    path = Path(engine)
    source = open_weights(weights, seed)
    plan = replace(load_engine(path).plan, weights_source=source.description)
    check_weights(plan, source)
    stored = 0 if source.description["kind"] == "dummy" else plan.parallel.tp * weight_bytes(plan.weights)
    with writing(path, stored) as folder:
        replaced = shutil.ignore_patterns(PLAN, *map(rank_weights, range(plan.parallel.tp)), CHECKSUMS)
        shutil.copytree(path, folder, copy_function=os.link, dirs_exist_ok=True, ignore=replaced)
        (folder / PLAN).write_text(plan.to_json())
        _write_weights(plan, source, folder, progress or (lambda stage, done, total: None))


def _weights(model: ModelSource, weights: str | Path, seed: int) -> WeightSource:
    if str(weights) == "auto":
        return open_weights("dummy" if model.path is None else model.path, seed)
    return open_weights(weights, seed)


def _compile_kernels(plan: Plan, arch: str, folder: Path, report: Progress) -> None:
    if arch == CPU:
        return
    from trtllm_kernels.compile.aot import compile_all

    specs = [kernel for op in plan.ops for kernel in op.tactics[arch].kernels]
    cubins = compile_all(specs, arch, lambda key, done, total: report(f"kernels {arch}", done, total))
    for key, cubin in cubins.items():
        cubin.save(folder / "kernels" / arch, key)


def _write_weights(plan: Plan, source: WeightSource, folder: Path, report: Progress) -> None:
    if source.description["kind"] == "dummy":
        return
    for rank in range(plan.parallel.tp):
        write_safetensors(
            folder / rank_weights(rank),
            plan.weights,
            lambda name, rank=rank: assemble(plan, name, source, _CPU_DEVICE, rank),  # type: ignore[misc]
            lambda done, total, rank=rank: report("weights", rank * total + done, plan.parallel.tp * total),  # type: ignore[misc]
        )


def _existing(weights: str | Path) -> Path | None:
    return Path(weights) if Path(weights).exists() else None


def _copy_tokenizer(origin: Path | None, folder: Path) -> None:
    """From the model's folder or file; a preset takes that of the weights it is built with."""
    if origin is None:
        return
    if origin.is_file():
        from trtllm_engines.checkpoints.gguf_file import GgufFile
        from trtllm_engines.checkpoints.gguf_tokenizer import write_tokenizer

        write_tokenizer(GgufFile(origin), folder)
        return
    for name in COPIED:
        if (origin / name).is_file():
            shutil.copyfile(origin / name, folder / name)
