"""Our own engine, found or built, loaded when first needed, driven in this process, emptied after a failure.

Its loop runs on a thread of its own from `start` to `stop`, so that the driver's thread only sends. Token times are those of the engine's
steps (a token is seen when the step that made it ends), on the driver's clock. Every request generates exactly what it asks for
(`ignore_eos`): a random prompt's end-of-sequence token would cut runs short at random. The step log becomes the row's step table and the
figures that only the engine can know (batch composition, cache use, preemptions).
"""

from __future__ import annotations

import gc
import hashlib
import json
import time
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from trtllm_bench.build_progress import build_progress
from trtllm_bench.errors import BenchError
from trtllm_bench.load.target import Deliver, RequestOutcome, Target
from trtllm_bench.roofline import ceilings
from trtllm_bench.roofline.costs import ModelCost, doubtful, mean_step_ms, utilisation
from trtllm_bench.spec.measurement import EngineSpec
from trtllm_bench.targets.native import arch_for, device_of, model_of
from trtllm_bench.targets.registry import OWN, Identity, OnBuild, RunDetails
from trtllm_engines.compiler.plan import ParallelLayout, Plan, Profile
from trtllm_engines.engine.cache import cached_engine
from trtllm_engines.engine.folder import CHECKSUMS, load_engine, rank_weights
from trtllm_engines.errors import EngineError
from trtllm_engines.llm import LLM
from trtllm_engines.models.presets import resolve_model
from trtllm_engines.runtime.engine_loop import EngineLoop, EngineThread
from trtllm_engines.runtime.ranges import annotate
from trtllm_engines.runtime.request import Request
from trtllm_engines.runtime.sampling_params import SamplingParams
from trtllm_engines.runtime.scheduler import Policy
from trtllm_results.metrics.requests import RequestLog
from trtllm_results.record.environment import Environment
from trtllm_workloads.request import RequestSpec, Workload

DEFAULT_BATCH = {"cuda": 256, "cpu": 32}
DEFAULT_TOKENS = {"cuda": 8192, "cpu": 2048}
DEFAULT_SEQ_LEN = 4096


def profile_for(spec: EngineSpec, device: str) -> Profile:
    """Ranges to build for: those asked for, and this device's defaults for the others."""
    batch = spec.max_batch_size or DEFAULT_BATCH[device]
    limit = resolve_model(model_of(spec)).config.max_position_embeddings
    profile = Profile(
        max_batch_size=batch,
        max_num_tokens=spec.max_num_tokens or max(DEFAULT_TOKENS[device], batch),
        max_seq_len=spec.max_seq_len or min(DEFAULT_SEQ_LEN, limit),
    )
    return profile if spec.page_size is None else replace(profile, page_size=spec.page_size)


def engine_folder(spec: EngineSpec, on_build: OnBuild | None = None) -> Path:
    """The engine folder to run: the one named, or one built now or earlier for this device and these ranges."""
    if spec.engine_dir is not None:
        return spec.engine_dir
    with _shown(on_build) as report:
        return cached_engine(
            model_of(spec),
            str(spec.precision),
            kv_dtype=spec.kv_dtype,
            weights=spec.weights or "auto",
            seed=spec.seed,
            profile=profile_for(spec, device_of(spec.device)),
            arches=(arch_for(spec.device),),
            layout=ParallelLayout(spec.tp),
            progress=report,
        )


def _shown(on_build: OnBuild | None) -> AbstractContextManager[OnBuild]:
    """The caller's own view of progress, or bars of ours."""
    return build_progress() if on_build is None else nullcontext(on_build)


def load_for(folder: Path, spec: EngineSpec, on_build: OnBuild | None = None) -> LLM:
    """The engine, loaded and ready to serve; a named one may be run at less than it was built for. Raises `EngineError`."""
    named = spec.engine_dir is not None
    with _shown(on_build) as report:
        return LLM(
            folder,
            max_batch_size=spec.max_batch_size if named else None,
            max_num_tokens=spec.max_num_tokens if named else None,
            max_seq_len=spec.max_seq_len if named else None,
            device=device_of(spec.device),
            kv_cache_fraction=spec.kv_cache_fraction,
            policy=cast(Policy, spec.policy),
            progress=report,
        )


