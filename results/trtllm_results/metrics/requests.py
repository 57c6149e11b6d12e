"""Metric definitions, one each, over NumPy arrays with one entry per request (and one per token for inter-token gaps).

All latencies count from the *intended* arrival: a driver that sends late must not make the target look quick (coordinated omission).
TPOT is a mean over one request, so a stall hides in it; ITL pools single gaps, so it shows. Both are reported. Percentiles interpolate
linearly between order statistics (NumPy's `linear`, Hyndman and Fan's type 7), as vLLM's benchmark does.

A figure that was not measured is absent: TPOT of an answer whose tokens all came at once, token counts that nobody made. A speed is that of
the tokens after the first chunk, over the time they took: where a chunk holds several tokens, 1 / TPOT would count the first chunk's tokens
and not the time they took.

`definitions.py` reports the same log under other tools' definitions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from trtllm_results.errors import ResultsError
from trtllm_results.metrics.registry import PERCENTILES

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
PERCENTILE_METHOD: Literal["linear"] = "linear"
MOST_VALUE = 1e12
"""Of a count or a time in seconds that is still believed when read."""
SLO_NAMES = ("ttft", "tpot", "e2e")
AT_ONCE_S = 1e-4
"""Mean gap below which the tokens of an answer came at once: 10,000 tokens/s is not a user's speed, it is a buffer that was emptied."""
OF_OUTPUT_TOKENS = (
    "output_tokens",
    "output_length_",
    "total_tokens",
    "tpot_",
    "itl_",
    "steady_output",
    "steady_total",
    "steady_tpot",
    "steady_itl",
)
OF_INPUT_TOKENS = ("input_tokens", "input_length_", "total_tokens", "steady_total")
DERIVED = ("ttft_s", "tpot_s", "e2e_s", "token_times_s")


