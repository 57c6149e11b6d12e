"""Our own engine as a target: found or built, loaded when first measured, driven in this process, emptied after a failure.

The engine's loop runs on a thread of its own between `start` and `stop`, so that the driver's thread only sends. Its step log becomes the
row's step table and the figures that only the engine can know (batch composition, cache use, preemptions).
"""

from __future__ import annotations

import gc
import hashlib
import json
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy.typing as npt

from trtllm_bench.commands._build_progress import build_progress
from trtllm_bench.errors import BenchError
from trtllm_bench.machine import arch_of, gpus
from trtllm_bench.measure.session import Identity, Load, Measurement, OnRequests
from trtllm_bench.measure.spec import EngineWish, Report, longest
from trtllm_bench.roofline import ceilings
from trtllm_bench.roofline.costs import ModelCost, doubtful, utilisation
from trtllm_bench.targets.drive import drive
from trtllm_bench.targets.native_engine import NativeTarget
from trtllm_engines.compiler.plan import Profile
from trtllm_engines.engine.cache import cached_engine
from trtllm_engines.engine.folder import CHECKSUMS, load_engine, rank_weights
from trtllm_engines.llm import LLM
from trtllm_engines.models.presets import resolve_model
from trtllm_engines.quantization import check_types
from trtllm_engines.runtime.ranges import annotate, check_detail
from trtllm_engines.runtime.scheduler import POLICIES, Policy
from trtllm_results.metrics.requests import RequestLog
from trtllm_results.record.environment import Environment
from trtllm_workloads.request import Workload

DEVICES = ("auto", "cpu", "cuda")
DEFAULT_BATCH = {"cuda": 256, "cpu": 32}
DEFAULT_TOKENS = {"cuda": 8192, "cpu": 2048}
DEFAULT_SEQ_LEN = 4096


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


def check(wish: EngineWish) -> None:
    """Finds what cannot work before anything is built. Raises `BenchError` or `EngineError`."""
    device_of(wish.device)
    check_detail(wish.nvtx_detail)
    if wish.policy not in POLICIES:
        raise BenchError(f"unknown scheduler policy '{wish.policy}'; choose from {', '.join(POLICIES)}")
    if wish.engine_dir is not None:
        load_engine(wish.engine_dir)
        return
    resolve_model(_model(wish))
    check_types(str(wish.precision), wish.kv_dtype, (_arch(wish),))


def _model(wish: EngineWish) -> str:
    if wish.model is None:
        raise BenchError("no model named; give --model or --engine-dir")
    return wish.model


def vocabulary_of(wish: EngineWish) -> int:
    if wish.engine_dir is not None:
        return load_engine(wish.engine_dir).plan.config.vocab_size
    return resolve_model(_model(wish)).config.vocab_size


def engine_for(wish: EngineWish, report: Report | None = None) -> Path:
    """The engine folder to run: the one named, or one built now or earlier for this device and these ranges."""
    if wish.engine_dir is not None:
        return wish.engine_dir
    device = device_of(wish.device)
    model = _model(wish)
    batch = wish.max_batch_size or DEFAULT_BATCH[device]
    limit = resolve_model(model).config.max_position_embeddings
    profile = Profile(
        max_batch_size=batch,
        max_num_tokens=wish.max_num_tokens or max(DEFAULT_TOKENS[device], batch),
        max_seq_len=wish.max_seq_len or min(DEFAULT_SEQ_LEN, limit),
    )
    with _shown(report) as told:
        return cached_engine(
            model,
            str(wish.precision),
            kv_dtype=wish.kv_dtype,
            weights=wish.weights or "auto",
            seed=wish.seed,
            profile=profile,
            arches=(_arch(wish),),
            progress=told,
        )


def _arch(wish: EngineWish) -> str:
    return arch_of(gpus()[0]) if device_of(wish.device) == "cuda" else "cpu"


def _shown(report: Report | None) -> AbstractContextManager[Report]:
    """The caller's own view of progress, or bars of ours."""
    return build_progress() if report is None else nullcontext(report)


def load_engine_for(folder: Path, wish: EngineWish, report: Report | None = None) -> LLM:
    """The engine, loaded and ready to serve; a named one may be run at less than it was built for. Raises `EngineError`."""
    named = wish.engine_dir is not None
    with _shown(report) as told:
        return LLM(
            folder,
            max_batch_size=wish.max_batch_size if named else None,
            max_num_tokens=wish.max_num_tokens if named else None,
            max_seq_len=wish.max_seq_len if named else None,
            device=device_of(wish.device),
            kv_cache_fraction=wish.kv_cache_fraction,
            policy=cast(Policy, wish.policy),
            progress=told,
        )


