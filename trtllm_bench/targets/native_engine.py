"""Our own engine, found or built, loaded when first needed, emptied after a failure. `native_target.py` drives it.

The step log becomes the row's step table and the figures that only the engine can know (batch composition, cache use, preemptions).

Replicas are copies of the engine, each with a scheduler, a KV cache and processes of its own. Their steps are pooled.
"""

from __future__ import annotations

import gc
import hashlib
import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from trtllm_bench.build_progress import build_progress
from trtllm_bench.errors import BenchError
from trtllm_bench.roofline import ceilings
from trtllm_bench.roofline.costs import ModelCost, doubtful, mean_step_ms, utilisation
from trtllm_bench.spec.measurement import EngineSpec
from trtllm_bench.targets.native import arch_for, device_of, gpu_for, model_of
from trtllm_bench.targets.native_target import NativeTarget
from trtllm_bench.targets.registry import Identity, OnBuild, RunDetails
from trtllm_engines.compiler.plan import ParallelLayout, Plan, Profile
from trtllm_engines.engine.build import USUAL_PROFILE, default_profile
from trtllm_engines.engine.cache import cached_engine
from trtllm_engines.engine.checksums import read_checksums
from trtllm_engines.engine.folder import load_engine, rank_weights
from trtllm_engines.errors import EngineError
from trtllm_engines.llm import LLM
from trtllm_engines.models.presets import resolve_model
from trtllm_engines.quantization.scheme import WIDE
from trtllm_engines.runtime.host_ranks import Recorder
from trtllm_engines.runtime.ranges import annotate
from trtllm_engines.runtime.scheduler import Policy
from trtllm_engines.runtime.step_log import STEP_DTYPE
from trtllm_results.metrics.requests import RequestLog
from trtllm_results.record.cell import OWN_TARGET
from trtllm_results.record.environment import Environment
from trtllm_workloads.request import Workload
from trtllm_workloads.tokens import TokenPrompts

USUAL_PROFILES = {"cuda": USUAL_PROFILE, "cpu": replace(USUAL_PROFILE, max_batch_size=32, max_num_tokens=2048)}


def profile_for(spec: EngineSpec, device: str) -> Profile:
    """Ranges to build for: those asked for, and this device's defaults for the others."""
    requested = {one.name: size for one in fields(Profile) if (size := getattr(spec, one.name)) is not None}
    return default_profile(resolve_model(model_of(spec)).config, requested, USUAL_PROFILES[device])


def engine_folder(spec: EngineSpec, on_build: OnBuild | None = None) -> Path:
    """The engine folder to run: the one named, or one built now or earlier for this device and these ranges."""
    if spec.engine_dir is not None:
        return spec.engine_dir
    with _shown(on_build) as report:
        return cached_engine(
            model_of(spec),
            str(spec.precision),
            kv_dtype=spec.kv_dtype,
            context_attention=spec.context_attention or WIDE,
            weights=spec.weights or "auto",
            seed=spec.seed,
            profile=profile_for(spec, device_of(spec.device)),
            arches=(arch_for(spec.device),),
            layout=ParallelLayout(spec.tp, spec.pp, spec.nnodes or 1),
            gpu=gpu_for(spec.device),
            progress=report,
        )


def _shown(on_build: OnBuild | None) -> AbstractContextManager[OnBuild]:
    """The caller's own view of progress, or bars of ours."""
    return build_progress() if on_build is None else nullcontext(on_build)


def load_for(folder: Path, spec: EngineSpec, on_build: OnBuild | None = None, recorder: Recorder = "none") -> list[LLM]:
    """The engine's replicas, loaded and ready to serve; a named one may be run at less than it was built for. `recorder`: what ranks
    that are processes record their steps with. Raises `EngineError`."""
    with _shown(on_build) as report:
        if spec.replicas == 1:
            return [_load(folder, spec, None, report, recorder)]
        report("replicas", 0, spec.replicas)
        with ThreadPoolExecutor(spec.replicas) as pool:  # they start together: most of it is waiting for processes
            starting = [pool.submit(_load, folder, spec, number, lambda *_: None) for number in range(spec.replicas)]
            for done, _ in enumerate(as_completed(starting), 1):
                report("replicas", done, spec.replicas)
        failures = [(number, one.exception()) for number, one in enumerate(starting) if one.exception() is not None]
        if failures:
            for one in starting:
                if one.exception() is None:
                    one.result().close()
            number, error = failures[0]
            raise EngineError(f"replica {number + 1} of {spec.replicas}: {error}") from error
        return [one.result() for one in starting]


