"""Requests from arrival to result: streaming, stop strings, times, and failures that stay with their request."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Sequence

import numpy as np
import pytest
from fake_runner import VOCAB, FakeHandle, FakeRunner, expected_tokens

from trtllm_engines.runtime.batch import StepBatch
from trtllm_engines.runtime.engine_loop import EngineLoop, EngineThread
from trtllm_engines.runtime.request import Request
from trtllm_engines.runtime.sampling_params import SamplingParams
from trtllm_engines.runtime.scheduler import SchedulerConfig


class Letters:
    """Token n is two letters, so that a stop string may begin within one token and end in another."""

    def add(self, ids: Sequence[int]) -> str:
        return "".join(spell(token) for token in ids)


def spell(token: int) -> str:
    return f"{chr(97 + token % 26)}{chr(65 + token // 26)}"


def make_loop(overlap: bool = True, runner: FakeRunner | None = None, **changes: int) -> EngineLoop:
    sizes = {"max_batch_size": 4, "max_num_tokens": 16, "max_seq_len": 64, "page_size": 4, "num_pages": 40, **changes}
    config = SchedulerConfig(**sizes)  # type: ignore[arg-type]
    fake = FakeRunner(config.max_batch_size, config.max_pages_per_seq, config.num_pages, config.page_size, config.max_num_tokens)
    return EngineLoop(runner or fake, config, vocab_size=VOCAB, eos_ids=(3,), overlap=overlap, detokenizer=Letters)


def test_tokens_stream_in_order_with_the_times_the_result_keeps() -> None:
    loop = make_loop()
    seen: list[tuple[int, float]] = []
    ended: list[Request] = []
    request = loop.add_request(
        [1, 2], SamplingParams(max_tokens=6, ignore_eos=True), on_token=lambda r, token, t: seen.append((token, t)), on_finish=ended.append
    )
    loop.run()
    assert [token for token, _ in seen] == request.output.tolist() == expected_tokens([1, 2], 6)
    assert [t for _, t in seen] == request.token_times_s.tolist()
    assert ended == [request]
    assert request.scheduled_s is not None
    assert request.finished_s is not None
    assert request.first_token_s is not None
    assert request.arrival_s <= request.scheduled_s < request.first_token_s <= request.finished_s


def test_an_intended_arrival_is_kept() -> None:
    loop = make_loop()
    request = loop.add_request([1], SamplingParams(max_tokens=1), arrival_s=12.5)
    loop.run()
    assert request.arrival_s == 12.5


def test_the_log_accounts_for_every_token() -> None:
    loop = make_loop()
    requests = [loop.add_request([1] * n, SamplingParams(max_tokens=5, ignore_eos=True)) for n in (3, 20, 7)]
    loop.run()
    rows = loop.log.rows()
    assert rows["context_tokens"].sum() == 30
    assert rows["decode_tokens"].sum() == 3 * 4
    assert (rows["done_s"] >= rows["launched_s"]).all()
    assert rows["kv_pages_used"].max() <= 39
    assert requests[0].token_times_s[-1] in rows["done_s"]


@pytest.mark.parametrize("overlap", [True, False])
def test_a_stop_string_across_tokens_ends_the_request_where_it_begins(overlap: bool) -> None:
    tokens = expected_tokens([5, 6], 20)
    text = "".join(spell(t) for t in tokens)
    stop = text[9:12]
    assert text.find(stop) == 9
    loop = make_loop(overlap)
    request = loop.add_request([5, 6], SamplingParams(max_tokens=20, ignore_eos=True, stop=("never", stop)))
    loop.run()
    assert request.finish_reason == "stop"
    assert request.output.tolist() == tokens[:6]
    assert request.stop_at == 9


def test_a_stop_string_before_min_tokens_is_passed_over() -> None:
    tokens = expected_tokens([5, 6], 20)
    text = "".join(spell(t) for t in tokens)
    loop = make_loop()
    params = SamplingParams(max_tokens=20, min_tokens=8, ignore_eos=True, stop=(text[2:4], text[20:23]))
    request = loop.add_request([5, 6], params)
    loop.run()
    assert request.stop_at == 20


def test_of_two_stop_strings_in_one_token_the_earlier_one_counts() -> None:
    first = expected_tokens([9], 1)[0]
    loop = make_loop()
    request = loop.add_request([9], SamplingParams(max_tokens=4, ignore_eos=True, stop=(spell(first)[1], spell(first)[0])))
    loop.run()
    assert request.stop_at == 0
    assert len(request.output) == 1


@pytest.mark.parametrize(
    ("prompt", "params", "sentence"),
    [
        ([], SamplingParams(), "the prompt is empty; at least one token is needed"),
        ([1, VOCAB], SamplingParams(), r"token id 97 of the prompt is outside the vocabulary \(0..96\)"),
        ([-1], SamplingParams(), "token id -1 of the prompt is outside"),
        ([1.5], SamplingParams(), ".*flat list of token ids"),
        (
            [1] * 60,
            SamplingParams(max_tokens=5),
            "the prompt has 60 tokens and max_tokens is 5, together more than the engine's max_seq_len",
        ),
        ([1], SamplingParams(max_tokens=4, stop_token_ids=(500,)), "stop token id 500 is outside the vocabulary"),
    ],
)
def test_a_request_that_cannot_run_fails_alone_with_a_sentence(prompt: list[int], params: SamplingParams, sentence: str) -> None:
    loop = make_loop()
    good = loop.add_request([1, 2], SamplingParams(max_tokens=5, ignore_eos=True))
    ended: list[Request] = []
    bad = loop.add_request(prompt, params, on_finish=ended.append)
    assert bad.finish_reason == "error"
    assert ended == [bad]
    assert bad.error is not None
    assert re.match(sentence, bad.error)
    loop.run()
    assert good.output.tolist() == expected_tokens([1, 2], 5)


def test_a_request_larger_than_the_whole_cache_fails_alone() -> None:
    loop = make_loop(num_pages=5)
    bad = loop.add_request([1] * 10, SamplingParams(max_tokens=20))
    assert bad.error is not None
    assert "needs 8 KV cache pages of 4 tokens and the whole cache has 4" in bad.error


def test_stop_strings_without_a_tokenizer_are_refused() -> None:
    config = SchedulerConfig(4, 16, 64, 4, 40)
    loop = EngineLoop(FakeRunner(4, 16, 40, 4, 16), config, vocab_size=VOCAB)
    request = loop.add_request([1], SamplingParams(max_tokens=4, stop=("x",)))
    assert request.error == "stop strings need a tokenizer and this engine has none; use stop_token_ids"


def test_a_callback_that_raises_ends_its_request_and_no_other() -> None:
    loop = make_loop()

    def fail_at_third(request: Request, token: int, time_s: float) -> None:
        if request.output_steps.size == 0 and loop.scheduler.slots.received[request.slot] == 3:
            raise OSError("connection lost")

    bad = loop.add_request([1, 2], SamplingParams(max_tokens=9, ignore_eos=True), on_token=fail_at_third)
    good = loop.add_request([4], SamplingParams(max_tokens=9, ignore_eos=True))
    loop.run()
    assert bad.error == "a callback failed while the request ran: OSError: connection lost"
    assert bad.output.tolist() == expected_tokens([1, 2], 3)
    assert good.output.tolist() == expected_tokens([4], 9)
    assert loop.scheduler.pool.used == 0


class DyingRunner(FakeRunner):
    def launch(self, batch: StepBatch) -> FakeHandle:
        if len(self.batches) == 3:
            raise RuntimeError("device lost")
        return super().launch(batch)


def test_a_runner_that_fails_ends_every_request_and_says_so() -> None:
    loop = make_loop(runner=DyingRunner(4, 16, 40, 4, 16))
    requests = [loop.add_request([n], SamplingParams(max_tokens=9, ignore_eos=True)) for n in range(6)]
    with pytest.raises(RuntimeError, match="device lost"):
        loop.run()
    assert all(request.error == "the engine stopped: RuntimeError: device lost" for request in requests)
    assert loop.idle
    late = loop.add_request([1])
    assert late.error == "the engine stopped: RuntimeError: device lost"


class TellingRunner(FakeRunner):
    """Records when each step is launched; one launch fails."""

    def __init__(self, told: list[str], fails_at: int = 1000) -> None:
        super().__init__(4, 16, 40, 4, 16)
        self.told, self.fails_at = told, fails_at

    def launch(self, batch: StepBatch) -> FakeHandle:
        self.told.append("launch")
        if len(self.batches) == self.fails_at:
            raise RuntimeError("the device is gone")
        return super().launch(batch)


@pytest.mark.parametrize(
    ("stages", "expected"),
    [
        (1, "launch launch token launch token launch token token end launch token token end"),
        (2, "launch launch launch token launch token launch token launch token token end token end"),
    ],
)
def test_a_pipelines_next_step_goes_out_before_requests_are_told_of_their_tokens(stages: int, expected: str) -> None:
    """Otherwise its first stage would wait for the callbacks. With one stage, the device has a step meanwhile and requests come first."""
    told: list[str] = []
    loop = make_loop(runner=TellingRunner(told), stages=stages)
    for _ in range(2):
        loop.add_request(
            [1] * 16,
            SamplingParams(max_tokens=3, ignore_eos=True),
            on_token=lambda *_: told.append("token"),
            on_finish=lambda _: told.append("end"),
        )
    loop.run()
    assert " ".join(told) == expected


def test_tokens_that_came_back_count_though_a_pipelines_next_step_fails() -> None:
    loop = make_loop(runner=TellingRunner([], fails_at=5), stages=2)
    done = [loop.add_request([1] * 8, SamplingParams(max_tokens=most, ignore_eos=True)) for most in (2, 9, 9)]
    with pytest.raises(RuntimeError, match="the device is gone"):
        loop.run()
    assert done[0].output.tolist() == expected_tokens([1] * 8, 2)
    assert [request.finish_reason for request in done] == ["length", "error", "error"]
    assert done[1].output.tolist() == expected_tokens([1] * 8, len(done[1].output))


def test_cancelling_twice_or_after_the_end_does_nothing() -> None:
    loop = make_loop()
    request = loop.add_request([1], SamplingParams(max_tokens=3, ignore_eos=True))
    waiting = [loop.add_request([2], SamplingParams(max_tokens=3)) for _ in range(8)]
    loop.cancel(waiting[-1])
    loop.cancel(waiting[-1])
    loop.run()
    loop.cancel(request)
    loop.run()
    assert request.finish_reason == "length"
    assert waiting[-1].finish_reason == "cancelled"
    assert len(waiting[-1].output) == 0
    assert loop.scheduler.idle


def test_requests_from_many_threads_are_served_by_the_loops_own() -> None:
    loop = make_loop()
    thread = EngineThread(loop)
    done = threading.Semaphore(0)
    requests: list[tuple[list[int], Request]] = []

    def client(first: int) -> None:
        for n in range(10):
            prompt = [first, n]
            params = SamplingParams(max_tokens=6, ignore_eos=True)
            requests.append((prompt, loop.add_request(prompt, params, on_finish=lambda _: done.release())))

    clients = [threading.Thread(target=client, args=(n,)) for n in range(4)]
    for one in clients:
        one.start()
    for one in clients:
        one.join()
    for _ in range(40):
        assert done.acquire(timeout=20)
    thread.close()
    assert all(request.output.tolist() == expected_tokens(prompt, 6) for prompt, request in requests)


def test_an_idle_loop_uses_no_cpu_and_wakes_at_once() -> None:
    loop = make_loop()
    thread = EngineThread(loop)
    time.sleep(0.05)
    before = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - before < 0.1
    done = threading.Event()
    request = loop.add_request([1], SamplingParams(max_tokens=2, ignore_eos=True), on_finish=lambda _: done.set())
    assert done.wait(timeout=5)
    assert request.scheduled_s is not None
    assert request.scheduled_s - request.arrival_s < 0.5
    thread.close()


def test_output_arrays_have_one_entry_a_token() -> None:
    loop = make_loop()
    request = loop.add_request(np.array([1, 2, 3]), SamplingParams(max_tokens=7, ignore_eos=True))
    loop.run()
    assert request.output.dtype == np.int32
    assert request.output.shape == request.token_times_s.shape == request.output_steps.shape == (7,)
