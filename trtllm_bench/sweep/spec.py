"""What a sweep is to measure: a grid, written as flags, as a `sweep.toml`, or both (flags win).

Validation happens here and once. Everything that the grid crosses is a tuple; everything else holds for all cells. The folder of a sweep
keeps its specification (`sweep.json`), so that resuming needs nothing but the folder.
"""

from __future__ import annotations

import itertools
import json
import math
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from trtllm_bench.errors import BenchError
from trtllm_bench.measure.spec import EngineWish, WorkloadWish
from trtllm_results.metrics.requests import parse_slo
from trtllm_workloads.arrivals import parse

Positive = Annotated[int, Field(ge=1)]
Grid = Annotated[tuple[Positive, ...], Field(min_length=1)]
SPEC_FILE = "sweep.json"
FLAGS = {"policy": "scheduler-policy", "kv_cache_fraction": "kv-cache-free-gpu-mem-fraction"}
"""Where a flag is called other than its field."""
MIN_REQUESTS, WAVES, MIN_WARMUP = 8, 4, 2


@dataclass(frozen=True)
class GridCase:
    """One point of the grid. `batch`: sequences in flight; `request_rate`: requests/s of an open loop, 0 for a closed one."""

    precision: str
    batch: int
    isl: int
    osl: int
    request_rate: float = 0.0
    dataset: str = ""
    """Name of what the requests come from instead of `isl` and `osl`."""

    @property
    def label(self) -> str:
        rate = f" {self.request_rate:g}/s" if self.request_rate else ""
        return f"{self.precision} b{self.batch} {self.dataset or f'{self.isl}/{self.osl}'}{rate}"


