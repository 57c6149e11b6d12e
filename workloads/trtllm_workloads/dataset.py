"""Datasets on disk: JSON lines in the format of NVIDIA's `prepare_dataset.py`, one request a line.

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
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from trtllm_workloads.errors import WorkloadError
from trtllm_workloads.files import open_text
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
        WorkloadError: no such file, no request in it, or (naming the line) a row that is no request.
    """
    path = Path(path)
    rows: list[dict[str, Any]] = []
    skipped = 0
    for number, line in _lines(path):
        try:
            rows.append(_check(line))
        except ValueError as error:
            if not skip_bad_rows:
                raise WorkloadError(f"{path}, line {number}: {error}") from None
            skipped += 1
    if not rows:
        raise WorkloadError(f"{path} holds no request; expected JSON lines with input_ids or prompt, and output_tokens")
    return _workload(rows, path, name or path.stem), skipped


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    with open_text(path, "dataset") as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                yield number, line


def _check(line: str) -> dict[str, Any]:
    """A row with its types checked. Raises ValueError saying what is wrong with it."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at column {error.colno})") from None
    if not isinstance(row, dict):
        raise ValueError("expected a JSON object with input_ids or prompt, and output_tokens")
    ids, text = row.get("input_ids"), row.get("prompt")
    if ids is None and text is None:
        raise ValueError("neither input_ids nor prompt is there")
    if ids is not None:
        if not isinstance(ids, list) or not ids:
            raise ValueError("input_ids must be a list of at least one token id")
        if not all(type(i) is int and 0 <= i < 2**31 for i in ids):
            raise ValueError("input_ids must hold token ids, whole numbers of at least 0")
    elif not isinstance(text, str) or not text:
        raise ValueError("prompt must be a text that is not empty")
    output = row.get("output_tokens")
    if type(output) is not int or not 1 <= output < 2**31:
        raise ValueError(f"output_tokens is {output!r}; it must be a whole number of at least 1")
    lora = row.get("lora_request")
    if lora is not None and (not isinstance(lora, dict) or type(lora.get("lora_int_id")) is not int):
        raise ValueError("lora_request must be an object with a whole number lora_int_id")
    for key in ("arrival_s", "think_s"):
        value = row.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf):
            raise ValueError(f"{key} is {value!r}; it must be seconds of at least 0")
    for key in ("priority", "session", "turn", "after"):
        if row.get(key) is not None and type(row[key]) is not int:
            raise ValueError(f"{key} is {row[key]!r}; it must be a whole number")
    slo = row.get("slo_ms")
    if slo is not None and (
        not isinstance(slo, dict) or not all(k in _SLO and isinstance(v, int | float) and v > 0 for k, v in slo.items())
    ):
        raise ValueError("slo_ms must be an object of ttft, tpot and e2e limits above 0")
    return row


def _workload(rows: list[dict[str, Any]], path: Path, name: str) -> Workload:
    n = len(rows)
    with_ids = sum("input_ids" in row and row["input_ids"] is not None for row in rows)
    prompts: Prompts
    if with_ids == n:
        prompts = TokenPrompts.of([row["input_ids"] for row in rows])
        inputs = np.diff(prompts.offsets).astype(np.int32)
    elif with_ids == 0:
        prompts, inputs = TextPrompts(tuple(row["prompt"] for row in rows)), np.zeros(n, np.int32)
    else:
        raise WorkloadError(f"{path}: {with_ids} of {n} rows have input_ids and the others only a prompt; use one kind in a file")

    def column(key: str) -> npt.NDArray[np.generic] | None:
        neutral, dtype = OPTIONAL[key]
        if not any(key in row for row in rows):
            return None
        return np.asarray([neutral if row.get(key) is None else row[key] for row in rows], dtype=dtype)

    columns: dict[str, Any] = {key: column(key) for key in ("priority", "session", "turn", "after", "think_s")}
    after = columns["after"]
    if any(row.get("lora_request") for row in rows):
        ids = [row["lora_request"]["lora_int_id"] if row.get("lora_request") else NO_LORA for row in rows]
        columns["lora_id"] = np.asarray(ids, dtype=np.int32)
    if any(row.get("slo_ms") for row in rows):
        columns["slo_ms"] = np.asarray([[(row.get("slo_ms") or {}).get(k, math.nan) for k in _SLO] for row in rows])
    if any("arrival_s" in row for row in rows):
        times = [row.get("arrival_s") for row in rows]
        for k, time in enumerate(times):
            if time is None and (after is None or after[k] < 0):
                raise WorkloadError(f"{path}: request {k} has no arrival_s though others do; give every request one, or none")
        columns["arrival_s"] = np.asarray([math.nan if t is None else t for t in times], dtype=np.float64)
    outputs = np.asarray([row["output_tokens"] for row in rows], dtype=np.int32)
    return Workload(name=name, prompts=prompts, input_tokens=inputs, output_tokens=outputs, **columns)
