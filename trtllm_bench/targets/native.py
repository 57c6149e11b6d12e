"""Our own engine as a target. Registered here without importing it; what runs is in `native_engine.py` and `native_target.py`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from trtllm_bench.errors import BenchError, LayoutError
from trtllm_bench.machine import arch_of, gpus
from trtllm_bench.spec.measurement import EngineSpec, MeasurementSpec
from trtllm_bench.targets.registry import OnBuild, Tokenize, register
from trtllm_results.record.cell import OWN_TARGET

if TYPE_CHECKING:
    from trtllm_bench.targets.native_engine import OpenEngine
    from trtllm_engines.checkpoints.tokenizer import Tokenizer
    from trtllm_engines.compiler.plan import ParallelLayout

TOKENIZER = "tokenizer.json"
DEVICES = ("auto", "cpu", "cuda")
RANK_BYTES = 350e6
"""Memory that the process of a rank on a CPU takes before it has weights (measured with tiny-llama)."""


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


def gpu_for(device: str) -> str:
    """Name of the GPU to build for; "" on the CPU."""
    return str(gpus()[0].get("gpu", "")) if device_of(device) == "cuda" else ""


def model_of(engine: EngineSpec) -> str:
    """Raises `BenchError` when none is named."""
    if engine.model is None:
        raise BenchError("no model named; give --model or --engine-dir")
    return engine.model


def check(spec: MeasurementSpec) -> None:
    """Raises `BenchError` or `EngineError` for what cannot work."""
    from trtllm_engines.compiler.plan import ParallelLayout
    from trtllm_engines.engine.folder import load_engine
    from trtllm_engines.errors import EngineError
    from trtllm_engines.models.presets import resolve_model
    from trtllm_engines.quantization import check_types
    from trtllm_engines.quantization.scheme import WIDE
    from trtllm_engines.runtime.ranges import check_detail
    from trtllm_engines.runtime.scheduler import POLICIES

    engine = spec.engine
    device_of(engine.device)
    check_detail(engine.nvtx_detail)
    if engine.policy not in POLICIES:
        raise BenchError(f"unknown scheduler policy '{engine.policy}'; choose from {', '.join(POLICIES)}")
    if (engine.nnodes or 1) > 1 and engine.rdzv_endpoint is None:
        raise BenchError(f"--nnodes is {engine.nnodes}, and the other hosts must know where to join; give --rdzv-endpoint HOST:PORT too")
    if engine.engine_dir is not None:
        named = load_engine(engine.engine_dir)
        named.check_layout(*(None if ranks == 1 else ranks for ranks in (engine.tp, engine.pp)))
        built = named.plan.parallel
        if device_of(engine.device) == "cuda" and (engine.nnodes or 1) != built.nnodes:
            raise BenchError(
                f"{engine.engine_dir} was built for --nnodes {built.nnodes}, not {engine.nnodes or 1}; give --nnodes {built.nnodes}, or "
                "build another engine"
            )
        _check_machine(engine, built)
        return
    try:
        layout = ParallelLayout(engine.tp, engine.pp, engine.nnodes or 1)
    except EngineError as error:
        raise LayoutError(str(error)) from None
    _check_machine(engine, layout)
    resolve_model(model_of(engine))
    check_types(str(engine.precision), engine.kv_dtype, (arch_for(engine.device),), engine.context_attention or WIDE)


def _check_machine(engine: EngineSpec, layout: ParallelLayout) -> None:
    """Raises `LayoutError` when this machine has fewer GPUs than `engine`, so laid out, needs on each host. On a CPU: when its memory is
    too small for the ranks' processes."""
    from trtllm_engines.memory import host_free_bytes

    of_host = layout.ranks // layout.nnodes
    needed = of_host * engine.replicas
    if needed == 1:
        return
    flags = " or ".join(name for name, size in (("--tp", layout.tp), ("--pp", layout.pp), ("--replicas", engine.replicas)) if size > 1)
    if device_of(engine.device) == "cpu":
        if (least := needed * RANK_BYTES) > (free := host_free_bytes()):
            raise LayoutError(
                f"the engine takes {needed} processes of at least {RANK_BYTES / 1e6:.0f} MB each ({least / 1e9:.0f} GB) and this machine "
                f"has {free / 1e9:.0f} GB free; ask for a smaller {flags}"
            )
        return
    if (here := len(gpus())) >= needed:
        return
    copies = f"{engine.replicas} replicas of {of_host} GPUs each take" if engine.replicas > 1 and of_host > 1 else "the engine takes"
    raise LayoutError(f"{copies} {needed} GPUs and this machine has {here}; ask for a smaller {flags}")


def vocabulary(engine: EngineSpec) -> int:
    from trtllm_engines.engine.folder import load_engine
    from trtllm_engines.models.presets import resolve_model

    if engine.engine_dir is not None:
        return load_engine(engine.engine_dir).plan.config.vocab_size
    return resolve_model(model_of(engine)).config.vocab_size


def tokenize(spec: MeasurementSpec) -> Tokenize:
    """By `--tokenizer`, else the model's or the engine's own. What it returns raises `BenchError` where there is none."""

    def ids(text: str) -> Sequence[int]:
        tokenizer = tokenizer_of(spec.server.tokenizer, spec.engine)
        if tokenizer is None:
            raise BenchError(
                f"dataset {spec.workload.dataset} holds texts and {spec.engine.model or spec.engine.engine_dir} has no tokenizer; "
                "give --tokenizer a folder with tokenizer.json"
            )
        return tokenizer.encode(text)

    return ids


@lru_cache(maxsize=4)
def tokenizer_of(named: Path | None, engine: EngineSpec) -> Tokenizer | None:
    from trtllm_engines.checkpoints.model_tokenizer import model_tokenizer
    from trtllm_engines.checkpoints.tokenizer import Tokenizer
    from trtllm_engines.engine.folder import load_engine
    from trtllm_engines.models.presets import resolve_model

    if named is not None:
        folder = named.parent if named.name == TOKENIZER else named
        if not (folder / TOKENIZER).is_file():
            raise BenchError(f"--tokenizer {named}: there is no {TOKENIZER}; name the folder of a Hugging Face model")
        return Tokenizer(folder)
    if engine.engine_dir is not None:
        return load_engine(engine.engine_dir).tokenizer
    return model_tokenizer(resolve_model(model_of(engine)).path)


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


register(
    OWN_TARGET,
    open=_open,
    check=check,
    vocabulary=vocabulary,
    tokenize=tokenize,
    longest=longest,
    runs_on_gpu=lambda device: device_of(device) == "cuda",
)
