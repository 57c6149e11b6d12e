"""From what was asked to what is run: the choices left open are settled here, by one rule for every command."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from trtllm_bench.errors import BenchError
from trtllm_bench.measure.workload import workload_of
from trtllm_bench.spec.knobs import knobs_of
from trtllm_bench.spec.measurement import EngineSpec, MeasurementSpec, ServerSpec
from trtllm_bench.targets.registry import runs_on_gpu, target_kind
from trtllm_workloads.request import Workload

MOST_SEQUENCES = 256
"""Sequences an engine is built for where nothing bounds those in flight."""


def with_model(spec: MeasurementSpec) -> MeasurementSpec:
    """With model and precision where none was named: nothing beside an engine folder or for a target that names its own, else what suits
    the device. Raises `BenchError`, and the engine's errors."""
    engine = spec.engine
    if engine.engine_dir is not None:
        if engine.model is not None or engine.precision is not None:
            raise BenchError("--engine-dir already says model and precision; give either it or --model and --precision")
        if engine.kv_dtype != "auto":
            raise BenchError("--engine-dir already says what the KV cache is; leave --kv-dtype out, or give --model instead")
        if engine.context_attention is not None:
            raise BenchError(
                "--engine-dir already says what attention of prompts multiplies; leave --context-attention out, or give --model"
            )
        if engine.page_size is not None:
            raise BenchError("--engine-dir already says the page size; leave --page-size out, or give --model instead")
        if engine.weights is not None:
            raise BenchError("--engine-dir already has its weights; leave --weights out, or swap them with trtllm-bench refit")
        return spec
    if target_kind(spec.target).names_its_model:
        return spec
    gpu = runs_on_gpu(spec)
    model, precision = engine.model or ("llama-3.1-8b" if gpu else "tiny-llama"), engine.precision
    if precision is None:
        precision = _default_precision(model, gpu)
    else:
        from trtllm_engines.quantization.precision import canonical

        precision = canonical(precision)
    return replace(spec, engine=replace(engine, model=model, precision=precision))


def check_server_flags(*specs: MeasurementSpec) -> None:
    """Raises `BenchError` for what only a server would be asked, where none of the targets is one."""
    if any(target_kind(spec.target).names_its_model for spec in specs):
        return
    for spec in specs:
        for one in knobs_of(ServerSpec):
            if one.name != "tokenizer" and getattr(spec.server, one.name) != one.default:
                raise BenchError(f"{'/'.join(one.flags)} says how to ask a server, and the target is {spec.target}; leave it out")


def _default_precision(model: str, gpu: bool) -> str:
    """A folder alone is looked into, by what brings torch: a scripted target does without that second of a process's start."""
    if Path(model).is_dir():
        from trtllm_engines.checkpoints.checkpoint_precision import default_precision

        return default_precision(model, gpu)
    from trtllm_engines.quantization.precision import default_unquantized

    return default_unquantized(gpu)


def sized(engine: EngineSpec, sequences: int, longest: int) -> EngineSpec:
    """An engine to be built for so many sequences in flight and tokens per sequence, where it was not said; a folder stays as it is.
    Replicas share the sequences evenly (`runtime.dispatch`)."""
    sequences = -(-sequences // engine.replicas)
    if engine.engine_dir is not None:
        return engine if engine.max_batch_size or not sequences else replace(engine, max_batch_size=sequences)
    return replace(engine, max_batch_size=engine.max_batch_size or sequences or None, max_seq_len=engine.max_seq_len or longest)


def misfit(spec: MeasurementSpec, longest: int) -> str:
    """Why the target cannot serve a sequence of `longest` tokens, as far as is known before anything is built; "" where it can."""
    limit = target_kind(spec.target).longest(spec.engine)
    if limit is None or longest <= limit:
        return ""
    cure = "ask for shorter --isl or --osl" if spec.workload.dataset is None else "give a dataset of shorter requests, or another --model"
    name = spec.engine.engine_dir or spec.engine.model
    return f"the longest sequence has {longest:,} tokens (prompt and output) but {name} takes {limit:,}; {cure}"


def prepare(spec: MeasurementSpec, least: int, per_place: int) -> tuple[MeasurementSpec, Workload]:
    """One measurement, complete and checked, with its requests: `per_place` of them for each sequence in flight, at least `least`,
    where it was not said how many. Raises the components' errors."""
    check_server_flags(spec)
    spec = with_model(spec).with_defaults(least, per_place)
    target_kind(spec.target).check(spec)
    workload = workload_of(spec)
    if reason := misfit(spec, workload.longest_sequence):
        raise BenchError(reason)
    sequences = spec.load.concurrency
    if not sequences and spec.engine.engine_dir is None:
        sequences = min(spec.workload.num_requests or MOST_SEQUENCES, MOST_SEQUENCES)
    return replace(spec, engine=sized(spec.engine, sequences, workload.longest_sequence)), workload
