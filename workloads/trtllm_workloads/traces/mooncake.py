"""Mooncake's traces (github.com/kvcache-ai/Mooncake, FAST'25, Apache-2.0), and AIPerf's and vLLM's dialects: JSON lines with lengths.

`timestamp` is in milliseconds, in Mooncake's conversation trace on a grid of about 3 seconds: a dozen requests share each instant. Replayed
as they stand these are bursts that the recorded service did not see; `filters.jitter` spreads them, and `trace info` says so.
`hash_ids` are blocks of 512 tokens, equal ids meaning equal prompts up to and including that block; the last one may be partial. AIPerf's
lines may lack them: such prompts share nothing.

AIPerf's lines may have a `session_id`. A later turn of a session has a time of its own, or waits `delay` milliseconds (0 without) after the
answer to the turn before. Lines without any time are sent as the load has them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from trtllm_workloads.traces.columns import counts, seconds
from trtllm_workloads.traces.jsonlines import blocks, numbers, objects
from trtllm_workloads.traces.trace import Trace

BLOCK_TOKENS = 512
OPTIONAL = ("timestamp", "delay", "session_id", "hash_ids")
"""Fields that may be null, which is as if they were not there."""
UNTIMED = "there is a timestamp, though the first line has none; give every line or session a time, or none"


class Mooncake:
    header_lines = 0

    def __init__(self, first_line: str) -> None:
        self._timed = _has_time(first_line)
        self._sessions: dict[Any, int] = {}
        self._turns: dict[int, int] = {}
        self._earliest: dict[int, float] = {}

    def parse(self, lines: Sequence[str]) -> Trace:
        rows = objects(lines, ("input_length", "output_length"))
        if any("null" in line for line in lines):
            rows = [{name: value for name, value in row.items() if value is not None or name not in OPTIONAL} for row in rows]
        try:
            inputs = counts(numbers(rows, "input_length"), "input_length")
            outputs = counts(numbers(rows, "output_length"), "output_length")
        except ValueError:
            if len(rows) == 1 and "session_id" in rows[0]:
                self._in_sessions(rows)  # the turn that follows one of no tokens still has it before it
            raise
        offsets, ids = blocks(rows)
        if any("session_id" in row for row in rows) or self._sessions:
            arrival, delay, session, turn = self._in_sessions(rows)
        else:
            arrival = self._arrivals(rows)
            delay, session, turn = np.full(len(rows), np.nan), np.full(len(rows), -1, np.int64), np.zeros(len(rows), np.int32)
        return Trace("mooncake", inputs, outputs, arrival, session, turn, offsets, ids, BLOCK_TOKENS, delay_s=delay)

    def _arrivals(self, rows: Sequence[dict[str, Any]]) -> Any:
        """[n] seconds, or none where the first line has none either."""
        if not self._timed:
            if any("timestamp" in row for row in rows):
                raise ValueError(UNTIMED)
            return np.empty(0)
        if not all("timestamp" in row for row in rows):
            raise ValueError("there is no timestamp")
        return seconds(numbers(rows, "timestamp"), "timestamp") / 1e3

    def _in_sessions(self, rows: Sequence[dict[str, Any]]) -> tuple[Any, ...]:
        """(earliest arrival, delay, session, turn) of each row; a row that waits could come at its predecessor's earliest time + delay."""
        sessions, turns, earliest = dict(self._sessions), dict(self._turns), dict(self._earliest)
        arrival, delay = np.zeros(len(rows)), np.full(len(rows), np.nan)
        session, turn = np.full(len(rows), -1, np.int64), np.zeros(len(rows), np.int32)
        for place, row in enumerate(rows):
            name = row.get("session_id")
            if name is not None and not isinstance(name, str | int):
                raise ValueError(f"session_id is {name!r:.60}, not a text or a whole number")
            number = -1 if name is None else sessions.setdefault(name, len(sessions))
            follows = number in turns
            if "timestamp" in row:
                if not self._timed:
                    raise ValueError(UNTIMED)
                arrival[place] = seconds(numbers([row], "timestamp"), "timestamp")[0] / 1e3
            elif follows:
                delay[place] = seconds(numbers([row], "delay"), "delay")[0] / 1e3 if "delay" in row else 0.0
                if delay[place] < 0:
                    raise ValueError(f"delay is {row['delay']!r}; it must be at least 0")
                arrival[place] = earliest[number] + delay[place]
            elif self._timed:
                raise ValueError("there is no timestamp, and no earlier line of its session to wait for")
            if number >= 0:
                session[place], turn[place] = number, turns.get(number, 0)
                turns[number], earliest[number] = int(turn[place]) + 1, float(arrival[place])
        self._sessions, self._turns, self._earliest = sessions, turns, earliest
        return (arrival if self._timed else np.empty(0)), delay, session, turn


def _has_time(line: str) -> bool:
    try:
        return json.loads(line).get("timestamp") is not None
    except (ValueError, AttributeError, RecursionError):
        return '"timestamp"' in line
