"""An engine led through a text: it reads the first half of each window as a prompt, and decodes the rest given the text's own tokens.

These are the steps that serve, through the engine's runner: prompts in chunks, then decode steps of as many sequences as the engine holds
(on a GPU, its CUDA graphs), with keys and values written to its cache and read back. Rejected: one long chunk for a window, as most
perplexity tools run it: decode kernels, on whose speed most figures depend, would never be met.

The engine must be idle. Pages are borrowed from its pool, and given back.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from trtllm_engines.compiler.plan import LOGITS
from trtllm_engines.errors import EngineError
from trtllm_engines.llm import LLM
from trtllm_engines.runtime.batch import IntArray, SlotStart, StepBatch
from trtllm_engines.runtime.pages import PagePool
from trtllm_engines.runtime.sampling_params import SamplingParams

_NONE: IntArray = np.empty(0, np.int32)


@dataclass(frozen=True)
class Scored:
    """Logits of one step, [n, vocabulary] on the engine's device, valid until the next: each is what the engine expects in place of
    `targets[i]`, which is token `positions[i]` of window `windows[i]`."""

    windows: IntArray
    positions: IntArray
    targets: IntArray
    logits: Tensor


def first_scored(length: int) -> int:
    """The first token of a window that is scored; those before it are the prompt."""
    return max(1, length // 2)


class Teacher:
    def __init__(self, llm: LLM) -> None:
        """Raises `EngineError` for an engine of several ranks, whose logits are in other processes."""
        if llm.plan.parallel.ranks > 1 or not hasattr(llm.ranks, "outputs"):
            raise EngineError("accuracy is measured on an engine of one rank in this process; leave --tp, --pp and --replicas out")
        self._runner = llm.ranks
        self._config = llm.loop.scheduler.config
        self._pool: PagePool = llm.loop.scheduler.pool

    def run(self, windows: Sequence[IntArray]) -> Iterator[Scored]:
        """Raises `EngineError` for a window longer than the engine takes."""
        longest = max(map(len, windows))
        if longest > self._config.max_seq_len:
            raise EngineError(f"a window has {longest} tokens and the engine takes {self._config.max_seq_len}; ask for shorter windows")
        order = sorted(range(len(windows)), key=lambda number: -len(windows[number]))
        at_once = min(self._config.max_batch_size, self._pool.free // self._pages(longest))
        if at_once < 1:
            raise EngineError(f"the KV cache has no room for a window of {longest} tokens; give the engine more pages, or shorter windows")
        for first in range(0, len(order), at_once):
            yield from self._together([(number, windows[number]) for number in order[first : first + at_once]])

    def _pages(self, tokens: int) -> int:
        return -(-tokens // self._config.page_size)

    def _together(self, windows: Sequence[tuple[int, IntArray]]) -> Iterator[Scored]:
        """Windows by falling length, one a slot."""
        pages = [self._pool.take(self._pages(len(ids))) for _, ids in windows]
        try:
            yield from self._prompts(windows, pages)
            yield from self._decodes(windows, pages)
        finally:
            for taken in pages:
                self._pool.drop(taken)

    def _prompts(self, windows: Sequence[tuple[int, IntArray]], pages: Sequence[IntArray]) -> Iterator[Scored]:
        waiting = [(slot, 0) for slot in range(len(windows))]
        while waiting:
            budget, chunks = self._config.max_num_tokens, list[tuple[int, int, int]]()
            while waiting and budget:
                slot, begin = waiting.pop(0)
                end = min(begin + budget, first_scored(len(windows[slot][1])))
                chunks.append((slot, begin, end))
                budget -= end - begin
                if end < first_scored(len(windows[slot][1])):
                    waiting.insert(0, (slot, end))
            ends = np.array([end for _, _, end in chunks], np.int32)
            sampled = np.array([end == first_scored(len(windows[slot][1])) for slot, _, end in chunks])
            slots = np.array([slot for slot, _, _ in chunks], np.int32)
            starts = [SlotStart(slot, windows[slot][1], _NONE, SamplingParams(), 0, ()) for slot, begin, _ in chunks if begin == 0]
            batch = StepBatch(
                slots=slots,
                query_lens=np.array([end - begin for _, begin, end in chunks], np.int32),
                kv_lens=ends,
                num_decodes=0,
                context_tokens=np.concatenate([windows[slot][1][begin:end] for slot, begin, end in chunks]).astype(np.int32),
                sampled=sampled,
                page_updates=np.concatenate([self._updates(slot, pages[slot], begin, end) for slot, begin, end in chunks]),
                starts=tuple(starts),
            )
            yield from self._step(batch, windows, slots[sampled], ends[sampled])

    def _decodes(self, windows: Sequence[tuple[int, IntArray]], pages: Sequence[IntArray]) -> Iterator[Scored]:
        lengths = np.array([len(ids) for _, ids in windows], np.int32)
        at = np.array([first_scored(length) for length in lengths], np.int32)
        """Tokens of each window in the cache."""
        while len(active := np.flatnonzero(at + 1 < lengths).astype(np.int32)):
            here = at[active]
            places = list(zip(active.tolist(), here.tolist(), strict=True))
            batch = StepBatch(
                slots=active,
                query_lens=np.ones(len(active), np.int32),
                kv_lens=here + 1,
                num_decodes=len(active),
                context_tokens=_NONE,
                sampled=np.ones(len(active), np.bool_),
                page_updates=np.concatenate([self._updates(slot, pages[slot], begin, begin + 1) for slot, begin in places]),
                decode_tokens=np.array([windows[slot][1][begin] for slot, begin in places], np.int32),
            )
            at[active] += 1
            yield from self._step(batch, windows, active, here + 1)

    def _step(self, batch: StepBatch, windows: Sequence[tuple[int, IntArray]], slots: IntArray, positions: IntArray) -> Iterator[Scored]:
        """Runs a step whose sampled rows are `slots`, each of which expects its token at `positions`."""
        self._runner.launch(batch).result()
        if not len(slots):
            return
        targets = np.array([windows[slot][1][position] for slot, position in zip(slots, positions, strict=True)], np.int32)
        numbers = np.array([windows[slot][0] for slot in slots], np.int32)
        yield Scored(numbers, positions, targets, self._runner.outputs[LOGITS][: len(slots)])

    def _updates(self, slot: int, pages: IntArray, begin: int, end: int) -> IntArray:
        """Block-table entries that tokens [begin, end) are the first to need."""
        index = np.arange(self._pages(begin), self._pages(end), dtype=np.int32)
        return np.stack((np.full_like(index, slot), index, pages[index]), axis=1)