class OpenEngine:
    """A `targets.registry.OpenTarget` over our engine."""

    def __init__(self, spec: EngineSpec, on_build: OnBuild | None = None) -> None:
        """`on_build` sees the engine being built and loaded; without one, progress bars are drawn."""
        self._spec, self._on_build = spec, on_build
        self._folder: Path | None = None
        self._llm: LLM | None = None
        self.gpus = spec.gpus if device_of(spec.device) == "cuda" else 0
        self.salt = 0
        self._build_s = self._load_s = 0.0
        self._steps_before = 0

    def identity(self) -> Identity:
        began = time.perf_counter()
        self._folder = engine_folder(self._spec, self._on_build)
        self._build_s = time.perf_counter() - began
        plan = load_engine(self._folder).plan
        served = self._settled(plan)
        self.gpus = served.gpus if self.gpus else 0  # a named engine has the layout it was built with
        files = json.loads((self._folder / CHECKSUMS).read_text())
        stored = [files.pop(rank_weights(rank), None) for rank in range(plan.parallel.tp)]
        weights = stored[0]
        return Identity(
            target=OWN,
            engine_fingerprint=hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()[:16],
            weights_hash=weights["sha256"][:16] if weights is not None else f"dummy-{dict(plan.weights_source).get('seed', 0)}",
            kv_dtype=plan.kv_dtype,
            model=plan.config.name,
            precision=plan.precision,
            places=served.max_batch_size or 0,
            engine=served,
        )

    def _settled(self, plan: Plan) -> EngineSpec:
        """Every choice as the engine has it: a named engine may be run at less than it was built for."""
        named, asked, profile = self._spec.engine_dir is not None, self._spec, plan.profile
        return replace(
            asked,
            device=device_of(asked.device),
            max_batch_size=(named and asked.max_batch_size) or profile.max_batch_size,
            max_num_tokens=(named and asked.max_num_tokens) or profile.max_num_tokens,
            max_seq_len=(named and asked.max_seq_len) or profile.max_seq_len,
            page_size=profile.page_size,
            tp=plan.parallel.tp,
        )

    def serve(self, workload: Workload) -> NativeTarget:
        loop = self.engine.loop
        limit = loop.scheduler.config.max_seq_len
        longest = workload.longest_sequence
        if longest > limit:
            raise BenchError(
                f"the workload's longest sequence has {longest} tokens (prompt and output) but the engine takes {limit}; "
                "build it with a larger --max-seq-len, or ask for shorter lengths"
            )
        self._steps_before = len(loop.log)
        return NativeTarget(loop)

    def details(self, log: RequestLog) -> RunDetails:
        loop = self.engine.loop
        steps = loop.log.rows()[self._steps_before :]
        steps = steps[steps["done_s"] >= float(log.intended_s.min())]
        figures = (
            _step_figures(steps, loop.scheduler.pool.capacity)
            | self._utilisation(log, steps)
            | {"load_s": self._load_s, "build_s": self._build_s}
        )
        return RunDetails(figures, {name: steps[name] for name in steps.dtype.names or ()}, doubtful(figures))

    def _utilisation(self, log: RequestLog, steps: npt.NDArray[Any]) -> dict[str, float]:
        """MFU and MBU, once `trtllm-bench ceilings` has measured this device."""
        measured = ceilings.cached(Environment.capture(use_gpu=self.gpus > 0))
        if measured is None:
            return {}
        return utilisation(ModelCost.of(self.engine.plan), measured, log, steps, max(self.gpus, 1))

    @property
    def engine(self) -> LLM:
        """The engine, loaded; call `identity` first."""
        if self._llm is None:
            assert self._folder is not None
            began = time.perf_counter()
            self._llm = load_for(self._folder, self._spec, self._on_build)
            annotate(self._llm.loop, self._spec.nvtx_detail)
            self._load_s = time.perf_counter() - began
        return self._llm

    def ready(self) -> None:
        assert self.engine is not None

    def recover(self) -> None:
        loaded, self._llm = self._llm, None
        if loaded is not None:
            with suppress(EngineError):  # what its ranks died of, the cell has told
                loaded.close()
        del loaded
        gc.collect()
        if self.gpus:
            import torch

            torch.cuda.empty_cache()

    def close(self) -> None:
        self.recover()


class NativeTarget(Target):
    """Drives `loop`, which nobody else may step between `start` and `stop`."""

    def __init__(self, loop: EngineLoop) -> None:
        self._loop = loop
        self._thread: EngineThread | None = None

    def start(self, deliver: Deliver) -> None:
        self._deliver = deliver
        self._open: dict[int, Request] = {}
        self._thread = EngineThread(self._loop)

    def submit(self, request: RequestSpec, arrival_s: float) -> None:
        if request.prompt is None:
            raise ValueError("the workload gives text and the engine takes token ids; prepare it with a tokenizer")
        number = request.id
        sampling = SamplingParams(max_tokens=request.output_tokens, ignore_eos=True)
        accepted = self._loop.add_request(
            request.prompt, sampling, arrival_s=arrival_s, on_finish=lambda finished: self._finish(number, finished)
        )
        if not accepted.finished:
            self._open[number] = accepted

    def _finish(self, number: int, request: Request) -> None:
        self._open.pop(number, None)
        times = request.token_times_s
        end = float(times[-1]) if len(times) else float(request.finished_s or np.nan)
        self._deliver(
            RequestOutcome(
                id=number,
                end_s=end,
                output_tokens=len(request.output),
                token_times_s=times,
                input_tokens=len(request.prompt),
                scheduled_s=float("nan") if request.scheduled_s is None else request.scheduled_s,
                preemptions=request.preemptions,
                error=request.error or "",
            )
        )

    def heard_s(self, request_id: int) -> float:
        """The end of the engine's latest step: a request that waits while the engine works is not forgotten."""
        steps = np.arange(max(0, len(self._loop.log) - 4), len(self._loop.log))
        return float(self._loop.log.times_of(steps.astype(np.int32)).max()) if len(steps) else float("nan")

    def cancel(self, request_id: int) -> None:
        running = self._open.pop(request_id, None)
        if running is not None:
            self._loop.cancel(running)

    def stop(self) -> None:
        """Cancels what is still running, so that the next run finds the engine empty."""
        for request in list(self._open.values()):
            self._loop.cancel(request)
        if self._thread is not None:
            self._thread.close()
            self._thread = None
        self._loop.run()


def _step_figures(steps: npt.NDArray[Any], pages: int) -> dict[str, float]:
    """Figures of the engine's own steps; `preemptions` in the log is a running total."""
    if not len(steps):
        return {}
    used = steps["kv_pages_used"] / max(pages, 1)
    return {
        "steps": float(len(steps)),
        "step_mean_ms": mean_step_ms(steps),
        "batch_mean": float((steps["decode_tokens"] + steps["context_seqs"]).mean()),
        "decode_tokens_per_step_mean": float(steps["decode_tokens"].mean()),
        "context_tokens_per_step_mean": float(steps["context_tokens"].mean()),
        "kv_used_peak_ratio": float(used.max()),
        "kv_used_mean_ratio": float(used.mean()),
        "preemptions": float(steps["preemptions"][-1] - steps["preemptions"][0]),
    }
