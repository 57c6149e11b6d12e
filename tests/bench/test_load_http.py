"""The HTTP target against a small streaming server whose timing is known."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from aiohttp import web

from trtllm_bench.__main__ import main
from trtllm_bench.errors import BenchError, RunFailure
from trtllm_bench.load.driver import Drive, run_load
from trtllm_bench.measure import validity
from trtllm_bench.targets.http import HttpTarget
from trtllm_bench.targets.openai_answer import complaint, laid_over
from trtllm_results.metrics import requests as metrics
from trtllm_results.store.table import Store
from trtllm_workloads.synthetic import fixed

TTFT_S, ITL_S = 0.10, 0.02


class Mirror:
    """Answers `/v1/completions` with a token every `ITL_S` after `TTFT_S`, `per_piece` tokens to a piece."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, object]] = []
        self.status, self.per_piece, self.silent, self.template, self.junk = 200, 1, False, 0, b""
        self.loop = asyncio.new_event_loop()
        self.port = 0
        ready = threading.Event()
        threading.Thread(target=self._run, args=(ready,), daemon=True).start()
        ready.wait()

    def _run(self, ready: threading.Event) -> None:
        asyncio.set_event_loop(self.loop)

        async def begin() -> None:
            app = web.Application()
            app.router.add_get("/v1/models", self.models)
            app.router.add_post("/v1/completions", self.complete)
            runner = web.AppRunner(app)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            self.port = runner.addresses[0][1]

        self.loop.run_until_complete(begin())
        ready.set()
        self.loop.run_forever()

    async def models(self, request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "mirror"}]})

    async def complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        if self.status != 200:
            return web.Response(status=self.status, text="overloaded\ntry later")
        answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await answer.prepare(request)
        await asyncio.sleep(TTFT_S)
        tokens = body["max_tokens"]
        for place in range(0, 0 if self.silent else tokens, self.per_piece):
            if place:
                await asyncio.sleep(ITL_S)
            await answer.write(f"data: {json.dumps({'choices': [{'text': ' a'}]})}\n\n".encode())
        await answer.write(self.junk)
        usage = {"prompt_tokens": len(body["prompt"]) + self.template, "completion_tokens": tokens}
        await answer.write(f"data: {json.dumps({'choices': [], 'usage': usage})}\n\ndata: [DONE]\n\n".encode())
        return answer


@pytest.fixture(scope="module")
def server() -> Iterator[Mirror]:
    mirror = Mirror()
    yield mirror
    mirror.loop.call_soon_threadsafe(mirror.loop.stop)


@pytest.fixture
def mirror(server: Mirror) -> Mirror:
    server.status, server.per_piece, server.silent, server.template, server.junk = 200, 1, False, 0, b""
    server.bodies.clear()
    return server


def url(mirror: Mirror) -> str:
    return f"http://127.0.0.1:{mirror.port}"


def test_it_measures_what_the_mirror_does(mirror: Mirror) -> None:
    result = run_load(fixed(12, 7, 6).requests(), HttpTarget(url(mirror)), Drive(concurrency=4))
    log = result.log
    assert result.failures == ()
    assert log.output_tokens.tolist() == [6] * 12
    assert log.input_tokens.tolist() == [7] * 12
    assert np.median(metrics.ttft(log)) == pytest.approx(TTFT_S, abs=0.03)
    assert np.median(metrics.tpot(log)) == pytest.approx(ITL_S, abs=0.008)
    assert len(metrics.itl(log)) == 12 * 5


def test_the_request_body_is_what_such_servers_take(mirror: Mirror) -> None:
    requests = fixed(1, 5, 3).requests()
    run_load(requests, HttpTarget(url(mirror) + "/v1/", extra={"seed": 7}), Drive())
    body = mirror.bodies[0]
    assert body["prompt"] == requests[0].prompt.tolist()
    assert (body["max_tokens"], body["ignore_eos"], body["stream"], body["model"], body["seed"]) == (3, True, True, "mirror", 7)


def test_text_is_sent_to_servers_that_take_nothing_else(mirror: Mirror) -> None:
    requests = fixed(1, 3, 2).requests()
    run_load(requests, HttpTarget(url(mirror), decode=lambda ids: " ".join(f"w{i}" for i in ids)), Drive())
    assert mirror.bodies[0]["prompt"] == " ".join(f"w{i}" for i in requests[0].prompt)


def test_token_ids_for_an_endpoint_of_text_are_refused_before_any_is_sent(mirror: Mirror, capsys: pytest.CaptureFixture[str]) -> None:
    """As bad input, which ends in 3, and not as a run in which every request failed."""
    asked = ["--isl", "4", "--osl", "2", "--num-requests", "2"]
    assert main(["throughput", "--target", url(mirror), "--endpoint", "chat", *asked]) == 3
    assert capsys.readouterr().err.startswith("trtllm-bench: the chat endpoint takes text and the workload has token ids; give --tokenizer")