def _load(folder: Path, spec: EngineSpec, replica: int | None, report: OnBuild, recorder: Recorder = "none") -> LLM:
    named = spec.engine_dir is not None
    return LLM(
        folder,
        max_batch_size=spec.max_batch_size if named else None,
        max_num_tokens=spec.max_num_tokens if named else None,
        max_seq_len=spec.max_seq_len if named else None,
        device=device_of(spec.device),
        kv_cache_fraction=spec.kv_cache_fraction,
        policy=cast(Policy, spec.policy),
        replica=replica,
        nnodes=spec.nnodes or 1,
        rdzv_endpoint=spec.rdzv_endpoint,
        recorder=recorder,
        detail=spec.nvtx_detail,
        progress=report,
    )


class OpenEngine:
    """A `targets.registry.OpenTarget` over our engine."""

    def __init__(self, spec: EngineSpec, on_build: OnBuild | None = None, recorder: Recorder = "none") -> None:
        """`on_build` sees the engine being built and loaded; without one, progress bars are drawn. `recorder` is `load_for`'s."""
        self._recorder: Recorder = recorder
        self._spec, self._on_build = spec, on_build
        self._folder: Path | None = None
        self._replicas: list[LLM] = []
        self.gpus = spec.gpus if device_of(spec.device) == "cuda" else 0
        self.salt = 0
        self._build_s = self._load_s = 0.0
        self._steps_before: list[int] = []

    def identity(self) -> Identity:
        began = time.perf_counter()
        self._folder = engine_folder(self._spec, self._on_build)
        self._build_s = time.perf_counter() - began
        with _shown(self._on_build) as report:
            plan = load_engine(self._folder, verify="full" if self._spec.verify else "once", progress=report).plan
        served = self._settled(plan)
        self.gpus = served.gpus if self.gpus else 0  # a named engine has the layout it was built with
        files = {name: entry.model_dump() for name, entry in read_checksums(self._folder).items()}
        stored = [files.pop(rank_weights(rank), None) for rank in range(plan.parallel.ranks)]
        weights = stored[0]
        return Identity(
            target=OWN_TARGET,
            engine_fingerprint=hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()[:16],
            weights_hash=weights["sha256"][:16] if weights is not None else f"dummy-{dict(plan.weights_source).get('seed', 0)}",
            kv_dtype=plan.kv_dtype,
            model=plan.config.name,
            precision=plan.precision,
            places=(served.max_batch_size or 0) * served.replicas,
            engine=served,
        )

    def _settled(self, plan: Plan) -> EngineSpec:
        """Every choice as the engine has it: a named engine may be run at less than it was built for."""
        named, asked, profile = self._spec.engine_dir is not None, self._spec, plan.profile
        context = plan.quant.context_attention
        return replace(
            asked,
            device=device_of(asked.device),
            max_batch_size=(named and asked.max_batch_size) or profile.max_batch_size,
            max_num_tokens=(named and asked.max_num_tokens) or profile.max_num_tokens,
            max_seq_len=(named and asked.max_seq_len) or profile.max_seq_len,
            page_size=profile.page_size,
            context_attention=asked.context_attention or (None if context == WIDE else context),
            tp=plan.parallel.tp,
            pp=plan.parallel.pp,
        )

    def serve(self, workload: Workload) -> NativeTarget:
        loops = [llm.loop for llm in self.replicas]
        limit = loops[0].scheduler.config.max_seq_len
        longest = workload.longest_sequence
        if longest > limit:
            raise BenchError(
                f"the workload's longest sequence has {longest} tokens (prompt and output) but the engine takes {limit}; "
                "build it with a larger --max-seq-len, or ask for shorter lengths"
            )
        config = self.engine.engine.plan.config
        if isinstance(workload.prompts, TokenPrompts) and (highest := workload.prompts.highest) >= config.vocab_size:
            raise BenchError(
                f"the workload has token id {highest} and {config.name} knows 0 to {config.vocab_size - 1}; "
                f"make the dataset with prepare-dataset --vocab-size {config.vocab_size}"
            )
        self._steps_before = [len(loop.log) for loop in loops]
        return NativeTarget(loops)

    def details(self, log: RequestLog) -> RunDetails:
        begin_s = float(log.intended_s.min())
        logs = [llm.loop.log.rows()[before:] for llm, before in zip(self.replicas, self._steps_before, strict=True)]
        steps = [rows[rows["done_s"] >= begin_s] for rows in logs]
        pooled = pooled_steps(steps)
        figures = (
            pooled_figures(steps, self.engine.loop.scheduler.pool.capacity)
            | self._utilisation(log, pooled)
            | {"load_s": self._load_s, "build_s": self._build_s}
        )
        return RunDetails(figures, {name: pooled[name] for name in pooled.dtype.names or ()}, doubtful(figures))

    def _utilisation(self, log: RequestLog, steps: npt.NDArray[Any]) -> dict[str, float]:
        """MFU and MBU, once `trtllm-bench ceilings` has measured this device."""
        measured = ceilings.cached(Environment.capture(use_gpu=self.gpus > 0))
        if measured is None:
            return {}
        engine = self.engine.engine
        stages = [load_engine(engine.path, stage=stage).plan for stage in range(1, engine.plan.parallel.pp)]
        return utilisation(ModelCost.of_stages([engine.plan, *stages]), measured, log, steps, max(self.gpus, 1))

    @property
    def replicas(self) -> list[LLM]:
        """The engine, loaded as often as was asked for; call `identity` first."""
        if not self._replicas:
            assert self._folder is not None
            began = time.perf_counter()
            self._replicas = load_for(self._folder, self._spec, self._on_build, self._recorder)
            for llm in self._replicas:
                annotate(llm.loop, self._spec.nvtx_detail)
            self._load_s = time.perf_counter() - began
        return self._replicas

    @property
    def engine(self) -> LLM:
        """The first replica."""
        return self.replicas[0]

    def ready(self) -> None:
        assert self.replicas

    def recover(self) -> None:
        while self._replicas:  # no name may hold an engine here: its memory is free only once nothing refers to it
            with suppress(EngineError):  # what its ranks died of, the cell has told
                self._replicas.pop().close()
        gc.collect()
        if self.gpus:
            import torch

            torch.cuda.empty_cache()

    def close(self) -> None:
        self.recover()


