"""A model without numbers: the next token is a hash of the whole history, read back from fake KV pages.

It keeps its own block table and last tokens, as a device does, and executes a step only when the next is launched or its result is asked
for. A scheduler that shares a page, forgets an update, mixes up slots or frees too early changes the history and so the tokens.
"""

from __future__ import annotations

import numpy as np

from trtllm_engines.runtime.batch import StepBatch, StepOutput

VOCAB = 97


def next_token(history: list[int]) -> int:
    value = 17
    for token in history:
        value = (value * 31 + token + 7) % 1_000_003
    return value % VOCAB


def expected_tokens(prompt: list[int], max_tokens: int, stop_ids: tuple[int, ...] = (), min_tokens: int = 0) -> list[int]:
    """What a request gives alone."""
    history = list(prompt)
    output: list[int] = []
    while len(output) < max_tokens:
        output.append(next_token(history))
        history.append(output[-1])
        if output[-1] in stop_ids and len(output) >= min_tokens:
            break
    return output


class FakeHandle:
    def __init__(self, runner: FakeRunner, batch: StepBatch) -> None:
        self.runner, self.batch = runner, batch
        self.output: StepOutput | None = None

    def done(self) -> bool:
        return self.output is not None

    def result(self) -> StepOutput:
        self.runner.execute_until(self)
        assert self.output is not None
        return self.output


class FakeRunner:
    def __init__(self, num_slots: int, max_pages: int, num_pages: int, page_size: int, max_num_tokens: int) -> None:
        self.block_table = np.full((num_slots, max_pages), -1)
        self.kv = np.full((num_pages, page_size), -1)
        self.last_tokens = np.full(num_slots, -1)
        self.page_size, self.max_num_tokens, self.num_slots = page_size, max_num_tokens, num_slots
        self.queue: list[FakeHandle] = []
        self.batches: list[StepBatch] = []

    def launch(self, batch: StepBatch) -> FakeHandle:
        assert 0 < batch.num_tokens <= self.max_num_tokens
        assert batch.num_tokens == batch.query_lens.sum()
        assert len(set(batch.slots.tolist())) == len(batch.slots) <= self.num_slots
        assert (batch.query_lens[: batch.num_decodes] == 1).all()
        assert batch.sampled[: batch.num_decodes].all()
        handle = FakeHandle(self, batch)
        self.queue.append(handle)
        self.batches.append(batch)
        return handle

    def execute_until(self, last: FakeHandle) -> None:
        while last.output is None:
            self._execute(self.queue.pop(0))

    def _execute(self, handle: FakeHandle) -> None:
        batch = handle.batch
        for start in batch.starts:
            self.block_table[start.slot] = -1
        for slot, index, page in batch.page_updates:
            assert page > 0
            self.block_table[slot, index] = page
        tokens: list[int] = []
        cursor = 0
        for row, slot in enumerate(batch.slots):
            length, kv_len = int(batch.query_lens[row]), int(batch.kv_lens[row])
            if row < batch.num_decodes:
                new = [int(self.last_tokens[slot] if batch.decode_tokens is None else batch.decode_tokens[row])]
            else:
                new = batch.context_tokens[cursor : cursor + length].tolist()
                cursor += length
            positions = np.arange(kv_len - length, kv_len)
            pages = self.block_table[slot, positions // self.page_size]
            assert (pages > 0).all()
            self.kv[pages, positions % self.page_size] = new
            if batch.sampled[row]:
                everything = np.arange(kv_len)
                history = self.kv[self.block_table[slot, everything // self.page_size], everything % self.page_size]
                assert (history >= 0).all()
                tokens.append(next_token(history.tolist()))
                self.last_tokens[slot] = tokens[-1]
        handle.output = StepOutput(np.array(tokens, np.int32))
