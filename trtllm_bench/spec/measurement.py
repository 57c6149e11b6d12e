"""One measured request: what serves, what is asked of it, and how it is sent. Every command that measures builds a `MeasurementSpec`.

`identity_settings` is the one rule for what enters a cell's key beside the columns of `Cell`, so the same work has the same key whichever
command asked for it. All four classes are frozen, validated once when made, and light to import: `--help` reads them.

`PARTS` names the classes the flags, TOML keys and rows are derived from.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self

from trtllm_bench.errors import BenchError
from trtllm_bench.spec.endpoints import ENDPOINTS
from trtllm_bench.spec.knobs import KnobField, check, identity_of, knob, knobs_of
from trtllm_results.record.cell import OWN_TARGET

DEFAULT_LENGTH = 128
MIN_WARMUP = 2
MOST_REQUESTS, MOST_IN_FLIGHT = 10_000_000, 1_000_000
"""Of a run: what a driver can keep in memory, and more than any server holds open."""
SENT_FIELDS = "temperature,ignore_eos,stream_options"
"""Optional fields of a request's body that are sent where nothing else is asked for."""
MORE_FIELDS = ("min_tokens", "max_completion_tokens")
NO_FIELDS = "none"
RESERVED_FIELDS = {
    "model": "the model is named by --served-model-name",
    **{name: "prompts are the workload's" for one in ENDPOINTS.values() for name in one.fields("")},
    **dict.fromkeys(("max_tokens", "max_completion_tokens"), "the output length is the workload's, such as --osl"),
    **dict.fromkeys(("stream", "n", "best_of", "echo"), "a request is one streamed answer of new tokens"),
}
"""Fields of a request's body that --extra-body may not set, and why."""
CREDENTIAL = re.compile(r"(^|[_-])(api[_-]?key|secret|password|authorization|access[_-]?token)$", re.IGNORECASE)
HIDDEN = "***"


def _limits(value: Any) -> str:
    """`ttft:200,tpot:50` in order of names; a table of limits is taken too."""
    from trtllm_results.metrics.requests import parse_slo, slo_text

    text = ",".join(f"{name}:{limit}" for name, limit in value.items()) if isinstance(value, Mapping) else str(value)
    return slo_text(parse_slo(text))


def _process(value: Any) -> str:
    """`on-off:30,5,10` in its one spelling; a table as in a workload file is taken too."""
    from trtllm_workloads.arrivals import spelling

    return spelling(value if isinstance(value, Mapping) else str(value))


def _one_of(*known: str) -> Callable[[Any], str]:
    def parsed(value: Any) -> str:
        if value not in known:
            raise BenchError(f"'{value}' is unknown; choose from {', '.join(known)}")
        return str(value)

    return parsed


def _fields(value: Any) -> str:
    """Names of optional fields in their one order; `none` for no field."""
    given = {name.strip() for name in str(value).split(",")} - {"", NO_FIELDS}
    known = (*SENT_FIELDS.split(","), *MORE_FIELDS)
    for name in sorted(given - set(known)):
        raise BenchError(f"'{name}' is not a field that may be left out; choose from {', '.join(known)}, or {NO_FIELDS}")
    return ",".join(name for name in known if name in given) or NO_FIELDS


def _extra_body(value: Any) -> str:
    """A JSON object in its one spelling, of fields that a request may have besides its own."""
    try:
        content = value if isinstance(value, Mapping) else json.loads(str(value), parse_constant=_no_constant)
        spelling = json.dumps(content, sort_keys=True, allow_nan=False)
    except (ValueError, RecursionError) as error:
        raise BenchError(f"{value!r} cannot be read as JSON ({error})") from None
    if not isinstance(content, Mapping):
        raise BenchError(f'{value!r} is no JSON object; write for example {{"top_k": 1}}')
    for name in content:
        if name in RESERVED_FIELDS:
            raise BenchError(f"'{name}' cannot be set: {RESERVED_FIELDS[name]}")
        if CREDENTIAL.search(name):
            raise BenchError(f"'{name}' looks like a credential, and the body's fields are recorded; a key is given with --api-key")
    return spelling


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _dataset(value: Any) -> str:
    """The dataset's name; standard input (`-`) is kept in the cache, named for its content, so that the row names what was run."""
    if str(value) != "-":
        return str(value)
    import hashlib
    import sys

    from trtllm_kernels.files import cache_folder

    content = sys.stdin.buffer.read()
    path = cache_folder() / "datasets" / f"stdin-{hashlib.sha256(content).hexdigest()[:12]}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return str(path)