@dataclass(frozen=True)
class RequestLog:
    """What happened to each of n requests. Times in seconds on one monotonic clock; NaN where a thing did not happen.

    `token_times_s[token_offsets[i]:token_offsets[i + 1]]` are the arrivals of request i's tokens (empty when not recorded; a chunk of
    several tokens repeats its time). `gpus` is the number of GPUs that served.
    """

    intended_s: FloatArray
    sent_s: FloatArray
    first_token_s: FloatArray
    end_s: FloatArray
    """Arrival of the last token."""
    input_tokens: IntArray
    output_tokens: IntArray
    ok: BoolArray
    requested_tokens: IntArray | None = None
    scheduled_s: FloatArray | None = None
    """Start of the first step that held this request, where the target says."""
    token_times_s: FloatArray | None = None
    token_offsets: IntArray | None = None
    gpus: int = 1
    columns: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    """Further per-request columns to keep (session, priority, LoRA id). Those used in a metric: `due_s`; `start_s`, when the run started;
    `closed_s`, the end of the answer; `chunks`, the pieces its tokens came in (0: unknown); `counted`, false where `output_tokens` is a
    number of pieces; `cached_tokens`, -1 where unknown."""

    def __post_init__(self) -> None:
        n = len(self.intended_s)
        for name in ("sent_s", "first_token_s", "end_s", "input_tokens", "output_tokens", "ok", "requested_tokens", "scheduled_s"):
            array = getattr(self, name)
            if array is not None and len(array) != n:
                raise ResultsError(f"request log: {name} has {len(array)} entries for {n} requests")
        if self.token_offsets is not None and len(self.token_offsets) != n + 1:
            raise ResultsError(f"request log: token_offsets has {len(self.token_offsets)} entries for {n} requests (want {n + 1})")

    def __len__(self) -> int:
        return len(self.intended_s)

    def select(self, keep: BoolArray) -> RequestLog:
        """The requests where `keep` [n] is true."""
        times, offsets = None, None
        if self.token_times_s is not None and self.token_offsets is not None:
            counts = np.diff(self.token_offsets)
            times = self.token_times_s[np.repeat(keep, counts)]
            offsets = np.concatenate([[0], np.cumsum(counts[keep])])
        return RequestLog(
            intended_s=self.intended_s[keep],
            sent_s=self.sent_s[keep],
            first_token_s=self.first_token_s[keep],
            end_s=self.end_s[keep],
            input_tokens=self.input_tokens[keep],
            output_tokens=self.output_tokens[keep],
            ok=self.ok[keep],
            requested_tokens=None if self.requested_tokens is None else self.requested_tokens[keep],
            scheduled_s=None if self.scheduled_s is None else self.scheduled_s[keep],
            token_times_s=times,
            token_offsets=offsets,
            gpus=self.gpus,
            columns={name: array[keep] for name, array in self.columns.items()},
        )

    @classmethod
    def from_side(cls, table: Any, gpus: int = 1) -> RequestLog:
        """Inverse of `side_columns`, from the Arrow table of `Store.read_side`.

        Raises `ResultsError` if it lacks a column, or one is of another type, has gaps, or values that no measurement has.
        """
        from pyarrow import types

        names = list(table.column_names)
        moments, counts = ("intended_s", "sent_s", "first_token_s", "end_s"), ("input_tokens", "output_tokens")
        missing = [name for name in (*moments, *counts, "ok") if name not in names]
        if missing:
            raise ResultsError(f"the per-request table lacks {', '.join(missing)}; it was not written by a measurement")
        arrays = {"ok": _typed(table, "ok", types.is_boolean).to_numpy(zero_copy_only=False)}
        for name in (*moments, "scheduled_s", *counts, "requested_tokens"):
            if name in names:
                arrays[name] = _plausible(_typed(table, name, types.is_floating if name.endswith("_s") else types.is_integer), name)
        if "token_times_s" in names:
            lists = _typed(table, "token_times_s", types.is_list)
            arrays |= {
                "token_times_s": _plausible(lists.flatten(), "token_times_s"),
                "token_offsets": lists.offsets.to_numpy().astype(np.int64),
            }
        further = sorted(set(names) - set(arrays) - set(DERIVED))
        scalar = (types.is_integer, types.is_floating, types.is_boolean, types.is_string)
        columns = {name: _typed(table, name, *scalar).to_numpy(zero_copy_only=False) for name in further}
        return cls(**arrays, gpus=gpus, columns=columns)

    def side_columns(self) -> dict[str, Any]:
        """Columns for the side table "requests" of `Store.record`."""
        columns: dict[str, Any] = {name: getattr(self, name) for name in ("intended_s", "sent_s", "first_token_s", "end_s")}
        columns |= {"input_tokens": self.input_tokens, "output_tokens": self.output_tokens, "ok": self.ok}
        columns |= {"ttft_s": ttft(self), "tpot_s": tpot(self), "e2e_s": e2e(self)}
        for name in ("requested_tokens", "scheduled_s"):
            if getattr(self, name) is not None:
                columns[name] = getattr(self, name)
        if self.token_times_s is not None and self.token_offsets is not None:
            columns["token_times_s"] = (self.token_times_s, self.token_offsets)
        return columns | dict(self.columns)


def _typed(table: Any, name: str, *kinds: Callable[[Any], bool]) -> Any:
    """The column `name` as one Arrow array. Raises `ResultsError` if it is there twice, of none of `kinds`, or has gaps."""
    column = table.column(table.column_names.index(name)).combine_chunks()
    if table.column_names.count(name) > 1 or not any(kind(column.type) for kind in kinds) or column.null_count:
        raise ResultsError(f"the per-request table's {name} is of type {column.type}, has gaps or is there twice; it is damaged")
    return column


def _plausible(column: Any, name: str) -> Any:
    """Its values: numbers of a measurement, counts not negative; a time may be NaN."""
    values = column.to_numpy(zero_copy_only=False)
    finite = values[np.isfinite(values)] if values.dtype != object else values
    if values.dtype == object or np.any(np.abs(finite) > MOST_VALUE) or (not name.endswith("_s") and np.any(finite < 0)):
        raise ResultsError(f"the per-request table's {name} has values that no measurement has; it is damaged")
    return values


