"""The batcher under random load, driven by a fake model whose tokens betray every mistake in pages, slots or order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from fake_runner import VOCAB, FakeRunner, expected_tokens
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from trtllm_engines.errors import EngineError
from trtllm_engines.runtime.engine_loop import EngineLoop
from trtllm_engines.runtime.request import Request
from trtllm_engines.runtime.sampling_params import SamplingParams
from trtllm_engines.runtime.scheduler import POLICIES, SchedulerConfig
from trtllm_engines.runtime.slots import State

MAX_SEQ_LEN = 40
STOPS = tuple(range(5, 15))
"""So many that one token in nine ends a request."""


def make_loop(
    policy: str, overlap: bool = True, slots: int = 4, budget: int = 9, pages: int = 14, page_size: int = 4, stages: int = 1
) -> EngineLoop:
    config = SchedulerConfig(slots, budget, MAX_SEQ_LEN, page_size, pages, policy, stages)  # type: ignore[arg-type]
    runner = FakeRunner(slots, config.max_pages_per_seq, pages, page_size, budget)
    return EngineLoop(runner, config, vocab_size=VOCAB, eos_ids=(3,), overlap=overlap)


def check_accounts(loop: EngineLoop) -> None:
    """Pages in use are exactly those of occupied slots, none twice, none of a step in flight free."""
    scheduler = loop.scheduler
    slots, pool = scheduler.slots, scheduler.pool
    occupied = np.flatnonzero(slots.state != State.FREE)
    held = [slots.block_table[slot, : slots.num_pages[slot]] for slot in occupied]
    pages = np.concatenate(held) if held else np.empty(0, np.int32)
    assert len(set(pages.tolist())) == len(pages) == pool.used
    assert (pool.refs[pages] == 1).all()
    assert len(occupied) == scheduler.num_running
    for flight in loop._flights:
        assert (slots.state[flight.batch.slots] != State.FREE).all()
    if scheduler.config.stages > 1:
        decoding = [slot for flight in loop._flights for slot in flight.batch.slots[: flight.batch.num_decodes].tolist()]
        assert len(set(decoding)) == len(decoding)
        assert len(loop._flights) <= scheduler.config.stages


request_strategy = st.tuples(
    st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=20),
    st.integers(1, 18),
    st.booleans(),
    st.integers(0, 3),
)


class LoopMachine(RuleBasedStateMachine):
    """Requests come, are cancelled and run, in any order; each ends with the tokens it would have had alone."""

    @initialize(
        policy=st.sampled_from(POLICIES),
        overlap=st.booleans(),
        slots=st.integers(1, 5),
        extra=st.integers(0, 8),
        pages=st.integers(20, 30),
        stages=st.integers(1, 4),
    )
    def start(self, policy: str, overlap: bool, slots: int, extra: int, pages: int, stages: int) -> None:
        self.loop = make_loop(policy, overlap, slots, slots + extra, pages, page_size=2, stages=stages)
        self.policy = policy
        self.requests: list[tuple[Request, list[int]]] = []
        self.cancelled: set[int] = set()
        self.streamed: dict[int, list[int]] = {}

    @rule(specs=st.lists(request_strategy, min_size=1, max_size=5))
    def add(self, specs: list[tuple[list[int], int, bool, int]]) -> None:
        for prompt, max_tokens, ignore_eos, min_tokens in specs:
            params = SamplingParams(
                max_tokens=max_tokens, ignore_eos=ignore_eos, min_tokens=min(min_tokens, max_tokens), stop_token_ids=STOPS
            )
            stops = STOPS if ignore_eos else (3, *STOPS)
            request = self.loop.add_request(
                prompt, params, on_token=lambda r, token, _: self.streamed.setdefault(r.request_id, []).append(token)
            )
            self.requests.append((request, expected_tokens(prompt, max_tokens, stops, params.min_tokens)))

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        request, _ = data.draw(st.sampled_from(self.requests))
        if not request.finished:
            self.cancelled.add(request.request_id)
        self.loop.cancel(request)

    @rule(count=st.integers(1, 12))
    def run(self, count: int) -> None:
        for _ in range(count):
            self.loop.step()
            check_accounts(self.loop)

    @invariant()
    def finished_requests_are_right(self) -> None:
        for request, expected in getattr(self, "requests", []):
            if request.finished:
                self.check(request, expected)

    def check(self, request: Request, expected: list[int]) -> None:
        output = request.output.tolist()
        assert self.streamed.get(request.request_id, []) == output
        if request.finish_reason == "cancelled":
            assert request.request_id in self.cancelled
            assert output == expected[: len(output)]
        else:
            assert output == expected
            assert request.finish_reason == ("stop" if len(output) and output[-1] in request.stop_ids else "length")
        assert len(request.token_times_s) == len(output)
        assert (np.diff(request.token_times_s) > 0).all()

    def teardown(self) -> None:
        if not hasattr(self, "loop"):
            return
        for _ in range(4000):
            if self.loop.idle:
                break
            self.loop.step()
            check_accounts(self.loop)
        assert self.loop.idle
        assert self.loop.scheduler.pool.used == 0
        assert self.loop.scheduler._reserved == 0
        for request, expected in self.requests:
            assert request.finished
            self.check(request, expected)
        if self.policy != "max_utilization":
            assert self.loop.scheduler.preemptions == 0


LoopMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=20, deadline=None)
TestLoop = LoopMachine.TestCase


@settings(max_examples=60, deadline=None)
@given(specs=st.lists(request_strategy, min_size=1, max_size=12), overlap=st.booleans())
def test_policies_agree_on_every_token(specs: list[tuple[list[int], int, bool, int]], overlap: bool) -> None:
    outputs = []
    for policy in POLICIES:
        loop = make_loop(policy, overlap)
        requests = [loop.add_request(prompt, SamplingParams(max_tokens=n, ignore_eos=True)) for prompt, n, _, _ in specs]
        loop.run()
        outputs.append([request.output.tolist() for request in requests])
    assert outputs[0] == outputs[1] == outputs[2] == [expected_tokens(prompt, n) for prompt, n, _, _ in specs]


def test_max_utilization_preempts_the_youngest_and_it_still_finishes_right() -> None:
    loop = make_loop("max_utilization", slots=3, budget=30, pages=10)
    prompts = [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11]]
    streamed: list[list[int]] = [[], [], []]
    requests = [
        loop.add_request(
            prompt, SamplingParams(max_tokens=18, ignore_eos=True), on_token=lambda r, token, _: streamed[r.request_id].append(token)
        )
        for prompt in prompts
    ]
    loop.run()
    assert streamed == [r.output.tolist() for r in requests]
    assert requests[0].preemptions == 0
    assert requests[2].preemptions > 0
    assert [r.output.tolist() for r in requests] == [expected_tokens(p, 18) for p in prompts]


def test_guaranteed_no_evict_admits_only_what_can_finish() -> None:
    loop = make_loop("guaranteed_no_evict", slots=4, budget=40, pages=11)
    for _ in range(4):
        loop.add_request([1] * 4, SamplingParams(max_tokens=13, ignore_eos=True))
    loop.step()
    assert loop.scheduler.num_running == 2
    loop.run()
    assert loop.scheduler.preemptions == 0


def test_static_batch_admits_nothing_until_the_batch_has_ended() -> None:
    loop = make_loop("static_batch", slots=2, budget=16, pages=30)
    for n in (2, 12, 2):
        loop.add_request([1, 2, 3], SamplingParams(max_tokens=n, ignore_eos=True))
    running = []
    while not loop.idle:
        loop.step()
        running.append((loop.scheduler.num_running, loop.scheduler.num_waiting))
    assert (1, 1) in running
    last_of_first_batch = max(i for i, (_, waiting) in enumerate(running) if waiting == 1)
    assert last_of_first_batch >= 11


def test_a_decode_step_is_packed_before_context_chunks_within_the_budget() -> None:
    loop = make_loop("guaranteed_no_evict", slots=4, budget=6, pages=40)
    loop.add_request([1] * 3, SamplingParams(max_tokens=10, ignore_eos=True))
    loop.add_request([2] * 15, SamplingParams(max_tokens=2, ignore_eos=True))
    loop.run()
    runner: Any = loop._runner
    shapes = [(b.num_decodes, b.query_lens.tolist()) for b in runner.batches]
    assert shapes[:4] == [(0, [3, 3]), (1, [1, 5]), (1, [1, 5]), (1, [1, 2])]
    assert shapes[4] == (2, [1, 1])


def test_overlap_runs_one_step_too_many_after_a_stop_token_and_drops_it() -> None:
    prompt = next([seed] for seed in range(97) if 3 in expected_tokens([seed], 8)[:-1])
    tokens = expected_tokens(prompt, 8, (3,))
    for overlap, steps in ((False, len(tokens)), (True, len(tokens) + 1)):
        loop = make_loop("guaranteed_no_evict", overlap)
        request = loop.add_request(prompt, SamplingParams(max_tokens=8))
        loop.run()
        assert request.output.tolist() == tokens
        assert len(loop.log) == steps


def test_a_batch_that_ends_by_length_wastes_no_step() -> None:
    loop = make_loop("guaranteed_no_evict", overlap=True)
    loop.add_request([1, 2], SamplingParams(max_tokens=7, ignore_eos=True))
    loop.run()
    assert len(loop.log) == 7


def test_config_errors_are_sentences() -> None:
    with pytest.raises(EngineError, match="unknown batching policy 'fifo'; choose one of guaranteed_no_evict"):
        SchedulerConfig(4, 8, 16, 4, 10, "fifo")  # type: ignore[arg-type]
    with pytest.raises(EngineError, match=r"max_num_tokens \(3\) must be at least max_batch_size \(4\)"):
        SchedulerConfig(4, 3, 16, 4, 10)
    with pytest.raises(EngineError, match="max_batch_size must be at least 1, not 0"):
        SchedulerConfig(0, 3, 16, 4, 10)
