"""Building an engine: resolve the model, compile its plan and its kernels for every architecture, write the folder. No GPU is needed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

import torch

from trtllm_engines.checkpoints import WeightSource, open_weights
from trtllm_engines.checkpoints.checkpoint_precision import plan_for
from trtllm_engines.checkpoints.write import assemble, check_weights, weight_bytes, write_safetensors
from trtllm_engines.compiler.compile import compile_model
from trtllm_engines.compiler.fingerprint import CPU, parse_arches
from trtllm_engines.compiler.plan import ONE_GPU, ParallelLayout, Plan, Profile
from trtllm_engines.documents import regular_file
from trtllm_engines.engine.fits import products_of
from trtllm_engines.engine.folder import CHECKSUMS, CONSTANTS, COPIED, load_engine, rank_weights, stage_plan, writing
from trtllm_engines.errors import EngineError
from trtllm_engines.memory import allocating
from trtllm_engines.models.config import ModelConfig
from trtllm_engines.models.presets import ModelSource, resolve_model
from trtllm_engines.quantization.precision_map import check_entries_decide
from trtllm_engines.quantization.scheme import WIDE

Progress = Callable[[str, int, int], None]
"""(stage, done, total): stages are `compile`, `kernels sm_90`, `weights`."""

USUAL_PROFILE = Profile(max_batch_size=256, max_num_tokens=8192, max_seq_len=4096)
"""Of a model with so many positions; `default_profile` for any."""


def default_profile(config: ModelConfig, requested: Mapping[str, int] = MappingProxyType({}), usual: Profile = USUAL_PROFILE) -> Profile:
    """`usual` with what was asked for: no longer than the model's positions and window, no fewer tokens a step than sequences."""
    longest = min(config.max_position_embeddings, config.sliding_window or config.max_position_embeddings)
    sizes = {"max_seq_len": min(usual.max_seq_len, longest), **requested}
    if "max_num_tokens" not in requested:
        sizes["max_num_tokens"] = max(usual.max_num_tokens, sizes.get("max_batch_size", 0))
    if "max_batch_size" not in requested:
        sizes["max_batch_size"] = min(usual.max_batch_size, sizes["max_num_tokens"])
    return replace(usual, **sizes)


_CPU_DEVICE = torch.device("cpu")


def build(
    model: str | Path,
    precision: str,
    *,
    out: Path | str,
    weights: str | Path = "auto",
    seed: int = 0,
    kv_dtype: str = "auto",
    context_attention: str = WIDE,
    precision_map: str | Path | None = None,
    profile: Profile | None = None,
    arches: Sequence[str] = (CPU,),
    layout: ParallelLayout = ONE_GPU,
    gpu: str = "",
    mark_outputs: Sequence[str] = (),
    share: WeightPool | None = None,
    progress: Progress | None = None,
) -> Path:
    """Builds `model` (preset, Hugging Face folder or .gguf file) into engine folder `out` and returns it.

    `weights`: `auto` (the model's own, drawn from `seed` for a preset), `dummy`, or a folder or .gguf file. `arches`: `sm_80`, `sm_90`,
    ..., or `cpu` for no machine code. `context_attention`: what attention of prompts multiplies, `wide` or `fp8`. `precision_map`: a
    file of each module's precision, under precision `mixed`. `profile`: `default_profile`'s where none is given. `layout`: over how many
    GPUs it runs. `gpu`: the GPU it is for (`h200`, `NVIDIA H200`), whose recorded tactics are taken where there are such; else those of
    each architecture's GPU. `share`: files of weights that are the same in several engines are linked from there. Raises `EngineError` for
    anything asked for that cannot be built or written.
    """
    out = Path(out)
    report = progress or (lambda stage, done, total: None)
    arches = parse_arches(arches)
    resolved = resolve_model(model)
    profile = profile or default_profile(resolved.config)
    source = _weights(resolved, weights, seed)
    report("compile", 0, 1)
    origin = source.description.get("path", resolved.path)
    quant = plan_for(origin, precision, kv_dtype, precision_map, arches, context_attention)
    if precision_map is not None:
        check_entries_decide(precision_map, products_of(resolved.config))
    with allocating(f"compiling {resolved.config.name}"):
        stages = [
            compile_model(
                resolved.config,
                quant,
                profile,
                arches=arches,
                weights_source=source.description,
                mark_outputs=mark_outputs,
                layout=layout,
                stage=stage,
                gpu=gpu,
            )
            for stage in range(layout.pp)
        ]
    check_weights(source, *(compiled.plan for compiled in stages))
    plans = [_made_of(compiled.plan, str(model if resolved.path is None else os.path.realpath(resolved.path))) for compiled in stages]
    constants = {name: tensor for compiled in stages for name, tensor in compiled.constants.items()}
    specs = {name: spec for plan in plans for name, spec in plan.constants.items()}
    report("compile", 1, 1)
    with writing(out, _stored_bytes(plans, source)) as folder:
        write_safetensors(folder / CONSTANTS, specs, lambda name: constants[name])
        for arch in arches:
            _compile_kernels(plans, arch, folder, report)
        _write_plans(plans, source, folder, report, share)
        _copy_tokenizer(resolved.path or _existing(weights), folder)
    return out


