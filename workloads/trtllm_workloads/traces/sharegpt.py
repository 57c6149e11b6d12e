"""ShareGPT: conversations as a JSON array or one per line, and the CSV of token counts that Sarathi-Serve published. None has timestamps.

Turns are `from` and `value` as in ShareGPT, or `role` and `content` as in OpenAI's messages and the datasets of LMSYS and WildChat.
Every human turn that is answered is a request; its prompt is the whole conversation up to it. A text's token count needs its model's
tokenizer; without one it is taken as a quarter of its characters, rounded up (stated, because figures depend on it). A key that is null is
as one that is not there: rows of a Parquet file have all keys that any of them has.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trtllm_workloads.errors import SKIP_HINT, WorkloadError
from trtllm_workloads.json_items import items
from trtllm_workloads.traces.columns import Csv, counts
from trtllm_workloads.traces.trace import Trace

CONVERSATIONS = ("conversations", "conversation", "messages")
ASKED, ANSWERED = {"human", "user"}, {"gpt", "chatgpt", "bard", "bing", "assistant"}
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
    for number, item in enumerate(items(path), start=1):
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
    turns = _first(item, CONVERSATIONS) if isinstance(item, dict) else None
    if not isinstance(turns, list):
        raise ValueError("there is no list of conversations")
    held, turn, before = 0, 0, ""
    for place, said in enumerate(turns):
        text = _text(said)
        if text is None:
            raise ValueError(f"turn {place + 1} has no text in 'value' or 'content'")
        speaker, length = _speaker(said), quarter_of_characters(text)
        if speaker in ANSWERED and before in ASKED:
            yield turn, held, length
            turn += 1
        held += length
        before = speaker


def answered(messages: Any) -> bool:
    """Whether messages have an answer in them, whose length tells how many tokens to ask for."""
    return isinstance(messages, list) and any(isinstance(said, dict) and _speaker(said) in ANSWERED for said in messages)


def _speaker(said: dict[str, Any]) -> str:
    return str(_first(said, ("from", "role")))


def _first(item: dict[str, Any], names: Sequence[str]) -> Any:
    return next((item[name] for name in names if item.get(name) is not None), None)


def _text(said: Any) -> str | None:
    """What a turn says; of OpenAI's parts, the texts together. None where it is no turn with a text."""
    content = _first(said, ("value", "content")) if isinstance(said, dict) else None
    if isinstance(content, list) and all(isinstance(part, dict) for part in content):
        content = "".join(part["text"] for part in content if isinstance(part.get("text"), str))
    return content if isinstance(content, str) else None


def _trace(rows: list[tuple[int, int, int, int]], skipped: int) -> Trace:
    table = np.asarray(rows, dtype=np.int64).reshape(-1, 4)
    inputs, outputs = table[:, 2].astype(np.int32), table[:, 3].astype(np.int32)
    return Trace("sharegpt", inputs, outputs, np.empty(0), session=table[:, 0], turn=table[:, 1].astype(np.int32), skipped=skipped)