@dataclass(frozen=True)
class EngineSpec:
    """An engine: from `engine_dir` as it is, or built of `model` for at least these ranges. None leaves a choice open.

    Targets that are not engines of ours take `model` and `precision` as labels.
    """

    model: str | None = knob(None, "Preset name, Hugging Face folder or .gguf file.", aliases=("-m",))
    engine_dir: Path | None = knob(None, "Engine folder made by build, instead of --model.")
    precision: str | None = knob(
        None,
        "fp8, int4, int8_sq, bf16, ... (docs/quantization.md; default: the checkpoint's; else bf16 on a GPU, fp32 on CPU).",
        keys=("quantization",),
    )
    kv_dtype: str = knob(
        "auto", "KV cache: auto (fp8 where inputs are quantized), fp8, int8, bf16, fp16 or fp32.", keys=("kv_cache_dtype",)
    )
    context_attention: str | None = knob(
        None, "Attention of prompts multiplies wide numbers (default), or fp8 with an fp8 KV cache.", identity=True
    )
    weights: str | None = knob(None, "dummy, or a folder or .gguf file (default: the model folder's own; dummy for presets).")
    device: str = knob("auto", "auto, cpu or cuda.", identity=True)
    tp: int = knob(1, "Tensor-parallel GPUs.", least=1, keys=("tp_size",))
    pp: int = knob(1, "Pipeline stages, each on GPUs of its own.", least=1, keys=("pp_size",))
    replicas: int = knob(1, "Copies of the engine, each on GPUs of its own.", least=1)
    nnodes: int | None = knob(None, "Hosts that run the ranks, each as many (default: this one).", least=1, identity=True)
    rdzv_endpoint: str | None = knob(None, "HOST:PORT of this host where the others join (see host).")
    max_batch_size: int | None = knob(None, "Most sequences in a step (of each replica).", least=1, identity=True)
    max_num_tokens: int | None = knob(None, "Most tokens in a step.", least=1, identity=True)
    max_seq_len: int | None = knob(None, "Longest sequence, prompt and output together.", least=1, identity=True, unit="tokens")
    page_size: int | None = knob(None, "Tokens in a page of the KV cache (default 32).", least=1, identity=True)
    kv_cache_fraction: float = knob(
        0.9, "Share of free memory given to the KV cache.", flag="--kv-cache-free-gpu-mem-fraction", above=0, most=1, identity=True
    )
    policy: str = knob(
        "guaranteed_no_evict",
        "guaranteed_no_evict (default), max_utilization or static_batch.",
        flag="--scheduler-policy",
        identity=True,
    )
    nvtx_detail: str = knob("off", "NVTX ranges: off (default), step, layer or op.", identity=True)
    verify: bool = knob(False, "Hash every byte of the engine again, also of files that did not change.")
    seed: int = knob(0, "Seed of prompts, arrivals and dummy weights (default 0).", least=0)

    def __post_init__(self) -> None:
        check(self)
        if (self.nnodes or 1) > 1:
            if self.replicas > 1:
                raise BenchError("--replicas are copies on one host; leave --nnodes out, or --replicas")
        elif self.rdzv_endpoint is not None:
            raise BenchError("--rdzv-endpoint is where other hosts join; give --nnodes too, how many hosts there are")

    @property
    def gpus(self) -> int:
        """GPUs the engine runs on, where it runs on GPUs."""
        return self.tp * self.pp * self.replicas