def refit(engine: Path | str, weights: str | Path, *, seed: int = 0, progress: Progress | None = None) -> None:
    """Replaces an engine's weights, recompiling nothing. The engine stays as it was if the new weights do not fit."""
    path = Path(engine)
    source = open_weights(weights, seed)
    layout = load_engine(path).plan.parallel
    plans = [replace(load_engine(path, stage=stage).plan, weights_source=source.description) for stage in range(layout.pp)]
    check_weights(source, *plans)
    with writing(path, _stored_bytes(plans, source)) as folder:
        replaced = shutil.ignore_patterns(*map(stage_plan, range(layout.pp)), *map(rank_weights, range(layout.ranks)), CHECKSUMS)
        shutil.copytree(path, folder, copy_function=os.link, dirs_exist_ok=True, ignore=replaced)
        _write_plans(plans, source, folder, progress or (lambda stage, done, total: None))


def _made_of(plan: Plan, model: str) -> Plan:
    """`plan`, whose fingerprint also says which model it was made of."""
    fingerprint = plan.fingerprint
    return replace(plan, fingerprint=replace(fingerprint, provenance={**fingerprint.provenance, "model": model}))


def _stored_bytes(plans: Sequence[Plan], source: WeightSource) -> int:
    return 0 if source.description["kind"] == "dummy" else sum(plan.parallel.tp * weight_bytes(plan.weights) for plan in plans)


def _weights(model: ModelSource, weights: str | Path, seed: int) -> WeightSource:
    if str(weights) == "auto":
        return open_weights("dummy" if model.path is None else model.path, seed)
    return open_weights(weights, seed)


def _compile_kernels(plans: Sequence[Plan], arch: str, folder: Path, report: Progress) -> None:
    if arch == CPU:
        return
    from trtllm_kernels.compile.aot import compile_all

    specs = [kernel for plan in plans for op in plan.ops for kernel in op.tactics[arch].kernels]
    cubins = compile_all(specs, arch, lambda done, total: report(f"kernels {arch}", done, total))
    for key, cubin in cubins.items():
        cubin.save(folder / "kernels" / arch, key)


def _write_plans(plans: Sequence[Plan], source: WeightSource, folder: Path, report: Progress, share: WeightPool | None = None) -> None:
    """The plan of every stage, and the weights of every rank where they are not drawn."""
    for plan in plans:
        (folder / stage_plan(plan.stage.index)).write_text(plan.to_json())
    if source.description["kind"] == "dummy":
        return
    written, total = 0, sum(plan.parallel.tp * len(plan.weights) for plan in plans)
    for plan in plans:
        for rank in range(plan.parallel.tp):
            path = folder / rank_weights(plan.stage.index * plan.parallel.tp + rank)
            if share is None or not share.link(plan, rank, path):
                with allocating(f"making the weights of {plan.config.name}"):
                    write_safetensors(
                        path,
                        plan.weights,
                        lambda name, plan=plan, rank=rank: assemble(plan, name, source, _CPU_DEVICE, rank),  # type: ignore[misc]
                        lambda done, _, written=written: report("weights", written + done, total),  # type: ignore[misc]
                    )
                if share is not None:
                    share.add(plan, rank, path)
            written += len(plan.weights)
            report("weights", written, total)


class WeightPool(Protocol):
    """Files of weights that engines share."""

    def link(self, plan: Plan, rank: int, path: Path) -> bool:
        """Makes `path` a link to the weights of `rank` of such a plan; False where there are none, or none that can be linked."""

    def add(self, plan: Plan, rank: int, path: Path) -> None:
        """Keeps `path` for the next engine."""


def _existing(weights: str | Path) -> Path | None:
    return Path(weights) if Path(weights).exists() else None


def _copy_tokenizer(origin: Path | None, folder: Path) -> None:
    """From the model's folder or file; a preset takes that of the weights it is built with."""
    if origin is None:
        return
    if origin.is_file():
        from trtllm_engines.checkpoints.gguf_tokenizer import write_tokenizer
        from trtllm_engines.models.gguf_file import GgufFile

        write_tokenizer(GgufFile(origin), folder)
        return
    for name in COPIED:
        if os.path.lexists(origin / name):
            shutil.copyfile(_readable(origin / name), folder / name)


def _readable(path: Path) -> Path:
    """`path`. Raises `EngineError` for a link to nothing, a folder, pipe or device: a model with a broken tokenizer is not one without."""
    try:
        regular_file(path)
    except FileNotFoundError:
        raise EngineError(f"{path} is a link to a file that does not exist; download it again, or remove it") from None
    return path