def ttft(log: RequestLog) -> FloatArray:
    """[n] s: first token received - intended arrival."""
    return log.first_token_s - log.intended_s


def e2e(log: RequestLog) -> FloatArray:
    """[n] s: last token received - intended arrival."""
    return log.end_s - log.intended_s


def mean_gap(log: RequestLog) -> FloatArray:
    """[n] s: (E2E - TTFT) / (N - 1); NaN for requests of fewer than two tokens."""
    gaps = np.where(log.output_tokens >= 2, log.output_tokens - 1, 1)
    return np.where(log.output_tokens >= 2, (log.end_s - log.first_token_s) / gaps, np.nan)


def came_at_once(log: RequestLog) -> BoolArray:
    """[n]: two tokens or more, and no time to speak of between the first and the last."""
    return np.asarray(mean_gap(log) < AT_ONCE_S, dtype=np.bool_)


def tpot(log: RequestLog) -> FloatArray:
    """[n] s: (E2E - TTFT) / (N - 1); NaN for requests of fewer than two tokens, and for those whose tokens came at once."""
    return np.where(came_at_once(log), np.nan, mean_gap(log))


def speed(log: RequestLog) -> FloatArray:
    """[n] tokens/s: tokens after the first chunk / (E2E - TTFT); NaN where TPOT is."""
    rest = (log.output_tokens - _first_chunk(log)).astype(np.float64)
    return np.where(np.isfinite(tpot(log)), rest / np.maximum(log.end_s - log.first_token_s, 1e-12), np.nan)


def _first_chunk(log: RequestLog) -> IntArray:
    """[n] tokens that came with the first one; 1 where token times were not recorded."""
    if log.token_times_s is None or log.token_offsets is None or not len(log.token_times_s):
        return np.ones(len(log), dtype=np.int64)
    counts = np.diff(log.token_offsets)
    with_first = log.token_times_s == np.repeat(log.first_token_s, counts)
    sums = np.concatenate([[0], np.cumsum(with_first)])
    return np.asarray(np.maximum(sums[log.token_offsets[1:]] - sums[log.token_offsets[:-1]], 1), dtype=np.int64)


def cached_share(log: RequestLog) -> float:
    """Prompt tokens that the target took from a prefix cache, of all those of requests for which it says so; NaN where it never does."""
    cached = log.columns.get("cached_tokens")
    if cached is None or not (cached >= 0).any():
        return float("nan")
    known = cached >= 0
    return float(cached[known].sum() / max(log.input_tokens[known].sum(), 1))


def itl(log: RequestLog) -> FloatArray:
    """[gaps] s: differences of consecutive token arrivals within a request, pooled over requests; empty when tokens were not recorded."""
    if log.token_times_s is None or log.token_offsets is None or len(log.token_times_s) < 2:
        return np.empty(0)
    gaps = np.diff(log.token_times_s)
    starts = log.token_offsets[1:-1]
    inside = np.ones(len(gaps), dtype=bool)
    inside[starts[(starts > 0) & (starts <= len(gaps))] - 1] = False
    return gaps[inside]


def queue(log: RequestLog) -> FloatArray:
    """[n] s: start of the request's first step - intended arrival; empty where the target does not report it."""
    return np.empty(0) if log.scheduled_s is None else log.scheduled_s - log.intended_s


def lag(log: RequestLog) -> FloatArray:
    """[n] s: sent - due, the driver's own lateness. Due is the intended arrival, or later, where a bound on requests in flight held the
    request back and the log's column `due_s` says until when."""
    return np.asarray(log.sent_s - log.columns.get("due_s", log.intended_s), dtype=np.float64)


def duration(log: RequestLog) -> float:
    """s: last token received - first intended arrival, over completed requests."""
    done = log.ok & np.isfinite(log.end_s)
    return float(log.end_s[done].max() - np.nanmin(log.intended_s)) if done.any() else 0.0


