"""Datasets on disk: JSON lines in the format of NVIDIA's `prepare_dataset.py`, one request per line, or the same rows as one JSON array.

Read as well: the custom datasets of vLLM, SGLang and AIPerf, which have the prompt under `prompt` or `text_input` and the output's length
under `output_tokens`, `output_len`, `output_length` or `max_tokens`. A prompt that is text stays text; `open_workload` turns it into token
ids where it is given a tokenizer. AIPerf's lines may have a `timestamp`, and a `session_id` whose later turns wait `delay` after the answer
to the turn before, both in milliseconds.

NVIDIA's fields are `task_id`, `input_ids` or `prompt`, `output_tokens`, and `lora_request` {`lora_name`, `lora_int_id`, `lora_path`}.
What a request has beyond them (`arrival_s`, `priority`, `session`, `turn`, `after`, `think_s`, `slo_ms`) is written only where it is
set, under keys their reader passes over; so a plain workload is exactly their file. Keys come in one order, without spaces: equal
workloads give equal bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from trtllm_workloads import typed
from trtllm_workloads.errors import SKIP_HINT, WorkloadError
from trtllm_workloads.files import first_line, open_text
from trtllm_workloads.json_items import items
from trtllm_workloads.request import NO_LORA, OPTIONAL, RequestSpec, Workload
from trtllm_workloads.tokens import Prompts, TextPrompts, TokenPrompts

_SLO = ("ttft", "tpot", "e2e")


def to_line(request: RequestSpec, has_arrival: bool) -> str:
    """One line, without its newline."""
    row: dict[str, Any] = {"task_id": request.id}
    if request.prompt is not None:
        row["input_ids"] = request.prompt.tolist()
    else:
        row["prompt"] = request.text
    row["output_tokens"] = request.output_tokens
    if request.lora_id != NO_LORA:
        row["lora_request"] = {"lora_name": f"lora_{request.lora_id}", "lora_int_id": request.lora_id, "lora_path": ""}
    if has_arrival and not math.isnan(request.arrival_s):
        row["arrival_s"] = request.arrival_s
    for name in ("priority", "session", "turn", "after", "think_s"):
        value = getattr(request, name)
        if value != OPTIONAL[name][0]:
            row[name] = value
    slo = {name: limit for name, limit in zip(_SLO, request.slo_ms, strict=True) if not math.isnan(limit)}
    if slo:
        row["slo_ms"] = slo
    return json.dumps(row, separators=(",", ":"), ensure_ascii=False)


def write(workload: Workload, stream: IO[str]) -> None:
    """All requests of a workload, a line each."""
    has_arrival = len(workload.arrival_s) > 0
    for begin in range(0, len(workload), 4096):
        for row in workload.rows(range(begin, min(begin + 4096, len(workload)))):
            stream.write(to_line(row, has_arrival) + "\n")


def read(path: Path | str, *, skip_bad_rows: bool = False, name: str | None = None) -> tuple[Workload, int]:
    """The workload in a dataset file, and how many rows were skipped (0 unless `skip_bad_rows`).

    Raises:
        WorkloadError: no such file, no request in it, or (naming the line) a row that is not a request.
    """
    path = Path(path)
    rows: list[_Line] = []
    skipped = 0
    for place, line in _lines(path):
        try:
            rows.append(_check(line))
        except ValueError as error:
            if not skip_bad_rows:
                raise WorkloadError(f"{path}, {place}: {error} ({SKIP_HINT})") from None
            skipped += 1
    if not rows:
        raise WorkloadError(f"{path} holds no request; expected JSON lines with input_ids or prompt, and output_tokens")
    return _workload(_in_time(rows), path, name or path.stem), skipped


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """(`line 3`, its text) of each line that is not blank, or (`row 3`, its JSON) of each element of a JSON array."""
    with open_text(path, "dataset") as stream:
        is_array = first_line(stream)[0].lstrip().startswith("[")
    if is_array:
        yield from ((f"row {number}", json.dumps(item)) for number, item in enumerate(items(path), start=1))
        return
    with open_text(path, "dataset") as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                yield f"line {number}", line


TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Seconds = Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False)]
Milliseconds = Annotated[float, Field(ge=0, le=1e15, allow_inf_nan=False)]
Limit = Annotated[float, Field(gt=0, le=1e12, allow_inf_nan=False)]


class _Lora(BaseModel):
    lora_int_id: Annotated[int, Field(ge=NO_LORA, lt=2**31)]


class _Limits(BaseModel):
    model_config = ConfigDict(extra="forbid")

    ttft: Limit | None = None
    tpot: Limit | None = None
    e2e: Limit | None = None


class _Line(BaseModel):
    """A line of a dataset; what it does not name is passed over."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)

    input_ids: Annotated[list[TokenId], Field(min_length=1)] | None = None
    prompt: Annotated[str, Field(min_length=1)] | None = Field(None, validation_alias=AliasChoices("prompt", "text_input"))
    output_tokens: Annotated[int, Field(ge=1, lt=2**31)] = Field(
        validation_alias=AliasChoices("output_tokens", "output_len", "output_length", "max_tokens")
    )
    lora_request: _Lora | None = None
    arrival_s: Seconds | None = None
    think_s: Seconds | None = None
    priority: Annotated[int, Field(ge=-(2**31), lt=2**31)] | None = None
    session: Annotated[int, Field(ge=-1, lt=2**63)] | None = None
    turn: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    after: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    slo_ms: _Limits | None = None
    timestamp: Milliseconds | None = None
    delay: Milliseconds | None = None
    session_id: str | int | None = None


