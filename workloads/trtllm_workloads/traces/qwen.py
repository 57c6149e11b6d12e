"""Qwen-Bailian's anonymised usage traces (github.com/alibaba-edu/qwen-bailian-usagetraces-anon, Apache-2.0): JSON lines with conversations.

`timestamp` is in seconds, `hash_ids` are blocks of 16 tokens, `parent_chat_id` is -1 for a first turn and else the `chat_id` it continues.
A turn whose parent lies outside the file starts a session of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trtllm_workloads.traces.columns import counts, seconds
from trtllm_workloads.traces.jsonlines import blocks, numbers, objects
from trtllm_workloads.traces.trace import Trace

BLOCK_TOKENS = 16


class Qwen:
    header_lines = 0

    def __init__(self, first_line: str) -> None:
        self._session_of: dict[int, int] = {}

    def parse(self, lines: Sequence[str]) -> Trace:
        rows = objects(lines, ("chat_id", "parent_chat_id", "timestamp", "input_length", "output_length", "hash_ids"))
        arrival = seconds(numbers(rows, "timestamp"), "timestamp")
        inputs = counts(numbers(rows, "input_length"), "input_length")
        outputs = counts(numbers(rows, "output_length"), "output_length")
        offsets, ids = blocks(rows)
        session, turn = np.empty(len(rows), np.int64), np.empty(len(rows), np.int32)
        for place, row in enumerate(rows):
            chat, parent, position = row["chat_id"], row["parent_chat_id"], row.get("turn", 1)
            if type(chat) is not int or type(parent) is not int or type(position) is not int:
                raise ValueError("chat_id, parent_chat_id and turn must be whole numbers")
            if not (-(2**63) <= chat < 2**63 and -(2**63) <= parent < 2**63 and -(2**31) < position < 2**31):
                raise ValueError("chat_id and parent_chat_id must be 64-bit numbers, and turn a 32-bit one")
            session[place] = self._session_of[chat] = self._session_of.get(parent, chat)
            turn[place] = max(position - 1, 0)
        return Trace("qwen", inputs, outputs, arrival, session, turn, offsets, ids, BLOCK_TOKENS)
