"""ShareGPT: conversations as a JSON array or one per line, and the CSV of token counts that Sarathi-Serve published. None has timestamps.

Every human turn that is answered is a request; its prompt is the whole conversation up to it. A text's token count needs its model's
tokenizer; without one it is taken as a quarter of its characters, rounded up (stated, because figures depend on it).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trtllm_workloads.errors import SKIP_HINT, WorkloadError
from trtllm_workloads.files import LONGEST_LINE, open_text
from trtllm_workloads.traces.columns import Csv, counts
from trtllm_workloads.traces.trace import Trace

ASKED, ANSWERED = {"human", "user"}, {"gpt", "chatgpt", "bard", "bing", "assistant"}
_READ_CHARACTERS = 1 << 20
_REQUESTS_AT_ONCE = 4096


class ShareGPTLengths(Csv):
    """`num_prefill_tokens,num_decode_tokens,...` (microsoft/sarathi-serve, Apache-2.0)."""

    def __init__(self, header: str) -> None:
        super().__init__(header, ("num_prefill_tokens", "num_decode_tokens"))

    def parse(self, lines: Sequence[str]) -> Trace:
        columns = self.columns(lines)
        inputs = counts(columns["num_prefill_tokens"], "num_prefill_tokens")
        return Trace("sharegpt", inputs, counts(columns["num_decode_tokens"], "num_decode_tokens"), np.empty(0))


def quarter_of_characters(text: str) -> int:
    return max(1, -(-len(text) // 4))


def read_json(path: Path, skip_bad_rows: bool) -> Iterator[Trace]:
    """Requests of a ShareGPT file, some thousand at a time, without holding the whole file."""
    rows: list[tuple[int, int, int, int]] = []
    skipped = 0
    for number, item in enumerate(_items(path), start=1):
        try:
            rows += [(number - 1, *request) for request in _requests(item)]
        except ValueError as error:
            if not skip_bad_rows:
                raise WorkloadError(f"{path}, conversation {number}: {error} ({SKIP_HINT})") from None
            skipped += 1
        if len(rows) >= _REQUESTS_AT_ONCE:
            yield _trace(rows, skipped)
            rows, skipped = [], 0
    if rows or skipped:
        yield _trace(rows, skipped)


def _requests(item: Any) -> Iterator[tuple[int, int, int]]:
    """(turn, prompt tokens, answer tokens) of a conversation."""
    turns = item.get("conversations", item.get("conversation")) if isinstance(item, dict) else None
    if not isinstance(turns, list):
        raise ValueError("there is no list of conversations")
    held, turn = 0, 0
    for place, said in enumerate(turns):
        if not isinstance(said, dict) or not isinstance(said.get("value"), str):
            raise ValueError(f"turn {place + 1} has no text in 'value'")
        length = quarter_of_characters(said["value"])
        before = str(turns[place - 1].get("from")) if place else ""
        if str(said.get("from")) in ANSWERED and before in ASKED:
            yield turn, held, length
            turn += 1
        held += length


def _trace(rows: list[tuple[int, int, int, int]], skipped: int) -> Trace:
    table = np.asarray(rows, dtype=np.int64).reshape(-1, 4)
    inputs, outputs = table[:, 2].astype(np.int32), table[:, 3].astype(np.int32)
    return Trace("sharegpt", inputs, outputs, np.empty(0), session=table[:, 0], turn=table[:, 1].astype(np.int32), skipped=skipped)


def _items(path: Path) -> Iterator[Any]:
    """Elements of a JSON array too large to load, or the values of JSON lines, one after another."""
    decoder = json.JSONDecoder()
    with open_text(path, "trace", lines=False) as stream:
        buffer = stream.read(_READ_CHARACTERS).lstrip()
        if not buffer.startswith(("[", "{")):
            raise WorkloadError(f"{path} is no JSON array of conversations")
        separator = "," if buffer.startswith("[") else ""
        buffer = buffer.removeprefix("[")
        while True:
            buffer = buffer.lstrip().removeprefix(separator).lstrip()
            if buffer.startswith("]") if separator else not (buffer or (buffer := stream.read(_READ_CHARACTERS).lstrip())):
                return
            try:
                item, end = decoder.raw_decode(buffer)
            except RecursionError:
                raise WorkloadError(f"{path} is no ShareGPT file: its JSON is nested too deeply") from None
            except ValueError as error:
                if len(buffer) > LONGEST_LINE:
                    told = f"is not JSON ({error}), or a conversation has over {LONGEST_LINE:,} characters"
                    raise WorkloadError(f"{path} {told}") from None
                more = stream.read(max(_READ_CHARACTERS, len(buffer)))
                if not more:
                    raise WorkloadError(f"{path} ends in the middle of a conversation, or is not JSON ({error})") from None
                buffer += more
                continue
            yield item
            buffer = buffer[end:]
