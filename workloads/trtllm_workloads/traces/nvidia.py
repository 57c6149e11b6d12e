"""NVIDIA's dataset lines seen as a trace: their lengths (and `arrival_s`, where written). To run such a file use it as a dataset."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trtllm_workloads.traces.columns import counts, seconds
from trtllm_workloads.traces.jsonlines import numbers, objects
from trtllm_workloads.traces.trace import Trace

LENGTHS = {"output_tokens", "output_len", "output_length", "max_tokens"}
"""Names that the length of an answer has."""


class NvidiaLines:
    header_lines = 0

    def __init__(self, first_line: str) -> None:
        pass

    def parse(self, lines: Sequence[str]) -> Trace:
        rows = objects(lines, ())
        if not all(type(row.get("input_ids")) is list for row in rows):
            raise ValueError("there is no input_ids; the length of a text prompt is not known without a tokenizer")
        if not all(LENGTHS & set(row) for row in rows):
            raise ValueError("there is no output_tokens")
        outputs = [{"output_tokens": row[next(name for name in row if name in LENGTHS)]} for row in rows]
        arrival = np.empty(0)
        if all("arrival_s" in row for row in rows):
            arrival = seconds(numbers(rows, "arrival_s"), "arrival_s")
        inputs = counts([len(row["input_ids"]) for row in rows], "the number of input_ids")
        return Trace("nvidia", inputs, counts(numbers(outputs, "output_tokens"), "output_tokens"), arrival)