@dataclass(frozen=True)
class WorkloadSpec:
    """Requests: those of `dataset` (anything `open_workload` knows), or random prompts of fixed lengths.

    They go out at `request_rate` (requests/s), by the process `arrivals` names, or at the dataset's own times with `replay`; else as fast
    as the load allows.
    """

    dataset: str | None = knob(
        None,
        "JSON lines in NVIDIA's format (- reads them from standard input), a trace, a workload .toml, or a shipped workload's name, "
        "instead of --isl and --osl.",
        parse=_dataset,
    )
    isl: int | None = knob(None, "Input sequence length (default 128).", least=1, unit="tokens")
    osl: int | None = knob(None, "Output sequence length (default 128).", least=1, unit="tokens")
    num_requests: int | None = knob(
        None, "Requests to send (default: some full batches, or the whole dataset).", least=1, most=MOST_REQUESTS
    )
    duration: float | None = knob(None, "Seconds of arrivals of an open loop, instead of --num-requests.", above=0)
    request_rate: float = knob(0.0, "Requests/s of an open loop (Poisson).", above=0)
    burstiness: float = knob(1.0, "Shape of gamma gaps; 1 is Poisson, below 1 burstier.", above=0, identity=True)
    arrivals: str | None = knob(
        None,
        "Another open loop: constant:R, linear-ramp:FROM,TO,S, exponential-ramp:FROM,TO,S, on-off:R,ON,OFF, rate-series:R/R/...,S.",
        separator=";",
        parse=_process,
        identity=True,
    )
    replay: bool = knob(False, "Send at the dataset's own arrival times.", identity=True)
    time_scale: float = knob(1.0, "Multiply the dataset's times; 0.1 is ten times as fast.", above=0, identity=True)
    skip_bad_rows: bool = knob(False, "Leave out a dataset's rows that are not requests (of zero tokens, say), and count them.")
    seed: int = knob(0, "Seed of prompts, arrivals and dummy weights (default 0).", least=0)

    def __post_init__(self) -> None:
        check(self)
        if self.dataset is not None and (self.isl is not None or self.osl is not None):
            raise BenchError("--dataset and --isl/--osl are two sources of lengths; give one of them")
        if self.replay + (self.request_rate > 0) + (self.arrivals is not None) > 1:
            raise BenchError("--request-rate, --arrivals and --replay each say when requests go out; give one of them")
        if self.replay and self.dataset is None:
            raise BenchError("--replay needs --dataset, whose times it sends at")
        if self.time_scale != 1 and self.dataset is None:
            raise BenchError("--time-scale multiplies a dataset's times; give --dataset too")
        if self.skip_bad_rows and self.dataset is None:
            raise BenchError("--skip-bad-rows leaves out a dataset's rows; give --dataset too")
        if self.burstiness != 1 and not self.request_rate:
            raise BenchError("--burstiness shapes the gaps of --request-rate; give both")
        if self.duration is not None and not self.request_rate:
            raise BenchError("--duration needs a request rate; a closed loop's length is its --num-requests")
        if self.duration is not None and self.num_requests is not None:
            raise BenchError("--duration and --num-requests both say how long to measure; give one of them")

    @property
    def open_loop(self) -> bool:
        return self.replay or self.request_rate > 0 or self.arrivals is not None

    @property
    def lengths(self) -> tuple[int, int]:
        """Prompt and output length of random prompts, tokens."""
        return self.isl or DEFAULT_LENGTH, self.osl or DEFAULT_LENGTH

    def with_requests(self, least: int, per_place: int, places: int) -> WorkloadSpec:
        """With a number of requests: as asked, or `duration` seconds at the rate, or the whole dataset (None), or `per_place` for each of
        `places` sequences in flight, at least `least`."""
        if self.duration is not None:
            if self.request_rate * self.duration < 1:
                raise BenchError(
                    f"--duration {self.duration:g} at {self.request_rate:g} requests/s is less than one request; give a longer one"
                )
            return replace(self, num_requests=round(self.request_rate * self.duration), duration=None)
        if self.num_requests is not None or self.dataset is not None:
            return self
        return replace(self, num_requests=max(least, per_place * places))


@dataclass(frozen=True)
class ServerSpec:
    """How a server is asked; other targets take notice of `tokenizer` only, for a dataset of texts.

    A row keeps it with what else its target says of itself."""

    served_model_name: str | None = knob(None, "Name the server has for the model (default: --model, else the first it lists).")
    endpoint: str = knob(next(iter(ENDPOINTS)), f"{' or '.join(ENDPOINTS)} (default: the first).", parse=_one_of(*ENDPOINTS))
    prompts: str = knob("tokens", "Send prompts as tokens (default) or as text, which needs --tokenizer.", parse=_one_of("tokens", "text"))
    tokenizer: Path | None = knob(
        None, "Folder with tokenizer.json: for a dataset of texts (default: the model's own); for prompts and counts of a server."
    )
    optional_fields: str = knob(
        SENT_FIELDS,
        f"Fields to send that not every server takes (default {SENT_FIELDS}; also {', '.join(MORE_FIELDS)}; or none).",
        separator=";",
        parse=_fields,
    )
    extra_body: str | None = knob(None, "Further fields of the request body, as a JSON object.", separator=";", parse=_extra_body)
    api_key: str | None = knob(None, "Key the server asks for (default: $OPENAI_API_KEY); kept in no record.", secret=True)

    def __post_init__(self) -> None:
        check(self)

    @property
    def fields_sent(self) -> tuple[str, ...]:
        """Names of the optional fields to send."""
        return tuple(name for name in self.optional_fields.split(",") if name and name != NO_FIELDS)


@dataclass(frozen=True)
class LoadSpec:
    """How requests are sent, and when the run may be believed."""

    concurrency: int = knob(
        0, "Most requests in flight (default: no bound).", aliases=("--batch-size",), least=1, most=MOST_IN_FLIGHT, identity=True
    )
    warmup: int | None = knob(
        None, "Requests run before measuring, with short outputs (default: one full batch, at least 2).", least=0, identity=True
    )
    warmup_seconds: float = knob(0.0, "Also leave out requests of the run's first seconds.", least=0, identity=True)
    goodput: str | None = knob(None, "Limits in ms, such as ttft:200,tpot:50,e2e:5000.", separator=";", parse=_limits, identity="slo_ms")
    max_lag_ms: float = knob(25.0, "Void the run when the driver itself sends this late (p99).", least=0, unit="ms")
    stall_timeout: float = knob(600.0, "Give a request up when it has had no token for so long (default 600).", above=0, unit="s")
    request_timeout: float | None = knob(None, "Give a request up when it has taken so long (default: no limit).", above=0, unit="s")
    tail_s: float = math.inf
    """Seconds that a search waits after the last request of a run: what is open then has missed its limits. No setting of a user's."""

    def __post_init__(self) -> None:
        check(self)

    @property
    def slo_ms(self) -> dict[str, float]:
        """Limits by metric, milliseconds."""
        from trtllm_results.metrics.requests import parse_slo

        return parse_slo(self.goodput) if self.goodput else {}