_OBJECTS = {"lora_request": "an object with a whole number lora_int_id", "slo_ms": "an object of ttft, tpot and e2e limits above 0"}
_MUST_BE = {
    "input_ids": "a list of at least one token id; token ids are whole numbers of at least 0",
    "output_tokens": "a whole number of at least 1 and below 2**31",
    "prompt": "text that is not empty",
    **dict.fromkeys(("arrival_s", "think_s"), "seconds of at least 0"),
    **dict.fromkeys(("timestamp", "delay"), "milliseconds of at least 0"),
    "session_id": "text or a whole number",
    **dict.fromkeys(("priority", "session", "turn", "after"), "a whole number, no larger than the field holds"),
}


def _check(line: str) -> _Line:
    """A row with its types checked. Raises ValueError saying what is wrong with it."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at column {error.colno})") from None
    except RecursionError:
        raise ValueError("not a dataset's JSON: its objects are nested too deeply") from None
    except ValueError:
        raise ValueError("not JSON that can be read: a number has too many digits") from None
    if not isinstance(row, dict):
        raise ValueError("expected a JSON object with input_ids or prompt, and output_tokens")
    try:
        checked = _Line.model_validate(row)
    except ValidationError as error:
        raise ValueError(_wrong(error, row)) from None
    if checked.input_ids is None and checked.prompt is None:
        raise ValueError("neither input_ids nor prompt is there")
    return checked


def _wrong(error: ValidationError, row: dict[str, Any]) -> str:
    problem = typed.first(error)
    where, field = typed.location(problem), str(problem["loc"][0])
    if field in _OBJECTS:
        return f"{field} must be {_OBJECTS[field]}, not {typed.shorten(row[field])}"
    if problem["type"] == "missing":
        return "output_tokens is None; it must be a whole number of at least 1"
    name = "prompt" if field == "text_input" else "output_tokens" if field not in _MUST_BE else field
    return f"{where} is {typed.shorten(problem['input'])}; it must be {_MUST_BE[name]}"


def _in_time(rows: list[_Line]) -> list[_Line]:
    """Lines with AIPerf's times as our own have theirs, by the earliest that each can be due; other lines as they are."""
    if all(row.timestamp is None and row.delay is None for row in rows):
        return rows
    timed = any(row.timestamp is not None for row in rows)
    sessions: dict[str | int, list[int]] = {}
    numbers: dict[str | int, int] = {}
    earliest_s: list[float] = []
    changes: list[dict[str, Any]] = []
    for place, row in enumerate(rows):
        turns = [] if row.session_id is None else sessions.setdefault(row.session_id, [])
        waits = row.timestamp is None and bool(turns)
        delay_s = (row.delay or 0.0) / 1e3
        own_s = None if row.timestamp is None else row.timestamp / 1e3
        earliest_s.append(earliest_s[turns[-1]] + delay_s if waits else own_s or 0.0)
        number = -1 if row.session_id is None else numbers.setdefault(row.session_id, len(numbers))
        change: dict[str, Any] = {"session": number, "turn": len(turns)}
        change |= {"after": turns[-1], "think_s": delay_s} if waits else {"after": -1, "think_s": 0.0}
        changes.append(change | ({"arrival_s": own_s} if timed else {}))
        turns.append(place)
    order = sorted(range(len(rows)), key=lambda place: earliest_s[place])
    rank = {place: position for position, place in enumerate(order)} | {-1: -1}
    begin_s = min((change["arrival_s"] for change in changes if change.get("arrival_s") is not None), default=0.0)
    for change in changes:
        change["after"] = rank[change["after"]]
        if change.get("arrival_s") is not None:
            change["arrival_s"] -= begin_s
    return [rows[place].model_copy(update=changes[place]) for place in order]