def goodput_mask(log: RequestLog, slo: Mapping[str, float] | Mapping[str, FloatArray]) -> BoolArray:
    """[n]: completed and within every limit. `slo` maps `ttft`, `tpot`, `e2e` to milliseconds, one for all or one a request; a request
    without TPOT meets a TPOT limit."""
    mask = log.ok.copy()
    for name, limit_ms in slo.items():
        values = {"ttft": ttft, "tpot": tpot, "e2e": e2e}[name](log)
        within = values * 1e3 <= limit_ms
        mask &= within | np.isnan(values) if name == "tpot" else within
    return mask


def parse_slo(text: str) -> dict[str, float]:
    """`ttft:200,tpot:50,e2e:5000` (milliseconds) as a mapping. Raises `ResultsError` on anything else."""
    slo: dict[str, float] = {}
    for part in text.split(","):
        name, colon, value = part.strip().partition(":")
        try:
            limit = float(value)
        except ValueError:
            limit = float("nan")
        if name not in SLO_NAMES or not colon or not limit > 0:
            raise ResultsError(
                f"goodput limit '{part.strip()[:60]}' is not understood; write for example ttft:200,tpot:50,e2e:5000 (milliseconds)"
            )
        if name in slo:
            raise ResultsError(f"goodput has two limits of {name}; give one")
        slo[name] = limit
    return slo


def slo_text(slo: Mapping[str, float]) -> str:
    """Inverse of `parse_slo`, in one order: `e2e:5000,ttft:200`."""
    return ",".join(f"{name}:{limit:g}" for name, limit in sorted(slo.items()))


def summarise(values_s: FloatArray, name: str) -> dict[str, float]:
    """`<name>_{mean,p50,p90,p95,p99,max}_ms` of values in seconds; NaN ignored, empty when nothing is left."""
    values = values_s[np.isfinite(values_s)] * 1e3
    if not len(values):
        return {}
    points = np.percentile(values, PERCENTILES, method=PERCENTILE_METHOD)
    figures = {f"{name}_mean_ms": float(values.mean()), f"{name}_max_ms": float(values.max())}
    return figures | {f"{name}_p{percent}_ms": float(point) for percent, point in zip(PERCENTILES, points, strict=True)}


def figures(
    log: RequestLog, slo: Mapping[str, float] | Mapping[str, FloatArray] | None = None, window: tuple[float, float] | None = None
) -> dict[str, float]:
    """Every figure the log supports, by the names of `registry.METRICS`, whole run; with `window` (s on the log's clock) also `steady_*`.

    Whole-run rates include ramp-up and tail. An empty or wholly failed log gives counts only.
    """
    done = log.select(log.ok)
    computed: dict[str, float] = {"completed_requests": float(len(done)), "failed_requests": float(len(log) - len(done))}
    computed |= {name: value for name, value in _lag_figures(log).items() if np.isfinite(value)}
    if not len(done):
        return computed
    seconds = duration(log)
    tokens_in, tokens_out = float(done.input_tokens.sum()), float(done.output_tokens.sum())
    computed |= {
        "duration_s": seconds,
        "input_tokens": tokens_in,
        "output_tokens": tokens_out,
        "input_length_mean": tokens_in / len(done),
        "output_length_mean": tokens_out / len(done),
    }
    if done.requested_tokens is not None and done.requested_tokens.sum() > 0:
        computed["output_length_ratio"] = tokens_out / float(done.requested_tokens.sum())
    if seconds > 0:
        computed |= _rates(tokens_in, tokens_out, len(done), seconds, log.gpus)
    if slo:
        good = int(goodput_mask(log, slo).sum())
        computed["goodput_ratio"] = good / len(log)
        if seconds > 0:
            computed["goodput_requests_per_s"] = good / seconds
    if np.isfinite(cached_share(done)):
        computed["prefix_hit_ratio"] = cached_share(done)
    computed |= _latency_figures(done) | summarise(queue(done), "queue")
    if window is not None:
        computed |= {"steady_start_s": window[0] - log.intended_s.min(), "steady_end_s": window[1] - log.intended_s.min()}
        computed |= steady(log, window)
    return _without(computed, _unmeasured(done))


