"""The HTTP target against servers that are peculiar, each in one way, and right."""

from __future__ import annotations

import base64
import json
import re
import resource
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from quirk_server import ITL_S, KEY, TAIL_S, TTFT_S, QuirkServer

from trtllm_bench.__main__ import main
from trtllm_bench.errors import BenchError, RunFailure
from trtllm_bench.load.driver import Drive, LoadResult, run_load
from trtllm_bench.measure.session import Measurement, TargetSession, open_session
from trtllm_bench.measure.validity import verdict
from trtllm_bench.spec.measurement import EngineSpec, LoadSpec, MeasurementSpec, ServerSpec
from trtllm_bench.targets.http import HttpTarget, target_of
from trtllm_results.metrics import requests as metrics
from trtllm_results.store.table import Store
from trtllm_workloads.request import Workload
from trtllm_workloads.synthetic import fixed
from trtllm_workloads.tokens import TextPrompts, TokenPrompts

SLACK_S = 0.1
"""What a busy machine may add; the server's own times are lower bounds."""


@pytest.fixture(scope="module")
def running() -> Iterator[QuirkServer]:
    server = QuirkServer()
    yield server
    server.close()


@pytest.fixture
def server(running: QuirkServer, monkeypatch: pytest.MonkeyPatch) -> QuirkServer:
    monkeypatch.setattr("trtllm_bench.targets.http.LOST_S", 0.05)
    running.asked.clear()
    running.seen.clear()
    running.served.clear()
    return running


def load(server: QuirkServer, quirk: str, osl: int = 16, n: int = 4, concurrency: int = 2, **how: float) -> LoadResult:
    target = HttpTarget(server.url(quirk), endpoint="chat" if quirk == "chat" else "completions", decode=str if quirk == "chat" else None)
    return run_load(fixed(n, 8, osl).requests(), target, replace(Drive(concurrency), **how))


def asking(url: str, model: str | None = None, **server: str | Path | None) -> MeasurementSpec:
    return MeasurementSpec(url, EngineSpec(model=model), server=ServerSpec(**server))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "quirk",
    [
        "plain",
        "silentfirst",
        "silentall",
        "silentlast",
        "finishapart",
        "nullchoices",
        "big",
        "twolines",
        "cr",
        "nodone",
        "chat",
        "usageless",
        "mistyped",
        "dropped",
    ],
)
def test_every_token_is_counted_and_stamped(server: QuirkServer, quirk: str) -> None:
    result = load(server, quirk)
    assert result.failures == ()
    assert result.log.output_tokens.tolist() == [16] * 4
    assert result.log.columns["counted"].all()
    assert result.log.columns["chunks"].tolist() == [16] * 4
    assert np.median(metrics.ttft(result.log)) == pytest.approx(TTFT_S + SLACK_S / 2, abs=SLACK_S / 2)
    assert ITL_S / 2 < np.median(metrics.tpot(result.log)) < 10 * ITL_S


def test_an_announced_beginning_is_no_token(server: QuirkServer) -> None:
    assert np.median(metrics.ttft(load(server, "beginapart").log)) == pytest.approx(TTFT_S + SLACK_S / 2, abs=SLACK_S / 2)


@pytest.mark.parametrize(("quirk", "osl"), [("silentall", 1), ("silentlast", 2), ("finishapart", 1), ("plain", 1)])
def test_short_answers(server: QuirkServer, quirk: str, osl: int) -> None:
    result = load(server, quirk, osl)
    assert result.failures == ()
    assert result.log.output_tokens.tolist() == [osl] * 4


