"""The in-flight batcher: which sequences run in the next step, with which tokens and pages.

Each step packs every decoding sequence (one token each), then prompt chunks, oldest first, into one ragged batch under `max_batch_size`
and `max_num_tokens`. A prompt longer than a step's budget is cut (chunked prefill); one that fits a step of its own waits for it rather
than be cut, since attention over a cached past costs more than over fresh rows and budget left over costs nothing. Policies:

- `guaranteed_no_evict` admits a request only when the pages that it and all running ones can ever need fit: nothing is preempted.
- `max_utilization` admits when the prompt fits now, beside a page of headroom for each running sequence (without it a sequence just
  preempted would come straight back and be preempted again). When pages run out the youngest loses its own and later recomputes.
- `static_batch` admits a batch, prefills all of it, decodes until the last one ends: the old way, kept to compare against.

The host runs ahead of the device: `schedule` builds step n + 1 before step n's tokens are known. A sequence that reaches its length is
known to end and is not scheduled again; one that ends by a stop token is in one step too many, whose token `receive` drops. Slot and pages
are released when the last launched step that contains them has come back, so nothing in flight can write a page that has a new owner.
In a pipeline (`stages`) a step takes a share of the sequences, so that each stage has one: a sequence goes on once its token has come back
from the last stage, while chunks of one prompt follow each other at once.
A decode step touches whole vectors only: Python per request runs when one is admitted, preempted or finished. (One Python object per
sequence and step, as is usual, costs more at 2,048 sequences than a step of a small model takes on the device.)
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from trtllm_engines.errors import EngineError
from trtllm_engines.runtime.batch import IntArray, SlotStart, StepBatch
from trtllm_engines.runtime.pages import PagePool
from trtllm_engines.runtime.request import Request
from trtllm_engines.runtime.slots import Slots, State

Policy = Literal["guaranteed_no_evict", "max_utilization", "static_batch"]
POLICIES: tuple[str, ...] = get_args(Policy)
SlotArray = npt.NDArray[np.intp]
NO_PAGES = np.empty((0, 3), np.int32)


@dataclass(frozen=True)
class SchedulerConfig:
    max_batch_size: int
    max_num_tokens: int
    max_seq_len: int
    page_size: int
    num_pages: int
    policy: Policy = "guaranteed_no_evict"
    stages: int = 1
    """Of a pipeline: so many steps are in flight, and a sequence decodes in one of them at a time."""

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise EngineError(f"unknown batching policy {self.policy!r}; choose one of {', '.join(POLICIES)}")
        for name in ("max_batch_size", "max_num_tokens", "max_seq_len", "page_size", "stages"):
            if getattr(self, name) < 1:
                raise EngineError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.max_num_tokens < self.max_batch_size:
            raise EngineError(
                f"max_num_tokens ({self.max_num_tokens}) must be at least max_batch_size ({self.max_batch_size}); "
                "each decoding sequence takes one token of a step"
            )

    @property
    def max_pages_per_seq(self) -> int:
        return -(-self.max_seq_len // self.page_size)


@dataclass(frozen=True)
class Received:
    """What came back of one step. `rows` index the batch's sampled rows whose token counts; `slots` are theirs."""

    rows: npt.NDArray[np.intp]
    slots: SlotArray
    tokens: IntArray
    stopped: SlotArray
    """Slots that met a stop token."""
    exhausted: SlotArray
    """Slots that reached their length."""