class SweepSpec(BaseModel):
    """A sweep's specification. Names are those of the flags, with `_` for `-`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    precision: Annotated[tuple[str, ...], Field(min_length=1)]
    kv_dtype: str = "auto"
    """Type of the KV cache; `auto` is fp8 for the fp8 cells, the activations' for others."""
    batch_size: Grid = (1, 8)
    isl: Grid = (128,)
    osl: Grid = (128,)
    request_rate: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...] = ()
    burstiness: Annotated[float, Field(gt=0)] = 1.0
    arrivals: str | None = None
    """An arrival process in short form, such as `on-off:30,5,10`, instead of rates."""
    dataset: str | None = None
    """A dataset file, trace or workload specification instead of fixed `isl` x `osl`."""
    replay: bool = False
    """Send at the dataset's own times; `batch_size` then only sizes the engine."""
    time_scale: Annotated[float, Field(gt=0)] = 1.0
    target: str = "native"
    repeats: Positive = 1
    num_requests: Positive | None = None
    duration: Annotated[float, Field(gt=0)] | None = None
    """Seconds of arrivals of an open loop, instead of `num_requests`: each rate then takes equally long."""
    goodput: str | None = None
    """Limits, such as `ttft:200,tpot:50`."""
    warmup: Annotated[int, Field(ge=0)] | None = None
    warmup_seconds: Annotated[float, Field(ge=0)] = 0.0
    max_lag_ms: Annotated[float, Field(gt=0)] = 25.0
    weights: str | None = None
    """`dummy`, a path, or None for the model's own (dummy for presets)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    policy: Literal["guaranteed_no_evict", "max_utilization", "static_batch"] = "guaranteed_no_evict"
    max_num_tokens: Positive | None = None
    kv_cache_fraction: Annotated[float, Field(gt=0, le=1)] = 0.9
    seed: int = 0
    nvtx_detail: Literal["off", "step", "layer", "op"] = "off"

    @field_validator("precision", "batch_size", "isl", "osl", "request_rate", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        """`8`, `"1,8,64"` and `[1, 8, 64]` are all lists."""
        if isinstance(value, str):
            return [part.strip() for part in value.split(",") if part.strip()]
        return [value] if isinstance(value, int | float) else value

    @field_validator("precision", "batch_size", "isl", "osl", "request_rate")
    @classmethod
    def _distinct(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(dict.fromkeys(value))

    @model_validator(mode="after")
    def _one_source_of_lengths(self) -> Self:
        if self.dataset is not None and {"isl", "osl"} & self.model_fields_set:
            raise ValueError("dataset and isl/osl are two sources of lengths; give one of them")
        if self.replay and (self.dataset is None or self.request_rate):
            raise ValueError("replay needs a dataset, and its own times instead of a request rate")
        if self.arrivals is not None and (self.replay or self.request_rate):
            raise ValueError("request-rate, arrivals and replay each say when requests go out; give one of them")
        return self

    @model_validator(mode="after")
    def _one_measure_of_length(self) -> Self:
        if self.duration is not None and not self.request_rate:
            raise ValueError("duration needs a request rate; a closed loop's length is its num-requests")
        if self.duration is not None and self.num_requests is not None:
            raise ValueError("duration and num-requests both say how long to measure; give one of them")
        return self

    @field_validator("arrivals")
    @classmethod
    def _process(cls, value: str | None) -> str | None:
        if value is not None:
            parse(value)
        return value

    @field_validator("goodput")
    @classmethod
    def _limits(cls, value: str | None) -> str | None:
        parse_slo(value or "ttft:1")
        return value

    @property
    def slo_ms(self) -> dict[str, float]:
        return parse_slo(self.goodput) if self.goodput else {}

    def cases(self) -> Iterator[GridCase]:
        """The grid, precision outermost (one engine each), then shape, then load."""
        rates, source = self.request_rate or (0.0,), Path(self.dataset or "").stem
        for precision, isl, osl, batch, rate in itertools.product(self.precision, self.isl, self.osl, self.batch_size, rates):
            yield GridCase(precision, batch, isl, osl, rate, source)

    def requests_of(self, case: GridCase) -> int:
        """Requests measured in one repeat: as asked, else several full batches so that ramp-up and tail do not dominate."""
        if self.duration is not None:
            return max(MIN_REQUESTS, round(case.request_rate * self.duration))
        return self.num_requests or max(MIN_REQUESTS, WAVES * case.batch)

    def warmup_of(self, case: GridCase) -> int:
        """Warm-up requests: as asked, else one full batch."""
        return max(MIN_WARMUP, case.batch) if self.warmup is None else self.warmup

    def engine_wish(self, precision: str, max_seq_len: int) -> EngineWish:
        """One engine for all cells of a precision: its ranges cover the grid."""
        return EngineWish(
            model=self.model,
            precision=precision,
            weights=self.weights,
            device=self.device,
            max_batch_size=max(self.batch_size),
            max_num_tokens=self.max_num_tokens,
            max_seq_len=max_seq_len,
            kv_cache_fraction=self.kv_cache_fraction,
            policy=self.policy,
            seed=self.seed,
            nvtx_detail=self.nvtx_detail,
            kv_dtype=self.kv_dtype,
        )

    def workload_wish(self, case: GridCase) -> WorkloadWish:
        return WorkloadWish(
            requests=self.num_requests if self.dataset is not None and self.duration is None else self.requests_of(case),
            isl=case.isl,
            osl=case.osl,
            dataset=self.dataset,
            request_rate=case.request_rate,
            burstiness=self.burstiness,
            replay=self.replay,
            time_scale=self.time_scale,
            seed=self.seed,
            arrivals=self.arrivals,
        )

    def save(self, folder: Path) -> None:
        (folder / SPEC_FILE).write_text(json.dumps(self.model_dump(exclude_unset=True), indent=1) + "\n")


def work_of(case: GridCase, requests: int) -> float:
    """Relative cost of a case, for the estimate of time left: decode steps, with context tokens as a small share of a step each."""
    return math.ceil(requests / case.batch) * case.osl * (1 + case.batch / 256) + requests * case.isl / 256


def load_spec(
    flags: Mapping[str, Any], toml: Path | None = None, folder: Path | None = None, defaults: Mapping[str, Any] | None = None
) -> SweepSpec:
    """The specification from a resumed sweep's folder or a TOML file, with flags that were given (not None) laid over it.

    Where none of them names a precision, it is what the model's checkpoint was quantized for, before the default's. Raises `BenchError`
    naming the field, and the file where one was read.
    """
    from trtllm_engines.checkpoints.checkpoint_precision import checkpoint_precision

    content: dict[str, Any] = {}
    source = ""
    if folder is not None:
        content |= json.loads((folder / SPEC_FILE).read_text())
    if toml is not None:
        source = f"{toml}: "
        content |= _read_toml(toml)
    given = {name: value for name, value in flags.items() if value is not None}
    model = {**content, **given}.get("model")
    stated = checkpoint_precision(model) if isinstance(model, str) else None
    content = {**(defaults or {}), **({"precision": stated} if stated else {}), **content}
    if "dataset" in given:
        content = {name: value for name, value in content.items() if name not in ("isl", "osl")}
    content |= given
    try:
        return SweepSpec.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        raise BenchError(source + _sentence(first, content, is_toml=toml is not None)) from error


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        content = tomllib.loads(path.read_text())
    except FileNotFoundError as error:
        raise BenchError(f"no sweep specification at {path}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BenchError(f"{path} is not valid TOML: {error}") from error
    return {name.replace("-", "_"): value for name, value in content.items()}


def _sentence(problem: Mapping[str, Any], content: Mapping[str, Any], is_toml: bool) -> str:
    """Pydantic's first complaint in the words of the flags."""
    where = problem["loc"]
    if not where:
        return str(problem["msg"]).removeprefix("Value error, ")
    field = str(where[0])
    name = field if is_toml else "--" + FLAGS.get(field, field).replace("_", "-")
    value = problem.get("input")
    if problem["type"] == "extra_forbidden":
        return f"unknown field {field}; known are {', '.join(sorted(SweepSpec.model_fields))}"
    if problem["type"] == "missing":
        return f"{name} is missing"
    if problem["type"] == "greater_than_equal":
        return f"{name} must be at least {problem['ctx']['ge']}, not {value}"
    if problem["type"] in ("too_short", "tuple_type"):
        return f"{name} needs at least one value"
    if problem["type"].startswith("int_"):
        return f"{name} takes whole numbers separated by commas, not {content.get(field)!r}"
    if problem["type"] == "value_error":
        return f"{name}: {problem['ctx']['error']}"
    return f"{name}: {problem['msg']}, not {value!r}"