class NativeSession:
    """A `measure.Session` over our engine."""

    def __init__(self, wish: EngineWish, report: Report | None = None) -> None:
        """`report` sees the engine being built and loaded; without one, progress bars are drawn."""
        self._wish, self._report = wish, report
        self._folder: Path | None = None
        self._llm: LLM | None = None
        self._gpus = 1 if device_of(wish.device) == "cuda" else 0
        self._build_s = self._load_s = 0.0

    def identity(self) -> Identity:
        began = time.perf_counter()
        self._folder = engine_for(self._wish, self._report)
        self._build_s = time.perf_counter() - began
        plan = load_engine(self._folder).plan
        profile = plan.profile
        named = self._wish.engine_dir is not None
        files = json.loads((self._folder / CHECKSUMS).read_text())
        weights = files.pop(rank_weights(0), None)
        source = dict(plan.weights_source)
        return Identity(
            target="native",
            engine_fingerprint=hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()[:16],
            weights_hash=weights["sha256"][:16] if weights is not None else f"dummy-{source.get('seed', 0)}",
            kv_dtype=plan.kv_dtype,
            model=plan.config.name,
            precision=plan.precision,
            settings={
                "policy": self._wish.policy,
                "max_batch_size": (named and self._wish.max_batch_size) or profile.max_batch_size,
                "max_num_tokens": (named and self._wish.max_num_tokens) or profile.max_num_tokens,
                "max_seq_len": (named and self._wish.max_seq_len) or profile.max_seq_len,
                "page_size": profile.page_size,
                "kv_cache_fraction": self._wish.kv_cache_fraction,
                "device": device_of(self._wish.device),
                **({} if self._wish.nvtx_detail == "off" else {"nvtx_detail": self._wish.nvtx_detail}),
            },
        )

    def measure(self, workload: Workload, load: Load, on_requests: OnRequests) -> Measurement:
        llm = self._loaded()
        limit = llm.loop.scheduler.config.max_seq_len
        if longest(workload) > limit:
            raise BenchError(
                f"the workload's longest sequence has {longest(workload)} tokens (prompt and output) but the engine takes {limit}; "
                "build it with a larger --max-seq-len, or ask for shorter lengths"
            )
        loop = llm.loop
        begun = len(loop.log)
        measurement = drive(NativeTarget(loop), workload, load, on_requests, self._gpus)
        steps = loop.log.rows()[begun:]
        steps = steps[steps["done_s"] >= float(measurement.log.intended_s.min())]
        more = (
            _step_figures(steps, loop.scheduler.pool.capacity)
            | self._utilisation(measurement.log, steps)
            | {"load_s": self._load_s, "build_s": self._build_s}
        )
        return replace(
            measurement,
            figures={**measurement.figures, **more},
            warnings=(*measurement.warnings, *doubtful(more)),
            steps={name: steps[name] for name in steps.dtype.names or ()},
        )

    def _utilisation(self, log: RequestLog, steps: npt.NDArray[Any]) -> dict[str, float]:
        """MFU and MBU, once `trtllm-bench ceilings` has measured this device."""
        found = ceilings.cached(Environment.capture(use_gpu=self._gpus > 0))
        if found is None:
            return {}
        return utilisation(ModelCost.of(self._loaded().plan), found, log, steps, max(self._gpus, 1))

    @property
    def engine(self) -> LLM:
        """The engine, loaded; call `identity` first."""
        return self._loaded()

    def ready(self) -> None:
        self._loaded()

    def _loaded(self) -> LLM:
        if self._llm is None:
            assert self._folder is not None
            began = time.perf_counter()
            self._llm = load_engine_for(self._folder, self._wish, self._report)
            annotate(self._llm.loop, self._wish.nvtx_detail)
            self._load_s = time.perf_counter() - began
        return self._llm

    def recover(self) -> None:
        self._llm = None
        gc.collect()
        if self._gpus:
            import torch

            torch.cuda.empty_cache()

    def close(self) -> None:
        self.recover()


def _step_figures(steps: npt.NDArray[Any], pages: int) -> dict[str, float]:
    """Figures of the engine's own steps; `preemptions` in the log is a running total."""
    if not len(steps):
        return {}
    used = steps["kv_pages_used"] / max(pages, 1)
    return {
        "steps": float(len(steps)),
        "step_mean_ms": float((steps["done_s"].max() - steps["launched_s"].min()) / len(steps) * 1e3),
        "batch_mean": float((steps["decode_tokens"] + steps["context_seqs"]).mean()),
        "decode_tokens_per_step_mean": float(steps["decode_tokens"].mean()),
        "context_tokens_per_step_mean": float(steps["context_tokens"].mean()),
        "kv_used_peak_ratio": float(used.max()),
        "kv_used_mean_ratio": float(used.mean()),
        "preemptions": float(steps["preemptions"][-1] - steps["preemptions"][0]),
    }
