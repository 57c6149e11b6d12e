"""Answers, addresses and words of servers without a socket: the bytes of a stream go in, tokens or the reason of a failure come out."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from trtllm_bench.errors import BenchError
from trtllm_bench.load.sse import EventStream
from trtllm_bench.load.target import RequestOutcome
from trtllm_bench.targets.http import HttpTarget
from trtllm_bench.targets.http_address import Credentials, checked_key, split_address
from trtllm_bench.targets.http_words import COMPLAINT, complaint, listed_models
from trtllm_bench.targets.openai_answer import Answer, AnswerError
from trtllm_workloads.request import RequestSpec

DONE = b"data: [DONE]\n\n"


def event(content: Any) -> bytes:
    return b"data: " + json.dumps(content).encode() + b"\n\n"


def piece(text: str = " a", finish: str | None = None, **more: Any) -> bytes:
    return event({"choices": [{"index": 0, "text": text, "finish_reason": finish}], **more})


def usage(tokens: Any, prompt: Any = 7, **details: Any) -> bytes:
    return event({"choices": [], "usage": {"completion_tokens": tokens, "prompt_tokens": prompt, "prompt_tokens_details": details}})


def read(parts: Sequence[bytes], asked: int = 4) -> RequestOutcome:
    """The outcome of a stream whose k-th part comes at k seconds."""
    events, answer, now = EventStream(), Answer(), 0.0
    for now, part in enumerate(parts):
        for one in events.feed(part):
            answer.take(one, now)
        if answer.closed:
            break
    answer.end(events, now)
    return answer.outcome(RequestSpec(0, np.ones(7, np.int32), None, 7, asked, 0.0), float(now), None)


FOUR = [piece()] * 4


@pytest.mark.parametrize(
    "parts",
    [
        [b": hello\nretry: 3\n\n", *[b"event: message\nid: 1\nfoo: bar\n" + one for one in FOUR], DONE],
        [*[b"event: ping\ndata: ping\n\ndata: null\n\n" + one for one in FOUR], DONE],
        [*FOUR, b"data:   [DONE]  \n\n"],
        [*FOUR, b'data: "[DONE]"\n\n'],
        [*FOUR, b"data: [done]\n\n"],
        [*FOUR, b"data: [DONE]\n"],
        [*FOUR, b"data: [DONE]"],
        [*FOUR[:3], piece(finish="length")[:-1]],
        [*FOUR[:3], piece(finish="length")[:-2]],
        [*FOUR[:3], piece(finish="null"), DONE],
    ],
    ids=["fields", "pings", "spaces", "quoted", "lower", "no blank line", "no line end", "event open", "line open", "null"],
)
def test_every_way_to_write_four_tokens(parts: list[bytes]) -> None:
    outcome = read(parts)
    assert (outcome.output_tokens, outcome.counted) == (4, True)
    assert (np.diff(outcome.token_times_s) == 1).all()


@pytest.mark.parametrize(
    ("tail", "why"),
    [
        (b'data: {"choices": [{"te', "the stream ended after 2 events with tokens, without a finish_reason or [DONE]"),
        (piece(finish="null"), "the stream ended after 3 events with tokens, without a finish_reason or [DONE]"),
        (b'error: {"code": 500, "message": "slot lost"}\n\n', "the server said: slot lost"),
        (b"event: error\ndata: worker lost", "the server said: worker lost"),
        (event({"detail": "model crashed"}), "the server said: model crashed"),
        (event({"message": "model crashed", "code": 500}), "the server said: model crashed"),
        (b'{"error": {"message": "no prefix"}}\n', "the server said: no prefix"),
        (event({"error": {"message": "bad \ud83d \x1b[31m \n text"}}), "the server said: bad \ufffd \ufffd[31m text"),
        (b"data: " + b"[" * 200_000 + b"\n\n", "the stream contains invalid JSON: [[["),
        (event({"choices": [{"text": "", "finish_reason": "error", "error": {"message": "GPU fell"}}]}), "the server said: GPU fell"),
        (
            event({"choices": [{"text": "", "finish_reason": {"type": "abort"}}]}) + DONE,
            "the server gave the answer up (finish_reason 'abort')",
        ),
        (usage(10**12) + DONE, "the server counts 1,000,000,000,000 output tokens in its usage, which no answer has"),
    ],
)
def test_what_ends_an_answer_badly_is_told_in_the_servers_words(tail: bytes, why: str) -> None:
    with pytest.raises(AnswerError) as failed:
        read([piece(), piece(), tail])
    assert failed.value.told(str).startswith(why)
    assert len(failed.value.told(str)) < 2 * COMPLAINT


@pytest.mark.parametrize(("said", "tokens"), [(8, 8), (8.0, 8), ("8", 8), (True, 4), (-8, 4), ("x", 4), ([8], 4), (None, 4)])
def test_a_count_is_a_count_in_whatever_form(said: object, tokens: int) -> None:
    assert read([*FOUR, usage(said), DONE]).output_tokens == tokens


def test_the_running_count_of_a_server_places_each_token() -> None:
    """vLLM's `continuous_usage_stats`."""
    sizes = [1, 2, 3, 2, 3, 2, 3, 2, 3]
    told = [piece(" a" * size, usage={"prompt_tokens": 1, "completion_tokens": sum(sizes[: k + 1])}) for k, size in enumerate(sizes)]
    times, counts = np.unique(read([*told, usage(21), DONE], asked=21).token_times_s, return_counts=True)
    assert (counts.tolist(), times.tolist()) == (sizes, list(range(9)))


