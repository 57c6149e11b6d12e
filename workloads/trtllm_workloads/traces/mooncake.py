"""Mooncake's traces (github.com/kvcache-ai/Mooncake, FAST'25, Apache-2.0): JSON lines with the prefix blocks of each prompt.

`timestamp` is in milliseconds, on a grid of about 3 seconds in the conversation trace: a dozen requests share each instant. Replayed as
they stand these are bursts that the recorded service did not see; `filters.jitter` spreads them, and `trace info` says so.
`hash_ids` are blocks of 512 tokens, equal ids meaning equal prompts up to and including that block; the last one may be partial.
"""

from __future__ import annotations

from collections.abc import Sequence

from trtllm_workloads.traces.columns import counts, seconds
from trtllm_workloads.traces.jsonlines import blocks, objects
from trtllm_workloads.traces.trace import Trace

BLOCK_TOKENS = 512


class Mooncake:
    header_lines = 0

    def __init__(self, first_line: str) -> None:
        pass

    def parse(self, lines: Sequence[str]) -> Trace:
        rows = objects(lines, ("timestamp", "input_length", "output_length", "hash_ids"))
        offsets, ids = blocks(rows)
        return Trace(
            "mooncake",
            counts([row["input_length"] for row in rows], "input_length"),
            counts([row["output_length"] for row in rows], "output_length"),
            seconds([row["timestamp"] for row in rows], "timestamp") / 1e3,
            block_offsets=offsets,
            block_ids=ids,
            block_tokens=BLOCK_TOKENS,
        )
