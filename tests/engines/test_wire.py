"""Steps on the wire: what comes out is what went in, every array and every sampling parameter, and damage is refused."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from fake_runner import VOCAB, FakeHandle, FakeRunner, expected_tokens
from hypothesis import given, settings
from hypothesis import strategies as st

from trtllm_engines.errors import EngineError
from trtllm_engines.runtime.batch import SlotStart, StepBatch
from trtllm_engines.runtime.engine_loop import EngineLoop
from trtllm_engines.runtime.sampling_params import SamplingParams
from trtllm_engines.runtime.scheduler import SchedulerConfig
from trtllm_engines.runtime.wire import decode, encode

INT32 = st.integers(-(2**31), 2**31 - 1)
IDS = st.integers(0, 2**31 - 1)


def unit(low: float, high: float, **flags: Any) -> st.SearchStrategy[float]:
    return st.floats(low, high, **flags)


SAMPLING = st.builds(
    SamplingParams,
    max_tokens=st.integers(50, 10**6),
    min_tokens=st.integers(0, 50),
    temperature=unit(0, 1e300),
    top_k=st.integers(0, 10**9),
    top_p=unit(0, 1, exclude_min=True),
    min_p=unit(0, 1),
    repetition_penalty=unit(0, 1e300, exclude_min=True),
    presence_penalty=unit(-2, 2),
    logit_bias=st.dictionaries(st.integers(0, 2**20), unit(-100, 100), max_size=3),
    bad_words=st.lists(st.lists(st.integers(0, 2**20), min_size=1, max_size=3), max_size=3),
    frequency_penalty=unit(-2, 2),
    seed=st.none() | st.integers(0, 2**63 - 1),
    stop=st.lists(st.text(min_size=1), max_size=3).map(tuple),
    stop_token_ids=st.lists(IDS, max_size=3).map(tuple),
    ignore_eos=st.booleans(),
    logprobs=st.none() | st.integers(0, 20),
)


def ints(count: int) -> st.SearchStrategy[np.ndarray]:
    return st.lists(INT32, min_size=count, max_size=count).map(lambda values: np.array(values, np.int32))


@st.composite
def steps(draw: st.DrawFn) -> StepBatch:
    decodes, contexts, tokens, updates = (draw(st.integers(0, 5)) for _ in range(4))
    seqs = decodes + contexts
    starts = st.builds(
        SlotStart,
        slot=st.integers(0, 2**20),
        prompt=st.integers(0, 4).flatmap(ints),
        output=st.integers(0, 4).flatmap(ints),
        sampling=SAMPLING,
        seed=st.integers(0, 2**63 - 1),
        stop_ids=st.lists(IDS, max_size=3).map(tuple),
    )
    return StepBatch(
        slots=draw(ints(seqs)),
        query_lens=np.concatenate((np.ones(decodes, np.int32), draw(ints(contexts)))),
        kv_lens=draw(ints(seqs)),
        num_decodes=decodes,
        context_tokens=draw(ints(tokens)),
        sampled=np.array([True] * decodes + draw(st.lists(st.booleans(), min_size=contexts, max_size=contexts)), np.bool_),
        page_updates=draw(ints(3 * updates)).reshape(updates, 3),
        starts=tuple(draw(st.lists(starts, max_size=3))),
        decode_tokens=draw(st.one_of(st.none(), ints(decodes))) if decodes else None,
    )


def assert_same(ours: Any, theirs: Any) -> None:
    for field in fields(theirs):
        a, b = getattr(ours, field.name), getattr(theirs, field.name)
        if isinstance(b, np.ndarray):
            assert a.dtype == b.dtype
            assert a.flags.writeable
            np.testing.assert_array_equal(a, b)
        elif field.name == "starts":
            for one, other in zip(a, b, strict=True):
                assert_same(one, other)
        else:
            assert (type(a), a) == (type(b), b)


@given(batch=steps())
@settings(max_examples=200, deadline=None)
def test_a_step_comes_out_as_it_went_in(batch: StepBatch) -> None:
    data = encode(batch)
    assert_same(decode(data), batch)
    assert_same(decode(memoryview(bytearray(data))), batch)


def decode_step(seqs: int) -> StepBatch:
    row = np.arange(seqs, dtype=np.int32)
    updates = np.stack((row, row, row), axis=1)[: seqs // 32]
    return StepBatch(row, np.ones(seqs, np.int32), row + 100, seqs, row[:0], np.ones(seqs, np.bool_), updates)


def test_a_decode_step_of_2048_sequences_is_17_kB() -> None:
    assert len(encode(decode_step(2048))) == 36 + 4 * (2 * 2048 + 3 * 64)


def test_damaged_messages_are_refused() -> None:
    data = encode(decode_step(8))
    for damaged, message in (
        (data[:20], "shorter than its header"),
        (data[:-4], r"has 96 bytes and says that it has 100"),
        (b"\x80\x04" + data[2:], "does not begin as this release writes it"),
    ):
        with pytest.raises(EngineError, match=message):
            decode(damaged)


def test_a_runner_behind_the_wire_generates_the_same() -> None:
    """Chunked prompts, preemption and stop ids: nothing of a step is missing on the other side."""

    class Remote(FakeRunner):
        def launch(self, batch: StepBatch) -> FakeHandle:
            return super().launch(decode(encode(batch)))

    config = SchedulerConfig(4, 16, 64, 4, 14, "max_utilization")
    loop = EngineLoop(Remote(4, config.max_pages_per_seq, 14, 4, 16), config, vocab_size=VOCAB)
    prompts = [[n, *range(n, n + 5 * n)] for n in range(1, 6)]
    requests = [loop.add_request(prompt, SamplingParams(max_tokens=12, stop_token_ids=(3,))) for prompt in prompts]
    loop.run()
    assert [request.output.tolist() for request in requests] == [expected_tokens(prompt, 12, (3,)) for prompt in prompts]
    assert sum(request.preemptions for request in requests) > 0