def pooled_steps(replicas: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """The steps of all replicas in the order in which they ended; where there are several, column `replica` says whose each was."""
    if len(replicas) == 1:
        return replicas[0]
    steps = np.concatenate(list(replicas))
    pooled = np.empty(len(steps), np.dtype([*STEP_DTYPE.descr, ("replica", np.int32)]))
    for name in steps.dtype.names or ():
        pooled[name] = steps[name]
    pooled["replica"] = np.repeat(np.arange(len(replicas)), [len(one) for one in replicas])
    return pooled[np.argsort(pooled["done_s"], kind="stable")]


def pooled_figures(replicas: Sequence[npt.NDArray[Any]], pages: int) -> dict[str, float]:
    """Figures of the engine's own steps, those of all replicas together. `pages`: capacity of one replica's KV cache.

    `preemptions` in a log is a running total. A step's mean time is that of a replica's steps, not of the shorter spans between any two.
    """
    logs = [steps for steps in replicas if len(steps)]
    if not logs:
        return {}
    steps = np.concatenate(logs)
    used = steps["kv_pages_used"] / max(pages, 1)
    return {
        "steps": float(len(steps)),
        "step_mean_ms": sum(mean_step_ms(one) * len(one) for one in logs) / len(steps),
        "batch_mean": float((steps["decode_tokens"] + steps["context_seqs"]).mean()),
        "decode_tokens_per_step_mean": float(steps["decode_tokens"].mean()),
        "context_tokens_per_step_mean": float(steps["context_tokens"].mean()),
        "kv_used_peak_ratio": float(used.max()),
        "kv_used_mean_ratio": float(used.mean()),
        "preemptions": float(sum(one["preemptions"][-1] - one["preemptions"][0] for one in logs)),
    }