PARTS: dict[str, type] = {"engine": EngineSpec, "workload": WorkloadSpec, "load": LoadSpec, "server": ServerSpec}


@dataclass(frozen=True)
class MeasurementSpec:
    """A whole measurement. `target` is a name the registry knows, or a server's address."""

    target: str = knob(OWN_TARGET, "native (our engine, the default), a server's address, null or fake (these test the driver).")
    engine: EngineSpec = field(default_factory=lambda: PARTS["engine"]())
    workload: WorkloadSpec = field(default_factory=lambda: PARTS["workload"]())
    load: LoadSpec = field(default_factory=lambda: PARTS["load"]())
    server: ServerSpec = field(default_factory=lambda: PARTS["server"]())

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """From values by field name, each given to every part that has such a field (`seed` has two)."""
        parts = {part: kind(**{one.name: values[one.name] for one in knobs_of(kind) if one.name in values}) for part, kind in PARTS.items()}
        return cls(**({"target": values["target"]} if "target" in values else {}), **parts)

    @property
    def places(self) -> int:
        """Sequences in flight as far as the request says: the bound, else what the engine is to hold; 0 for neither."""
        return self.load.concurrency or (self.engine.max_batch_size or 0) * self.engine.replicas

    def with_defaults(self, least: int, per_place: int) -> MeasurementSpec:
        """With the numbers of requests and of warm-up requests that were left open."""
        workload = self.workload.with_requests(least, per_place, self.places)
        warmup = max(MIN_WARMUP, self.places) if self.load.warmup is None else self.load.warmup
        return replace(self, workload=workload, load=replace(self.load, warmup=warmup))

    def identity_settings(self, served: EngineSpec | None) -> dict[str, Any]:
        """What can change the result and has no column in `Cell`. The only settings that enter a cell's key, beside those a target has.

        `served` is the engine as the target settled it; None where a target has no such settings.
        """
        parts = (*(() if served is None else (served,)), self.workload, self.load)
        return {name: value for part in parts for name, value in identity_of(part).items()}

    def value_of(self, name: str) -> Any:
        """The value of the knob `name`."""
        return self.target if name == "target" else next(getattr(part, name) for part in self._parts if hasattr(part, name))

    @property
    def _parts(self) -> tuple[Any, ...]:
        return self.engine, self.workload, self.load, self.server

    def other_settings(self) -> dict[str, Any]:
        """Everything else that was asked for and is not the default, for making the same request again; no secrets."""
        other: dict[str, Any] = {}
        parts: tuple[Any, ...] = (self.engine, self.workload, self.load)
        for part in parts:
            for one in knobs_of(part.__class__):
                value = getattr(part, one.name)
                if not one.knob.identity and not one.knob.secret and value != one.default:
                    other[one.name] = str(value) if isinstance(value, Path) else value
        return other


def all_knobs() -> Iterator[KnobField]:
    """Every knob of a measurement, each name once: the target, then the parts in order."""
    seen: set[str] = set()
    for kind in (MeasurementSpec, *PARTS.values()):
        for one in knobs_of(kind):
            if one.name not in seen:
                seen.add(one.name)
                yield one


def engine_knobs() -> frozenset[str]:
    """Names of the knobs on which it depends which engine serves, or how a server is asked."""
    return frozenset({"target", *(one.name for part in ("engine", "server") for one in fields(PARTS[part]))})


def safe_target(target: str) -> str:
    """A target without the user and password that a server's address may hold."""
    scheme, slashes, rest = target.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}{slashes}{host.rpartition('@')[2]}{slash}{path}" if "@" in host else target


def safe_arguments(arguments: Iterable[str]) -> list[str]:
    """A command line's arguments with what is secret in them starred out."""
    flags = {flag for one in all_knobs() if one.knob.secret for flag in one.flags}
    safe: list[str] = []
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        if safe and safe[-1].replace("_", "-") in flags:
            argument = HIDDEN
        elif equals and name.replace("_", "-") in flags:
            argument = f"{name}={HIDDEN}"
        elif "://" in argument:
            argument = f"{name}={safe_target(argument[len(name) + 1 :])}" if name.startswith("--") else safe_target(argument)
        safe.append(argument)
    return safe