@pytest.mark.parametrize(
    ("quirk", "why"),
    [
        ("cutoff", "the stream ended after 8 events with tokens, without a finish_reason or [DONE]"),
        ("reset", "after 8 events with tokens: "),
        ("errorevent", "the server said: out of blocks"),
        ("abort", "the server gave the answer up (finish_reason 'abort') after 3 events with tokens"),
        ("strict", "HTTP 400: unknown field ignore_eos"),
        ("textonly", "HTTP 422: input should be text"),
        ("whole", "the server did not stream; it said: "),
        ("page", "the server did not stream; it said: Sign in"),
        ("latin", "HTTP 400: refus\u00e9"),
        ("moved", "HTTP 301: it redirects to "),
        ("circle", "it redirects without end (http://127.0.0.1:"),
        ("elsewhere", "it redirects to 'gopher://x', which is not an address of a server"),
        ("notgzip", "Can not decode content-encoding: gzip"),
        ("badchunk", "after 3 events with tokens: the connection broke off before the answer's end"),
    ],
)
def test_an_answer_that_did_not_end_as_answers_do_is_a_failed_request(server: QuirkServer, quirk: str, why: str) -> None:
    result = load(server, quirk, stall_s=20.0)
    assert not result.log.ok.any()
    assert all("\n" not in reason for _, reason in result.failures)
    assert all(reason.startswith(why) for _, reason in result.failures), result.failures[0]


def test_several_tokens_a_piece_are_counted_by_a_tokenizer_or_not_claimed(server: QuirkServer) -> None:
    guessed = load(server, "nousage")
    assert guessed.log.output_tokens.tolist() == [4] * 4
    assert not guessed.log.columns["counted"].any()
    (warning, *_) = verdict(guessed, open_loop=False).warnings
    assert "nobody counted the output tokens: answers came in 4.0 pieces" in warning
    assert not [name for name in metrics.figures(guessed.log) if "output" in name or "tpot" in name]
    target = HttpTarget(server.url("nousage"), count=lambda text: len(text.split()))
    counted = run_load(fixed(4, 8, 16).requests(), target, Drive(2))
    assert counted.log.output_tokens.tolist() == [16] * 4
    assert metrics.figures(counted.log)["output_tokens_per_s_per_user"] < 2 / ITL_S