class Scheduler:
    def __init__(self, config: SchedulerConfig) -> None:
        self.config = config
        self.pool = PagePool(config.num_pages)
        self.slots = Slots(config.max_batch_size, config.max_seq_len, config.max_pages_per_seq)
        self.preemptions = 0
        self._waiting: list[tuple[int, Request]] = []
        self._free_slots = list(range(config.max_batch_size))[::-1]
        self._decoding: SlotArray = np.empty(0, np.intp)
        self._prefilling: list[int] = []
        self._leaving: list[int] = []
        self._reserved = 0
        self._num_waiting = 0
        self._returned = -1

    @property
    def num_waiting(self) -> int:
        return self._num_waiting

    @property
    def num_running(self) -> int:
        return self.config.max_batch_size - len(self._free_slots)

    @property
    def idle(self) -> bool:
        return self._num_waiting == 0 and self.num_running == 0

    def pages_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.config.page_size)

    def enqueue(self, request: Request) -> None:
        """Requests are served in the order of their ids. The caller has checked that the request alone fits the cache and the profile."""
        heapq.heappush(self._waiting, (request.request_id, request))
        self._num_waiting += 1

    def forget(self, request: Request) -> None:
        """A waiting request is finished (cancelled); its place in the queue is dropped when reached."""
        assert request.finished
        self._num_waiting -= 1

    def unfinished(self) -> list[Request]:
        """Every request that runs or waits."""
        running = [request for request in self.slots.requests if request is not None]
        return [request for request in (*running, *(entry[1] for entry in self._waiting)) if not request.finished]

    # --- a step forward ---

    def schedule(self, step: int) -> StepBatch | None:
        """The next step's work, or None when nothing can run until steps in flight return (or there is nothing to do)."""
        updates: list[IntArray] = []
        starts: list[SlotStart] = []
        static = self.config.policy == "static_batch"
        batch_is_empty = self.num_running == 0
        decodes = self._decoding if self.config.stages == 1 else self._next_flight()
        if static and self._prefilling:
            decodes = decodes[:0]
        decodes = self._grant_pages(decodes, updates)
        if not static:
            self._admit(self.config.max_num_tokens - len(decodes) - self._unfinished_context(), starts)
        elif batch_is_empty:
            self._admit(None, starts)
        if len(decodes) == 0 and not self._prefilling:
            return None
        return self._pack(step, decodes, updates, starts)

    def _next_flight(self) -> SlotArray:
        """The sequences to decode in a pipeline's next step: an equal share of all, of those that no step in flight has those that waited
        longest. Their tokens are on the host, from which the first stage takes them."""
        last_step = self.slots.last_step.take(self._decoding)
        ready = np.flatnonzero(last_step <= self._returned)
        share = -(-self.num_running // self.config.stages)
        chosen = ready[np.argsort(last_step[ready], kind="stable")[:share]]
        return self._decoding[np.sort(chosen)]

    def _unfinished_context(self) -> int:
        slots = self.slots
        return sum(int(slots.context_len[slot] - slots.computed[slot]) for slot in self._prefilling)

    def _grant_pages(self, decodes: SlotArray, updates: list[IntArray]) -> SlotArray:
        """Gives each sequence that crosses a page boundary its next page; returns the sequences that can run."""
        slots = self.slots
        growing = decodes[self._at_boundary(decodes)]
        if len(growing) == 0:
            return decodes
        if len(growing) > self.pool.free:
            decodes = self._make_room(decodes)
            growing = decodes[self._at_boundary(decodes)]
        index = slots.num_pages[growing]
        pages = self.pool.take(len(growing))
        slots.block_table[growing, index] = pages
        slots.num_pages[growing] = index + 1
        updates.append(np.stack((growing.astype(np.int32), index, pages), axis=1))
        return decodes

    def _at_boundary(self, decodes: SlotArray) -> npt.NDArray[np.bool_]:
        """Whether the next token of each needs a page it does not have."""
        held = self.slots.num_pages.take(decodes) * self.config.page_size
        return self.slots.computed.take(decodes) >= held

    def _make_room(self, decodes: SlotArray) -> SlotArray:
        """Preempts the youngest until the others' new pages fit. Pages of a victim in flight come back a step late: until then the
        youngest of those that need a page sit the step out."""
        slots, pool = self.slots, self.pool
        while True:
            decodes = decodes[slots.state[decodes] == State.RUNNING]
            growing = decodes[self._at_boundary(decodes)]
            going_on = (slots.state == State.RUNNING) & (slots.launched < slots.max_new)
            returning = int(slots.num_pages[(slots.state != State.FREE) & ~going_on].sum())
            if len(growing) <= pool.free + returning:
                break
            candidates = np.flatnonzero(going_on)
            self._preempt(int(candidates[np.argmax(slots.order[candidates])]))
        by_age = growing[np.argsort(slots.order[growing])]
        return decodes[~np.isin(decodes, by_age[pool.free :])]

    def _admit(self, budget: int | None, starts: list[SlotStart]) -> None:
        """Admits while `budget` tokens of the step are left (None: while slots and pages are)."""
        while self._waiting and self._free_slots and (budget is None or budget > 0):
            request = self._waiting[0][1]
            if request.finished:
                heapq.heappop(self._waiting)
                continue
            known = len(request.prompt) + len(request.output)
            if not self._fits(request, known):
                return
            heapq.heappop(self._waiting)
            self._num_waiting -= 1
            slot = self._free_slots.pop()
            slots = self.slots
            slots.occupy(slot, request)
            count = self.pages_for(known)
            slots.block_table[slot, :count] = self.pool.take(count)
            slots.num_pages[slot] = count
            self._reserved += self.pages_for(request.max_kv_tokens)
            self._prefilling.append(slot)
            starts.append(SlotStart(slot, request.prompt, request.output, request.sampling, request.seed, request.stop_ids))
            if budget is not None:
                budget -= known

    def _fits(self, request: Request, known: int) -> bool:
        if self.config.policy == "max_utilization":
            return self.pages_for(known) + self.num_running <= self.pool.free
        return self._reserved + self.pages_for(request.max_kv_tokens) <= self.pool.capacity

    def _pack(self, step: int, decodes: SlotArray, updates: list[IntArray], starts: list[SlotStart]) -> StepBatch:
        slots = self.slots
        budget = whole = self.config.max_num_tokens - len(decodes)
        context_slots: list[int] = []
        chunks: list[int] = []
        pieces: list[IntArray] = []
        for slot in self._prefilling:
            if budget == 0:
                break
            begin = int(slots.computed[slot])
            left = int(slots.context_len[slot]) - begin
            if budget < left <= whole and context_slots:
                break
            chunk = min(budget, left)
            budget -= chunk
            context_slots.append(slot)
            chunks.append(chunk)
            pieces.append(slots.tokens[slot, begin : begin + chunk])
            index = np.arange(self.pages_for(begin), self.pages_for(begin + chunk), dtype=np.int32)
            if len(index):
                updates.append(np.stack((np.full_like(index, slot), index, slots.block_table[slot, index]), axis=1))
        if not context_slots:
            running, query_lens, sampled = decodes, np.ones(len(decodes), np.int32), np.ones(len(decodes), np.bool_)
            kv_lens = slots.computed.take(running) + np.int32(1)
            context_tokens = np.empty(0, np.int32)
        else:
            contexts = np.array(context_slots, np.intp)
            running = np.concatenate((decodes, contexts))
            query_lens = np.concatenate((np.ones(len(decodes), np.int32), np.array(chunks, np.int32)))
            kv_lens = slots.computed.take(running) + query_lens
            sampled = kv_lens >= slots.context_len.take(running)
            context_tokens = np.concatenate(pieces)
        last = None if self.config.stages == 1 else slots.tokens.reshape(-1)[slots.cursor.take(decodes) - 1]
        slots.computed[running] = kv_lens
        slots.launched[running] = slots.launched.take(running) + sampled
        slots.last_step[running] = step
        self._advance(len(decodes), running, sampled)
        page_updates = np.concatenate(updates) if updates else NO_PAGES
        slots_of_rows = running.astype(np.int32)
        return StepBatch(slots_of_rows, query_lens, kv_lens, len(decodes), context_tokens, sampled, page_updates, tuple(starts), last)

    def _advance(self, num_decodes: int, running: SlotArray, sampled: npt.NDArray[np.bool_]) -> None:
        """Sequences whose prompt is done start to decode; those whose last token is launched stop."""
        slots = self.slots
        if self._prefilling:
            ready = running[num_decodes:][sampled[num_decodes:]]
            if len(ready):
                done = set(ready.tolist())
                self._prefilling = [slot for slot in self._prefilling if slot not in done]
                self._decoding = np.concatenate((self._decoding, ready))
        going_on = slots.launched.take(self._decoding) < slots.max_new.take(self._decoding)
        if not going_on.all():
            self._decoding = self._decoding[going_on]

    # --- a step back ---

    def receive(self, step: int, batch: StepBatch, tokens: IntArray) -> Received:
        """Takes step `step`'s tokens in. Sequences that are over meanwhile are skipped; the caller retires those that end here."""
        slots = self.slots
        owners = (batch.slots if batch.num_seqs == len(tokens) else batch.slots[batch.sampled]).astype(np.intp)
        counts = slots.state.take(owners) >= State.RUNNING
        if counts.all():
            rows = np.arange(len(owners))
        else:
            rows = np.flatnonzero(counts)
            owners, tokens = owners[rows], tokens[rows]
        cursor = slots.cursor.take(owners)
        slots.tokens.reshape(-1)[cursor] = tokens
        slots.steps.reshape(-1)[cursor] = step
        slots.cursor[owners] = cursor + 1
        received = slots.received.take(owners) + np.int32(1)
        slots.received[owners] = received
        stop = slots.stop_ids[0].take(owners) == tokens
        for stop_ids in slots.stop_ids[1:]:
            stop |= stop_ids.take(owners) == tokens
        stop &= received >= slots.min_new.take(owners)
        full = (received >= slots.max_new.take(owners)) & ~stop
        return Received(rows, owners, tokens, owners[stop], owners[full])

    def retire(self, slot: int) -> Request:
        """The sequence is over: it runs in no further step. Slot and pages follow when nothing in flight uses them."""
        slots = self.slots
        request = slots.requests[slot]
        assert request is not None
        slots.save_output(slot, request)
        self._leave(slot, State.RETIRING)
        return request

    def _preempt(self, slot: int) -> None:
        request = self.slots.requests[slot]
        assert request is not None
        request.preemptions += 1
        self.preemptions += 1
        self._leave(slot, State.PREEMPTED)

    def _leave(self, slot: int, state: State) -> None:
        slots = self.slots
        if slots.state[slot] == State.RUNNING:
            self._decoding = self._decoding[self._decoding != slot]
            if slot in self._prefilling:
                self._prefilling.remove(slot)
            self._leaving.append(slot)
        slots.state[slot] = state
        if slots.last_step[slot] <= self._returned:
            self._vacate(slot)

    def returned(self, step: int) -> None:
        """Step `step` and all before it have come back: their sequences can be in a step again."""
        self._returned = step

    def release(self, step: int) -> None:
        """Step `step` and all before it have come back: frees what no step in flight can touch any more."""
        self.returned(step)
        for slot in [slot for slot in self._leaving if self.slots.last_step[slot] <= step]:
            self._vacate(slot)

    def _vacate(self, slot: int) -> None:
        slots = self.slots
        request = slots.requests[slot]
        assert request is not None
        self._leaving.remove(slot)
        self.pool.drop(slots.block_table[slot, : slots.num_pages[slot]])
        self._reserved -= self.pages_for(request.max_kv_tokens)
        if slots.state[slot] == State.PREEMPTED:
            slots.save_output(slot, request)
            self.enqueue(request)
        slots.vacate(slot)
        self._free_slots.append(slot)
