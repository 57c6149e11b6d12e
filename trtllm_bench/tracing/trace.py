"""Device activity from a trace: kernels, copies and fills in time order, whatever tool recorded them.

torch.profiler's own trace file is read back instead of its Python objects: the file's format (Chrome's trace events) has not changed in
years, and what is analysed is then exactly what the user opens in Perfetto.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from trtllm_bench.errors import BenchError
from trtllm_results.record.flat import shown
from trtllm_results.store.document import read_document
from trtllm_results.store.files import atomically

MOST_BYTES = 1 << 30
"""Of a trace, unpacked; one of some hundred steps has some hundred megabytes."""
EventKind = Literal["kernel", "memcpy", "memset", "range"]
_CATEGORIES: Mapping[str, EventKind] = {"kernel": "kernel", "gpu_memcpy": "memcpy", "gpu_memset": "memset"}
RANGE_PREFIX = "trtllm: "


@dataclass(frozen=True)
class Event:
    """One thing the device did (or, of kind `range`, a named range on the CPU), in microseconds of the trace's clock."""

    name: str
    start_us: float
    duration_us: float
    kind: EventKind
    stream: int = 0

    @property
    def end_us(self) -> float:
        return self.start_us + self.duration_us


def read_json(path: Path) -> dict[str, Any]:
    """A trace file, gzipped or not. Raises `BenchError` when the file is not one."""
    try:
        content = read_document(path, most_bytes=MOST_BYTES)
    except (OSError, ValueError) as error:
        raise BenchError(
            f"{path} cannot be read as a trace ({error}); give a Chrome trace (.json or .json.gz) of torch.profiler"
        ) from error
    if not isinstance(content, dict) or "traceEvents" not in content:
        raise BenchError(f"{path} is JSON but no Chrome trace: it has no traceEvents")
    events = content["traceEvents"]
    if not isinstance(events, list) or not all(_is_event(one) for one in events):
        raise BenchError(f"{path} is no Chrome trace: its traceEvents are not a list of objects with args and text for cat")
    return content


def _is_event(one: Any) -> bool:
    return isinstance(one, dict) and isinstance(one.get("args") or {}, dict) and isinstance(one.get("cat", ""), str)


def device_events(content: Mapping[str, Any]) -> list[Event]:
    """Kernels, copies and fills on the device, by start."""
    events = [
        _event(e, "", _CATEGORIES[e["cat"]], (e.get("args") or {}).get("stream"))
        for e in content["traceEvents"]
        if e.get("ph") == "X" and e.get("cat") in _CATEGORIES
    ]
    return sorted(events, key=lambda event: event.start_us)


def ranges(content: Mapping[str, Any]) -> list[Event]:
    """Our own ranges on the CPU, without their prefix, by start and then the outer first."""
    events = [
        _event(e, RANGE_PREFIX, "range")
        for e in content["traceEvents"]
        if e.get("ph") == "X" and e.get("cat") == "user_annotation" and str(e.get("name", "")).startswith(RANGE_PREFIX)
    ]
    return sorted(events, key=lambda event: (event.start_us, -event.duration_us))


def _event(event: Mapping[str, Any], prefix: str, kind: EventKind, stream: Any = None) -> Event:
    try:
        return Event(str(event["name"]).removeprefix(prefix), float(event["ts"]), float(event["dur"]), kind, int(stream or 0))
    except (KeyError, ValueError, TypeError, OverflowError):
        raise BenchError(f"event {shown(dict(event))} of the trace lacks a name, ts or dur, or has one of another type") from None


def with_tracks(
    content: dict[str, Any], tracks: Mapping[str, Iterable[tuple[str, float, float]]], process: str = "trtllm-bench"
) -> dict[str, Any]:
    """The trace with more tracks: (name, start, duration) in microseconds each, under a process of ours."""
    pid = process.removesuffix("-bench")
    events: list[dict[str, Any]] = [{"ph": "M", "name": "process_name", "pid": pid, "tid": 0, "args": {"name": process}}]
    for track, items in tracks.items():
        events += [{"ph": "X", "cat": "trtllm", "pid": pid, "tid": track, "name": n, "ts": at, "dur": took} for n, at, took in items]
    return {**content, "traceEvents": [*content["traceEvents"], *events]}


def merged(contents: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The traces of an engine's ranks on one timeline: their processes by rank, their clocks by the time of day at which each began to
    count (`baseTimeNanoseconds`). Ranks of one host have the same clock."""
    begins = [int(content.get("baseTimeNanoseconds", 0)) for content in contents]
    events: list[dict[str, Any]] = []
    for rank, (content, begin) in enumerate(zip(contents, begins, strict=True)):
        later_us = (begin - begins[0]) / 1e3
        for event in content["traceEvents"]:
            moved = {**event, "pid": _of_rank(event.get("pid"), rank)}
            if "ts" in event:
                moved["ts"] = float(event["ts"]) + later_us
            if "id" in event:
                moved["id"] = f"{rank}:{event['id']}"
            if event.get("ph") == "M" and event.get("name") == "process_name":
                moved["args"] = {"name": _of_rank(event["args"].get("name"), rank)}
            events.append(moved)
    return {**contents[0], "traceEvents": events}


def _of_rank(name: object, rank: int) -> str:
    return f"rank {rank}: {name}"


def write_json(content: Mapping[str, Any], path: Path) -> None:
    packed = gzip.compress(json.dumps(content).encode(), 5)
    atomically(path, lambda handle: handle.write(packed))