def test_a_report_claims_no_tokens_that_nobody_counted(server: QuirkServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--isl", "4", "--osl", "16", "--num-requests", "4", "--concurrency", "2", "--warmup", "0", "--max-lag-ms", "10000"]
    report = tmp_path / "r.json"
    assert main(["throughput", "--target", server.url("nousage"), *flags, "--streaming", "--report-json", str(report)]) == 0
    out = capsys.readouterr().out
    assert "4 requests (4.0 in, ? out)" in out
    assert "tok/s" not in out
    content = json.loads(report.read_text())
    assert not [name for name in (*content["performance"], *content["streaming_metrics"]) if "tok_s" in name or "tpot" in name]
    assert content["streaming_metrics"]["avg_ttft_ms"] > 0


def test_an_answer_kept_open_is_no_latency_of_the_next_and_no_lag(server: QuirkServer) -> None:
    result = load(server, "tail", osl=2, n=3, concurrency=1)
    log = result.log
    assert np.median(log.columns["closed_s"] - log.end_s) > TAIL_S / 2
    assert np.median(metrics.ttft(log)) == pytest.approx(TTFT_S + SLACK_S / 2, abs=SLACK_S / 2)
    assert np.median(log.sent_s - log.columns["due_s"]) < SLACK_S


def test_a_hung_request_fails_alone(server: QuirkServer) -> None:
    result = load(server, "hang", osl=4, n=6, stall_s=0.4)
    assert result.log.ok.sum() == 5
    assert [reason for _, reason in result.failures] == ["the answer broke off: nothing moved for 0.4 s after its last token"]
    assert not result.stalled
    assert verdict(result, open_loop=False, max_lag_ms=1e4).void == ""


def test_tokens_are_progress_and_a_limit_of_a_request_is_not(server: QuirkServer) -> None:
    assert load(server, "drip", osl=12, n=2, stall_s=0.4).log.ok.all()
    limited = load(server, "drip", osl=12, n=2, request_limit_s=0.3)
    assert [reason for _, reason in limited.failures] == ["given up: it took longer than its limit of 0.3 s"] * 2


def test_a_connection_closed_while_idle_is_replaced(server: QuirkServer) -> None:
    result = load(server, "closing", osl=2, n=8, concurrency=1)
    assert result.failures == ()
    assert server.closed, "a connection was used again"
    assert server.served["closing"] == 9
    assert result.log.columns["resent"].sum() == 1
    assert not load(server, "plain", osl=2, n=2).log.columns["resent"].any()


def test_a_request_lost_while_it_was_worked_on_fails_and_is_not_sent_again(server: QuirkServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trtllm_bench.targets.http.CLOSED_IDLE_S", 0.1)
    result = load(server, "dropping", osl=2, n=2, concurrency=1)
    assert len(result.failures) == 1
    assert server.served["dropping"] == 2


def test_a_model_is_asked_for_by_name_and_an_unknown_one_before_anything_is_sent(server: QuirkServer) -> None:
    assert HttpTarget(server.url("two")).check() == "base"
    run_load(fixed(2, 4, 2).requests(), HttpTarget(server.url("two"), model="adapter"), Drive())
    assert {asked["model"] for asked in server.asked} == {"adapter"}
    with pytest.raises(RunFailure, match="does not serve 'nosuch'; it serves base, adapter"):
        open_session(asking(server.url("two"), "nosuch"))
    named = open_session(asking(server.url("two"), "llama-3.1-8b", served_model_name="adapter")).identity()
    assert (named.model, named.settings["served_model"]) == ("adapter", "adapter")
    assert len(server.asked) == 2


def test_a_server_without_a_list_of_models_is_asked_for_one_token(server: QuirkServer) -> None:
    assert HttpTarget(server.url("nolist"), model="m").check() == "m"
    assert [asked["max_tokens"] for asked in server.asked] == [1]
    with pytest.raises(RunFailure, match="answered 404 to a request for one token of 'other': model other does not exist"):
        HttpTarget(server.url("nolist"), model="other").check()
    with pytest.raises(RunFailure, match=r"answered 404: .*name one with --model"):
        HttpTarget(server.url("nolist")).check()


def test_refusals_before_the_run_are_told_in_the_servers_words(server: QuirkServer) -> None:
    with pytest.raises(RunFailure, match="answered 401: no key, or a wrong one: None"):
        HttpTarget(server.url("key")).check()
    with pytest.raises(RunFailure, match="answered 503: model is loading"):
        HttpTarget(server.url("loading")).check()
    assert HttpTarget(server.url("plaintext")).check() == "m"


def test_credentials_are_sent_and_told_to_nobody(server: QuirkServer) -> None:
    spec = asking(server.url("key"), api_key=KEY)
    session = open_session(spec)
    assert KEY not in repr(session.identity()) + repr(target_of(spec)) + repr(spec) + json.dumps(spec.other_settings())
    with pytest.raises(RunFailure, match=r"no key, or a wrong one: Bearer \*\*\*"):
        HttpTarget(server.url("key"), api_key="wrong-key").check()
    there = server.url("plain").replace("http://", "http://user:se%20cret@")
    with_user = HttpTarget(there)
    assert with_user.check() == "m"
    assert "cret" not in repr(with_user) + json.dumps(with_user.settings())
    assert with_user._headers()["Authorization"].startswith("Basic ")


def test_secrets_of_the_command_line_reach_no_file(server: QuirkServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = server.url("key").replace("http://", "http://user:pass-word@")
    short = ["--isl", "4", "--osl", "2", "--num-requests", "2", "--warmup", "0", "--max-lag-ms", "10000"]
    single = [
        "throughput",
        "--target",
        address,
        "--api-key",
        KEY,
        *short,
        "--out",
        str(tmp_path / "one"),
        "--report-json",
        str(tmp_path / "r"),
    ]
    grid = ["sweep", f"--target={address}", f"--api_key={KEY}", *short, "--batch-size", "1", "--out", str(tmp_path / "grid")]
    for arguments in (single, grid):
        monkeypatch.setattr(sys, "argv", ["trtllm-bench", *arguments])
        assert main(arguments) == 0
    (row,) = Store(tmp_path / "one").rows()
    assert (row.cell.model, row.cell.settings["endpoint"], row.cell.settings["prompts"]) == ("m", "completions", "tokens")
    assert "--api-key ***" in row.command
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert KEY.encode() not in path.read_bytes(), path
            assert b"pass-word" not in path.read_bytes(), path


def test_servers_that_take_less_are_asked_for_less(server: QuirkServer) -> None:
    target = target_of(asking(server.url("strict"), optional_fields="none"))
    assert run_load(fixed(2, 4, 2).requests(), target, Drive()).log.ok.all()
    assert set(server.asked[0]) == {"model", "prompt", "max_tokens", "stream", "quirk", "path"}
    more = target_of(asking(server.url("plain"), optional_fields="min_tokens", extra_body='{"top_k": 1}'))
    run_load(fixed(1, 4, 2).requests(), more, Drive())
    assert (server.asked[-1]["min_tokens"], server.asked[-1]["top_k"], "ignore_eos" in server.asked[-1]) == (2, 1, False)
    assert (more.settings()["extra_body"], more.settings()["optional_fields"]) == ('{"top_k": 1}', "min_tokens")
    for field, value, complaint in (
        ("optional_fields", "best_of", "--optional-fields: 'best_of' is not a field that may be left out; choose from temperature"),
        ("extra_body", "[1]", "--extra-body: '[1]' is no JSON object"),
        ("extra_body", '{"x": NaN}', "cannot be read as JSON (NaN is not a JSON number)"),
        ("extra_body", '{"model": "other"}', "--extra-body: 'model' cannot be set: the model is named by --served-model-name"),
        ("extra_body", '{"n": 2}', "--extra-body: 'n' cannot be set: a request is one streamed answer"),
        ("extra_body", '{"max_tokens": 3}', "--extra-body: 'max_tokens' cannot be set: the output length is the workload's"),
        ("extra_body", '{"api_key": "sk-1"}', "--extra-body: 'api_key' looks like a credential"),
        ("endpoint", "responses", "--endpoint: 'responses' is unknown; choose from completions, chat"),
    ):
        with pytest.raises(BenchError, match=re.escape(complaint)):
            ServerSpec(**{field: value})  # type: ignore[arg-type]


def test_text_goes_out_as_text_and_tokens_need_a_tokenizer_for_it(server: QuirkServer) -> None:
    text = Workload("t", TextPrompts(("what is a GPU?",)), np.zeros(1, np.int32), np.full(1, 2, np.int32))
    assert run_load(text.requests(), HttpTarget(server.url("textonly")), Drive()).log.ok.all()
    assert run_load(text.requests(), HttpTarget(server.url("chat"), endpoint="chat"), Drive()).log.ok.all()
    assert server.asked[-1]["messages"] == [{"role": "user", "content": "what is a GPU?"}]
    assert server.asked[-1]["path"].endswith("/v1/chat/completions")
    for endpoint, prompts in (("chat", "tokens"), ("completions", "text")):
        target = HttpTarget(server.url("plain"), endpoint=endpoint, prompts=prompts)
        ((_, why),) = run_load(fixed(1, 4, 2).requests(), target, Drive()).failures
        assert "the workload has token ids; give --tokenizer" in why


def measured(server: QuirkServer, workload: Workload, times: int = 1, warmup: int = 2) -> list[Measurement]:
    spec = replace(asking(server.url("cache")), load=LoadSpec(concurrency=1, warmup=warmup, max_lag_ms=1e4))
    session: TargetSession = open_session(spec)
    return [session.measure(workload, spec, lambda done: None) for _ in range(times)]


def test_no_prompt_is_measured_twice(server: QuirkServer) -> None:
    """Warm-up, a cell, its repeat and another command on the same server: eighteen prompts, each of them new to it."""
    workload = fixed(4, 16, 4, seed=101)
    measurements = [*measured(server, workload, times=2), *measured(server, workload)]
    prompts = [json.dumps(asked["prompt"]) for asked in server.asked]
    assert len(prompts) == len(set(prompts)) == 18
    for measurement in measurements:
        assert measurement.figures["ttft_p50_ms"] == pytest.approx(1e3 * (TTFT_S + SLACK_S / 2), abs=1e3 * SLACK_S / 2)
        assert measurement.figures["prefix_hit_ratio"] == 0
        assert not any("prefix cache" in warning for warning in measurement.warnings)


def test_prompts_of_a_file_are_sent_as_they_are_and_a_cache_that_knew_them_is_told_of(server: QuirkServer) -> None:
    prompts = TokenPrompts.of([[1, 2, 3, 4 + k] for k in range(4)])
    workload = Workload("file", prompts, np.full(4, 4, np.int32), np.full(4, 2, np.int32))
    first, second = measured(server, workload, times=2, warmup=4)
    assert not any("prefix cache" in warning for warning in first.warnings)
    assert second.figures["prefix_hit_ratio"] == 1
    assert any("took 100% of the prompt tokens from its prefix cache" in warning for warning in second.warnings)


def test_a_warm_up_that_failed_is_told(server: QuirkServer) -> None:
    spec = replace(asking(server.url("coldstart")), load=LoadSpec(concurrency=1, warmup=2, max_lag_ms=1e4))
    told = open_session(spec).measure(fixed(2, 4, 2), spec, lambda done: None).warnings
    assert "2 of 2 warm-up requests failed: HTTP 503: warming up" in told


def test_a_search_says_why_requests_failed(server: QuirkServer, capsys: pytest.CaptureFixture[str]) -> None:
    """Half of them: the limits are missed, and not because the server is slow."""
    flags = ["--by", "concurrency", "--start", "8", "--highest", "8", "--attainment", "0.8", "--isl", "4", "--osl", "1", "--warmup", "0"]
    assert main(["search", "--target", server.url("limited"), "--goodput", "ttft:5000", *flags, "--max-lag-ms", "1000"]) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert re.search(r"note: .* at 8 at a time: (\d+) of \d+ requests failed: HTTP 429: too many requests", out)


def test_a_proxy_is_asked_and_named_but_not_for_this_machine(server: QuirkServer, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = server.url("proxied").replace("http://", "http://user:pass-word@")
    monkeypatch.setenv("http_proxy", proxy)
    target = HttpTarget("http://192.0.2.1/proxied")
    assert target.check() == "m"
    run_load(fixed(1, 4, 2).requests(), target, Drive())
    assert server.asked[-1]["proxy"] == "Basic " + base64.b64encode(b"user:pass-word").decode()
    assert target.settings()["proxy"] == server.url("proxied")
    assert target._hidden("of user pass-word") == "of user ***"
    assert "proxy" not in HttpTarget(server.url("plain")).settings()
    monkeypatch.setenv("no_proxy", "192.0.2.1")
    assert "proxy" not in HttpTarget("http://192.0.2.1").settings()
    monkeypatch.setenv("https_proxy", "socks5://127.0.0.1:1080")
    with pytest.raises(BenchError, match=r"https_proxy is of a kind that is not spoken here"):
        HttpTarget("https://192.0.2.2")


def test_the_limit_of_open_files_is_raised_for_the_streams(server: QuirkServer) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (128, hard))
        assert load(server, "plain", osl=1, n=100, concurrency=100).failures == ()
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 128
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_tokens_in_one_burst_have_no_speed_and_the_run_says_so(server: QuirkServer) -> None:
    result = load(server, "burst", osl=16)
    assert "output_tokens_per_s_per_user" not in metrics.figures(result.log)
    assert any("4 of 4 requests got all their tokens at once" in warning for warning in verdict(result, open_loop=False).warnings)


def test_a_tokenizer_of_a_folder_decodes_and_counts(server: QuirkServer, tmp_path: Path) -> None:
    import tokenizers

    words = {f"w{k}": k for k in range(200)}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({**words, "a": 200, "b": 201, "c": 202, "d": 203, "?": 204}, unk_token="?"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.save(str(tmp_path / "tokenizer.json"))
    target = target_of(asking(server.url("nousage"), prompts="text", tokenizer=tmp_path))
    log = run_load(fixed(2, 5, 16, vocab_size=200).requests(), target, Drive()).log
    assert log.output_tokens.tolist() == [16, 16]
    assert len(server.asked[0]["prompt"].split()) == 5