def test_several_tokens_in_a_piece_are_counted_by_usage(mirror: Mirror) -> None:
    mirror.per_piece = 3
    result = run_load(fixed(1, 5, 9).requests(), HttpTarget(url(mirror)), Drive())
    assert result.log.output_tokens.tolist() == [9]
    assert result.log.token_times_s is not None
    assert len(np.unique(result.log.token_times_s)) == 3
    assert result.log.end_s[0] == result.log.token_times_s[-1]


def test_errors_are_outcomes(mirror: Mirror) -> None:
    mirror.status = 503
    result = run_load(fixed(2, 5, 3).requests(), HttpTarget(url(mirror), model="mirror"), Drive())
    assert result.failures == ((0, "HTTP 503: overloaded try later"), (1, "HTTP 503: overloaded try later"))
    mirror.status, mirror.silent = 200, True
    result = run_load(fixed(1, 5, 3).requests(), HttpTarget(url(mirror), model="mirror"), Drive())
    assert result.failures == ((0, "the stream ended without a token"),)
    mirror.silent, mirror.junk = False, b"data: {oops\n\n"
    result = run_load(fixed(1, 5, 3).requests(), HttpTarget(url(mirror), model="mirror"), Drive())
    assert result.failures == ((0, "the stream contains invalid JSON: {oops"),)


def test_prompts_the_server_counts_differently_are_noted(mirror: Mirror) -> None:
    def noted(template: int, length: int = 20) -> tuple[str, ...]:
        mirror.template = template
        result = run_load(fixed(2, length, 3).requests(), HttpTarget(url(mirror)), Drive(concurrency=1))
        told = validity.verdict(result, open_loop=False).warnings
        return tuple(one for one in told if "stood still" not in one)  # as any busy machine does

    assert noted(0) == noted(1) == noted(4, 500) == ()
    assert noted(12) == ("prompts were longer than asked: 32.0 tokens by the target's count instead of 20.0",)
    assert noted(-15) == ("prompts were shorter than asked: 5.0 tokens by the target's count instead of 20.0",)


def test_a_server_that_is_not_there_or_serves_something_else(mirror: Mirror) -> None:
    with pytest.raises(RunFailure, match="does not serve 'other'; it serves mirror"):
        HttpTarget(url(mirror), model="other").check()
    with pytest.raises(RunFailure, match=r"no server answers at http://127\.0\.0\.1:9/v1"):
        HttpTarget("http://127.0.0.1:9").check()
    with pytest.raises(BenchError, match="is not a server address"):
        HttpTarget("localhost:8000")
    refused = run_load(fixed(1, 5, 3).requests(), HttpTarget("http://127.0.0.1:9", model="m"), Drive())
    assert "127.0.0.1:9" in refused.failures[0][1]


def test_stopping_early_drops_what_is_open(mirror: Mirror) -> None:
    target = HttpTarget(url(mirror), model="mirror")
    delivered: list[object] = []
    target.start(delivered.append)
    for request in fixed(3, 5, 500).requests():
        target.submit(request, 0.0)
    target.stop()
    assert delivered == []


def test_a_servers_address_is_a_target_of_the_command_line(mirror: Mirror, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "r.json"
    flags = ["--isl", "5", "--osl", "4", "--num-requests", "6", "--warmup", "1", "--report-json", str(report), "--out", str(tmp_path / "s")]
    assert main(["latency", "--target", url(mirror), *flags]) == 0
    assert json.loads(report.read_text())["streaming_metrics"]["avg_ttft_ms"] == pytest.approx(TTFT_S * 1e3, abs=30)
    (row,) = Store(tmp_path / "s").rows()
    assert (row.cell.model, row.cell.target, row.cell.precision) == ("mirror", "http", "as served")
    assert main(["latency", "--target", "http://127.0.0.1:9", *flags]) == 1
    assert "no server answers at" in capsys.readouterr().err


@pytest.mark.parametrize(("tokens", "pieces"), [(1, 1), (5, 5), (9, 3), (2, 7), (100, 33)])
def test_tokens_are_laid_over_pieces_in_order_from_first_to_last(tokens: int, pieces: int) -> None:
    places = laid_over(tokens, pieces)
    assert len(places) == tokens
    assert (np.diff(places) >= 0).all()
    assert places[0] == 0
    assert tokens == 1 or places[-1] == pieces - 1


@pytest.mark.parametrize(
    ("body", "line"),
    [
        ("overloaded\ntry later", "overloaded try later"),
        ('{"error": {"message": "no such model"}}', "no such model"),
        ('{"detail": "queue full"}', "queue full"),
        ('{"error": {"message": "prompt.str: not a string"}}', "token ids, which the server must take"),
        ("x" * 500, "x…"),
    ],
)
def test_a_refusal_is_told_on_one_short_line(body: str, line: str) -> None:
    assert line in complaint(body)
    assert "\n" not in complaint(body)
    assert len(complaint(body)) < 180