def _unmeasured(done: RequestLog) -> tuple[str, ...]:
    """Beginnings of the names of figures that would be made of counts nobody made. No prompt has 0 tokens: 0 is an unknown length."""
    counted = done.columns.get("counted")
    of_output = OF_OUTPUT_TOKENS if counted is not None and not counted.all() else ()
    return (*of_output, *(OF_INPUT_TOKENS if (done.input_tokens == 0).any() else ()))


def _without(computed: dict[str, float], beginnings: tuple[str, ...]) -> dict[str, float]:
    return {name: value for name, value in computed.items() if not name.startswith(beginnings)} if beginnings else computed


def steady(log: RequestLog, window: tuple[float, float]) -> dict[str, float]:
    """`steady_*` figures. Rates count tokens that arrived and requests that ended after the window's start and up to its end; latencies,
    requests that lie wholly inside it, its ends included. A window in which nothing ended has no request rate.

    Where token times were not recorded, a request's tokens are spread evenly from its first to its last.
    """
    start, end = window
    seconds = end - start
    done = log.select(log.ok)
    if seconds <= 0 or not len(done):
        return {}
    first_in = (done.first_token_s > start) & (done.first_token_s <= end)
    tokens_in = float(done.input_tokens[first_in].sum())
    ended = int(((done.end_s > start) & (done.end_s <= end)).sum())
    computed = _rates(tokens_in, _tokens_inside(done, start, end), ended, seconds, log.gpus)
    if not ended:
        del computed["requests_per_s"]
    inside = done.select((done.intended_s >= start) & (done.end_s <= end))
    if len(inside):
        computed |= {name: value for name, value in _latency_figures(inside).items() if name.endswith(("_p50_ms", "_p99_ms", "_per_user"))}
    return {f"steady_{name}": value for name, value in computed.items()}


def _tokens_inside(done: RequestLog, start: float, end: float) -> float:
    if done.token_times_s is not None and done.token_offsets is not None and len(done.token_times_s):
        return float(((done.token_times_s > start) & (done.token_times_s <= end)).sum())
    span = np.maximum(done.end_s - done.first_token_s, 1e-12)
    overlap = np.clip(np.minimum(done.end_s, end) - np.maximum(done.first_token_s, start), 0.0, None)
    first = (done.first_token_s > start) & (done.first_token_s <= end)
    return float((first + (done.output_tokens - 1) * overlap / span).sum())


def _rates(tokens_in: float, tokens_out: float, requests: int, seconds: float, gpus: int) -> dict[str, float]:
    return {
        "output_tokens_per_s": tokens_out / seconds,
        "total_tokens_per_s": (tokens_in + tokens_out) / seconds,
        "output_tokens_per_s_per_gpu": tokens_out / seconds / max(gpus, 1),
        "requests_per_s": requests / seconds,
    }


def _latency_figures(done: RequestLog) -> dict[str, float]:
    per_token = tpot(done)
    latencies = summarise(ttft(done), "ttft") | summarise(per_token, "tpot") | summarise(itl(done), "itl") | summarise(e2e(done), "e2e")
    speeds = speed(done)
    if np.isfinite(speeds).any():
        latencies["output_tokens_per_s_per_user"] = float(np.nanmean(speeds))
    return latencies


def _lag_figures(log: RequestLog) -> dict[str, float]:
    late = lag(log)
    late = late[np.isfinite(late)] * 1e3
    if not len(late):
        return {}
    p50, p99 = np.percentile(late, [50, 99], method=PERCENTILE_METHOD)
    return {"lag_p50_ms": float(p50), "lag_p99_ms": float(p99), "lag_max_ms": float(late.max())}
