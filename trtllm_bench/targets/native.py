"""Our own engine as a target. Registered here without importing it; what runs is in `native_engine.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trtllm_bench.errors import BenchError
from trtllm_bench.machine import arch_of, gpus
from trtllm_bench.spec.measurement import EngineSpec, MeasurementSpec
from trtllm_bench.targets.registry import OWN, OnBuild, register

if TYPE_CHECKING:
    from trtllm_bench.targets.native_engine import OpenEngine

DEVICES = ("auto", "cpu", "cuda")


def device_of(device: str) -> str:
    """`cpu` or `cuda`. Raises `BenchError` for an unknown name, and for a GPU that is not there."""
    if device not in DEVICES:
        raise BenchError(f"unknown device '{device}'; choose from {', '.join(DEVICES)}")
    here = bool(gpus())
    if device == "cuda" and not here:
        raise BenchError(
            "a GPU was asked for (--device cuda) but none is usable here; run on the CPU with --device cpu, or see trtllm-bench doctor"
        )
    return "cuda" if here and device != "cpu" else "cpu"


def arch_for(device: str) -> str:
    """The architecture to build for: the GPU's, or `cpu`."""
    return arch_of(gpus()[0]) if device_of(device) == "cuda" else "cpu"


def model_of(engine: EngineSpec) -> str:
    """Raises `BenchError` when none is named."""
    if engine.model is None:
        raise BenchError("no model named; give --model or --engine-dir")
    return engine.model


def check(spec: MeasurementSpec) -> None:
    """Raises `BenchError` or `EngineError` for what cannot work."""
    from trtllm_engines.engine.folder import load_engine
    from trtllm_engines.models.presets import resolve_model
    from trtllm_engines.quantization import check_types
    from trtllm_engines.runtime.ranges import check_detail
    from trtllm_engines.runtime.scheduler import POLICIES

    engine = spec.engine
    device_of(engine.device)
    check_detail(engine.nvtx_detail)
    if engine.policy not in POLICIES:
        raise BenchError(f"unknown scheduler policy '{engine.policy}'; choose from {', '.join(POLICIES)}")
    if engine.engine_dir is not None:
        load_engine(engine.engine_dir)
        return
    resolve_model(model_of(engine))
    check_types(str(engine.precision), engine.kv_dtype, (arch_for(engine.device),))


def vocabulary(engine: EngineSpec) -> int:
    from trtllm_engines.engine.folder import load_engine
    from trtllm_engines.models.presets import resolve_model

    if engine.engine_dir is not None:
        return load_engine(engine.engine_dir).plan.config.vocab_size
    return resolve_model(model_of(engine)).config.vocab_size


def longest(engine: EngineSpec) -> int:
    """Most tokens of a sequence: what was asked for or built, and no more than the model has positions."""
    from trtllm_engines.engine.folder import load_engine
    from trtllm_engines.models.presets import resolve_model

    if engine.engine_dir is not None:
        most = load_engine(engine.engine_dir).plan.profile.max_seq_len
    else:
        most = resolve_model(model_of(engine)).config.max_position_embeddings
    return min(most, engine.max_seq_len or most)


def _open(spec: MeasurementSpec, on_build: OnBuild | None) -> OpenEngine:
    from trtllm_bench.targets.native_engine import OpenEngine

    return OpenEngine(spec.engine, on_build)


register(OWN, open=_open, check=check, vocabulary=vocabulary, longest=longest, runs_on_gpu=lambda device: device_of(device) == "cuda")