def _workload(rows: list[_Line], path: Path, name: str) -> Workload:
    n = len(rows)
    ids = [row.input_ids for row in rows if row.input_ids is not None]
    texts = [row.prompt for row in rows if row.input_ids is None and row.prompt is not None]
    prompts: Prompts
    if not texts:
        prompts = TokenPrompts.of(ids)
        inputs = np.diff(prompts.offsets).astype(np.int32)
    elif not ids:
        prompts, inputs = TextPrompts(tuple(texts)), np.zeros(n, np.int32)
    else:
        raise WorkloadError(f"{path}: {len(ids)} of {n} rows have input_ids and the others only a prompt; use one kind in a file")

    def column(key: str) -> npt.NDArray[np.generic] | None:
        neutral, dtype = OPTIONAL[key]
        if all(key not in row.model_fields_set for row in rows):
            return None
        return np.asarray([neutral if getattr(row, key) is None else getattr(row, key) for row in rows], dtype=dtype)

    columns: dict[str, Any] = {key: column(key) for key in ("priority", "session", "turn", "after", "think_s")}
    after = columns["after"]
    if any(row.lora_request for row in rows):
        loras = [row.lora_request.lora_int_id if row.lora_request else NO_LORA for row in rows]
        columns["lora_id"] = np.asarray(loras, dtype=np.int32)
    if any(row.slo_ms for row in rows):
        columns["slo_ms"] = np.asarray([[_limit(row.slo_ms, name) for name in _SLO] for row in rows], dtype=np.float64)
    if any("arrival_s" in row.model_fields_set for row in rows):
        times = [row.arrival_s for row in rows]
        for k, time in enumerate(times):
            if time is None and (after is None or after[k] < 0):
                raise WorkloadError(f"{path}: request {k} has no arrival_s though others do; give every request one, or none")
        columns["arrival_s"] = np.asarray([math.nan if t is None else t for t in times], dtype=np.float64)
    outputs = np.asarray([row.output_tokens for row in rows], dtype=np.int32)
    return Workload(name=name, prompts=prompts, input_tokens=inputs, output_tokens=outputs, **columns)


def _limit(limits: _Limits | None, name: str) -> float:
    value = None if limits is None else getattr(limits, name)
    return math.nan if value is None else float(value)
