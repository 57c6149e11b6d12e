"""What a command asks of a target and of a workload, before either exists: the flags of several commands in one shape.

A wish is resolved here into a session (`open_session`) and a workload (`make_workload`); this is the only module that knows which targets
there are. It imports neither torch nor the engine until one is wanted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from trtllm_bench.errors import BenchError
from trtllm_bench.measure.session import Session
from trtllm_workloads.request import Workload

DEFAULT_VOCABULARY = 32_000
Report = Callable[[str, int, int], None]
"""(stage, done, total) of an engine being built or loaded."""
TARGETS = ("native", "null", "fake")


@dataclass(frozen=True)
class EngineWish:
    """An engine to be had: from `engine_dir` as it is, or built of `model` for at least these ranges. None leaves a choice open."""

    model: str | None
    precision: str | None
    engine_dir: Path | None = None
    weights: str | None = None
    """`dummy`, a path, or None for the model's own (dummy for presets)."""
    device: str = "auto"
    max_batch_size: int | None = None
    max_num_tokens: int | None = None
    max_seq_len: int | None = None
    kv_cache_fraction: float = 0.9
    policy: str = "guaranteed_no_evict"
    seed: int = 0
    kv_dtype: str = "auto"
    nvtx_detail: str = "off"


@dataclass(frozen=True)
class WorkloadWish:
    """Requests to be sent: those of `dataset` (anything `open_workload` knows), or random prompts of fixed lengths.

    They go out at `request_rate` (requests/s), by the process `arrivals` names, or at the dataset's own times with `replay`; else as fast
    as the load allows.
    """

    requests: int | None
    isl: int
    osl: int
    dataset: str | None = None
    request_rate: float = 0.0
    burstiness: float = 1.0
    replay: bool = False
    time_scale: float = 1.0
    seed: int = 0
    arrivals: str | None = None
    """In short form, such as `on-off:30,5,10`."""

    def __post_init__(self) -> None:
        if self.replay + (self.request_rate > 0) + (self.arrivals is not None) > 1:
            raise BenchError("--request-rate, --arrivals and --replay each say when requests go out; give one of them")
        if self.replay and self.dataset is None:
            raise BenchError("--replay needs --dataset, whose times it sends at")
        if self.time_scale != 1 and self.dataset is None:
            raise BenchError("--time-scale multiplies a dataset's times; give --dataset too")

    @property
    def open_loop(self) -> bool:
        return self.replay or self.request_rate > 0 or self.arrivals is not None


def default_model(
    model: str | None, precision: str | None, engine_dir: Path | None, target: str, device: str, kv_dtype: str = "auto"
) -> tuple[str | None, str | None]:
    """Model and precision where none was named: nothing beside an engine folder, else what suits the device. Raises `BenchError`."""
    if engine_dir is not None:
        if model is not None or precision is not None:
            raise BenchError("--engine-dir already says model and precision; give either it or --model and --precision")
        if kv_dtype != "auto":
            raise BenchError("--engine-dir already says what the KV cache is; leave --kv-dtype out, or give --model instead")
        return None, None
    if is_url(target):
        return model, precision
    gpu = runs_on_gpu(target, device)
    chosen = model or ("llama-3.1-8b" if gpu else "tiny-llama")
    if precision is not None:
        return chosen, precision
    from trtllm_engines.checkpoints.checkpoint_precision import default_precision

    return chosen, default_precision(chosen, gpu)


def check_target(target: str, wish: EngineWish) -> None:
    """Finds bad input before anything is built or measured. Raises `BenchError` or the engine's errors."""
    if is_url(target):
        from trtllm_bench.targets.http import HttpTarget

        HttpTarget(target).check()
        return
    if target not in TARGETS:
        raise BenchError(
            f"unknown target '{target}'; choose from {', '.join(TARGETS)}, or the address of a server such as http://127.0.0.1:8000"
        )
    if target == "native":
        from trtllm_bench.targets import native

        native.check(wish)


def is_url(target: str) -> bool:
    """Whether a target is an OpenAI-compatible server's address."""
    return target.startswith(("http://", "https://"))


def runs_on_gpu(target: str, device: str) -> bool:
    if target != "native":
        return False
    from trtllm_bench.targets import native

    return native.device_of(device) == "cuda"


def open_session(target: str, wish: EngineWish, report: Report | None = None) -> Session:
    """A session; nothing is built or loaded until it is asked for its identity or a measurement, which `report` then sees."""
    if target == "native":
        from trtllm_bench.targets import native

        return native.NativeSession(wish, report)
    from trtllm_bench.targets.drive import scripted_session, server_session

    if is_url(target):
        return server_session(target)
    return scripted_session(target, wish.max_batch_size or 1)


def vocabulary_of(target: str, wish: EngineWish) -> int:
    """Token ids that prompts may be drawn from."""
    if target != "native":
        return DEFAULT_VOCABULARY
    from trtllm_bench.targets import native

    return native.vocabulary_of(wish)


def make_workload(wish: WorkloadWish, vocabulary: int) -> Workload:
    """The requests. Raises `BenchError` or `WorkloadError`."""
    from trtllm_workloads.arrivals import from_flags, parse
    from trtllm_workloads.open_workload import open_workload
    from trtllm_workloads.synthetic import fixed, generator

    if wish.dataset is not None:
        made = open_workload(wish.dataset, requests=wish.requests, vocab_size=vocabulary, seed=wish.seed, time_scale=wish.time_scale)
    else:
        made = replace(fixed(wish.requests or 1, wish.isl, wish.osl, vocab_size=vocabulary, seed=wish.seed), name="fixed")
    if wish.replay and not len(made.arrival_s):
        raise BenchError(f"workload {made.name} has no arrival times to replay; give --request-rate, or leave --replay out")
    if wish.request_rate or wish.arrivals is not None:
        arrivals = from_flags(wish.request_rate, wish.burstiness) if wish.arrivals is None else parse(wish.arrivals)
        return made.with_arrivals(arrivals.times(made.num_arrivals, generator(wish.seed, "arrivals")))
    return made


def rate_of(wish: WorkloadWish, workload: Workload) -> float:
    """Requests/s asked of an open loop; where times were given otherwise, their mean rate; 0 for a closed loop."""
    if wish.request_rate or not wish.open_loop:
        return wish.request_rate
    span = float(np.nanmax(workload.arrival_s)) if len(workload.arrival_s) else 0.0
    return float(f"{workload.num_arrivals / span:.4g}") if span > 0 else 0.0


def longest(workload: Workload) -> int:
    """Tokens of the longest sequence a workload asks for."""
    return int((workload.input_tokens.astype(int) + workload.output_tokens).max())


def mean_lengths(workload: Workload) -> tuple[int, int]:
    """Mean prompt and output length, to the token."""
    return round(float(workload.input_tokens.mean())), round(float(workload.output_tokens.mean()))
