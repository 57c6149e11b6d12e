"""State of the running sequences as vectors, one entry per slot, so that a decode step costs the host the same at 8 sequences and at 2,048.

A sequence is described by two counters that run apart, because the host schedules ahead of the device: `launched` tokens have been
asked for, `received` have come back. `tokens` holds the whole history of each slot (prompt, then output); rows are allocated but not
touched, so that a long maximum costs no memory until it is used. Where a vector is indexed by many slots the code says
`x.take(slots)` with 64-bit slots: two to three times quicker than `x[slots]` at these sizes.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np

from trtllm_engines.runtime.request import Request


class State(IntEnum):
    """In this order, so that `>= RUNNING` asks whether tokens that come back count."""

    FREE = 0
    RETIRING = 1
    """Finished or cancelled; steps in flight may still write its pages."""
    RUNNING = 2
    PREEMPTED = 3
    """Lost its pages; tokens in flight still count; returns to the queue when they have come back."""


class Slots:
    def __init__(self, count: int, max_seq_len: int, max_pages_per_seq: int) -> None:
        self.requests: list[Request | None] = [None] * count
        self.state = np.zeros(count, np.int8)
        self.order = np.zeros(count, np.int64)
        self.prompt_len = np.zeros(count, np.int32)
        self.context_len = np.zeros(count, np.int32)
        """Tokens known on the host when it took the slot (prompt, and output before a preemption): what its prefill computes."""
        self.computed = np.zeros(count, np.int32)
        """Tokens in the cache once all launched steps have run."""
        self.launched = np.zeros(count, np.int32)
        self.received = np.zeros(count, np.int32)
        self.max_new = np.zeros(count, np.int32)
        self.min_new = np.zeros(count, np.int32)
        self.num_pages = np.zeros(count, np.int32)
        self.last_step = np.full(count, -1, np.int64)
        """Last launched step it takes part in."""
        self.watched = np.zeros(count, np.bool_)
        """Someone wants its tokens one by one: a callback, stop strings or log-probabilities."""
        self.block_table = np.zeros((count, max_pages_per_seq), np.int32)
        self.stop_ids = np.full((1, count), -1, np.int32)
        """[most stop ids of any slot, slots]"""
        self.tokens = np.empty((count, max_seq_len), np.int32)
        self.steps = np.empty((count, max_seq_len), np.int32)
        """Step that made each output token of `tokens`."""
        self.cursor = np.zeros(count, np.int64)
        """Where in `tokens` (flat) the next token received goes."""

    def occupy(self, slot: int, request: Request) -> None:
        prompt, output = request.prompt, request.output
        known = len(prompt) + len(output)
        self.requests[slot] = request
        request.slot = slot
        self.state[slot] = State.RUNNING
        self.order[slot] = request.request_id
        self.prompt_len[slot] = len(prompt)
        self.context_len[slot] = known
        self.computed[slot] = 0
        self.launched[slot] = self.received[slot] = len(output)
        self.max_new[slot] = request.max_new
        self.min_new[slot] = request.sampling.min_tokens
        self.num_pages[slot] = 0
        self.last_step[slot] = -1
        self.watched[slot] = request.on_token is not None or bool(request.sampling.stop) or request.sampling.logprobs is not None
        self.tokens[slot, : len(prompt)] = prompt
        self.tokens[slot, len(prompt) : known] = output
        self.steps[slot, len(prompt) : known] = request.output_steps
        self.cursor[slot] = slot * self.tokens.shape[1] + known
        self._set_stop_ids(slot, request.stop_ids)

    def save_output(self, slot: int, request: Request) -> None:
        """Copies what the slot generated into the request, before the slot is reused."""
        start = int(self.prompt_len[slot])
        end = start + int(self.received[slot])
        request.output = self.tokens[slot, start:end].copy()
        request.output_steps = self.steps[slot, start:end].copy()

    def vacate(self, slot: int) -> None:
        request = self.requests[slot]
        assert request is not None
        request.slot = -1
        self.requests[slot] = None
        self.state[slot] = State.FREE
        self.watched[slot] = False
        self.num_pages[slot] = 0

    def _set_stop_ids(self, slot: int, stop_ids: tuple[int, ...]) -> None:
        missing = len(stop_ids) - len(self.stop_ids)
        if missing > 0:
            self.stop_ids = np.pad(self.stop_ids, ((0, missing), (0, 0)), constant_values=-1)
        self.stop_ids[:, slot] = -1
        self.stop_ids[: len(stop_ids), slot] = stop_ids