def test_counts_of_prompts_that_none_can_have_are_none() -> None:
    outcome = read([*FOUR, usage(4, prompt=10**30, cached_tokens=10**30), DONE])
    assert (outcome.input_tokens, outcome.cached_tokens) == (-1, -1)
    outcome = read([*FOUR, usage(4, prompt="12", cached_tokens=True), DONE])
    assert (outcome.input_tokens, outcome.cached_tokens) == (12, -1)


def test_signs_of_life_are_no_tokens() -> None:
    """Empty pieces while the request waits; the server counts as many tokens as there are others."""
    outcome = read([piece(""), piece(""), piece(" a"), piece(""), piece(" b"), piece("", "stop"), usage(2), DONE], asked=2)
    assert outcome.token_times_s.tolist() == [2.0, 4.0]


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("<html><head><title>503 Service\n Unavailable</title></head>", "503 Service Unavailable"),
        ("<!DOCTYPE html><body><h1>Bad &amp; gone</h1>", "Bad & gone"),
        ('{"detail": [{"loc": ["body", "prompt"], "msg": "str expected"}]}', "body.prompt: str expected"),
        ('{"error": null, "message": "busy"}', "busy"),
        ('{"errors": [{"message": "a"}, {"message": "b"}]}', "a; b"),
        (json.dumps({"error": {"message": json.dumps({"error": {"message": "inner"}})}}), "inner"),
        ("", ""),
    ],
)
def test_a_refusal_is_told_by_its_words(body: str, told: str) -> None:
    assert complaint(body) == told


@pytest.mark.parametrize("pad", [0, 60, 85, 100])
def test_credentials_are_hidden_before_the_line_is_cut(pad: int) -> None:
    key = "sk-s\u00e9cret-key"
    hide = Credentials(key, others=("p",)).hide
    for spelling in (key, "sk-s%C3%A9cret-key", "sk-s\\u00e9cret-key", key.encode().decode("latin-1"), "sk-s\\xc3\\xa9cret-key"):
        told = complaint("x" * pad + f" Bearer {spelling} is wrong", hide)
        assert "cret" not in told
        assert "sk-s" not in told
    basic = base64.b64encode(b"bob:pa ss-word").decode()
    assert Credentials(user="bob", password="pa ss-word").hide(f"Basic {basic}, pa%20ss-word") == "Basic ***, ***"
    assert hide("a p in a prompt") == "a *** in a prompt"


def test_a_key_is_what_a_header_can_hold() -> None:
    assert checked_key(" sesame\n") == "sesame"
    for key in ("ses\name", "\udcff"):
        with pytest.raises(BenchError, match="holds a character that no header of HTTP can"):
            checked_key(key)


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("http://[::1", "is not a server address"),
        ("http://127.0.0.1:99999", "is not a server address"),
        ("http://127.0.0.1:x", "is not a server address"),
        ("http:///v1", "is not a server address"),
        ("http://bob:p@ss/secret@127.0.0.1", "has an @ behind its host"),
        ("http://127.0.0.1?key=secret", "has more behind 'http://127.0.0.1'"),
        ("http://127.0.0.1/v1/chat/completions", "is the chat endpoint; give --endpoint chat"),
    ],
)
def test_what_is_no_address_is_refused_and_its_secrets_are_not_repeated(address: str, why: str) -> None:
    with pytest.raises(BenchError, match=why) as refused:
        split_address(address, "completions")
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("path", ["", "/", "/v1", "/v1/", "/v1//", "/v1/completions", "/v1/completions/"])
def test_an_address_leads_to_its_endpoint_however_much_of_it_is_given(path: str) -> None:
    assert HttpTarget(f"http://[::1]:80/a{path}")._url == "http://[::1]:80/a/v1/completions"


@pytest.mark.parametrize(
    ("said", "listed"),
    [
        ('{"data": [{"id": "org/base"}, {"id": "sql-lora", "parent": "org/base"}]}', ["org/base", "sql-lora"]),
        ('[{"id": "m"}]', ["m"]),
        ('{"models": [{"name": "m"}]}', ["m"]),
        ('{"data": ["m"]}', ["m"]),
        ('{"data": []}', []),
        ('{"data": null}', None),
        ('{"data": [{"id": null}]}', None),
        ('{"data": [{"id": "m\\u001b"}]}', None),
        ("[" * 200_000, None),
    ],
)
def test_lists_of_models(said: str, listed: list[str] | None) -> None:
    assert listed_models(said) == listed
