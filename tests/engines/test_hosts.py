"""Hosts that join, do not join, come twice or fall silent: each is one sentence within its time. No ranks are started."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from trtllm_engines.errors import EngineError
from trtllm_engines.runtime import frames, hosts
from trtllm_engines.runtime.host_agent import serve
from trtllm_engines.runtime.host_ranks import RankOrder
from trtllm_engines.runtime.hosts import Hosts, free_port, interface_of

ORDER = RankOrder("none.engine", "cpu", 1, 1, 64, 64, 0.9, 40, 0, nnodes=2, node_rank=1)


@pytest.fixture
def two() -> Iterator[Hosts]:
    with closing(Hosts(f"127.0.0.1:{free_port('127.0.0.1')}", 2, join_s=5.0)) as made:
        yield made


def joined(two: Hosts, **hello: int) -> socket.socket:
    connection = socket.create_connection(hosts.parsed(two.endpoint), timeout=5.0)
    frames.send(connection, frames.HELLO, json.dumps({"version": frames.VERSION, "nnodes": 2, "node_rank": 1} | hello).encode())
    return connection


def test_a_host_that_does_not_join_is_named_in_time() -> None:
    endpoint = f"127.0.0.1:{free_port('127.0.0.1')}"
    with closing(Hosts(endpoint, 3, join_s=0.3)) as three:
        began = time.monotonic()
        with pytest.raises(EngineError, match=r"^host 1 of 3 did not join 127.0.0.1:\d+ within 0.3 s; start there: trtllm-bench host"):
            three.gather()
        assert time.monotonic() - began < 3


def test_what_is_waited_for_is_said_meanwhile(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(hosts, "TOLD_AFTER_S", 0.05)
    endpoint = f"127.0.0.1:{free_port('127.0.0.1')}"
    with closing(Hosts(endpoint, 2, join_s=0.3)) as two, pytest.raises(EngineError, match="did not join"):
        two.gather()
    said = f"waiting for host 1 of 2; start there: trtllm-bench host --nnodes 2 --node-rank 1 --rdzv-endpoint {endpoint}\n"
    assert capsys.readouterr().err == said


def test_host_0_that_does_not_answer_is_told_in_time() -> None:
    began = time.monotonic()
    with pytest.raises(EngineError, match=r"^host 0 did not answer at 127.0.0.1:\d+ within 0.3 s"):
        serve(f"127.0.0.1:{free_port('127.0.0.1')}", 2, 1, print, join_s=0.3)
    assert time.monotonic() - began < 3


@pytest.mark.parametrize(
    ("hello", "said"),
    [
        ({"nnodes": 4}, "--nnodes is 2 at host 0 and it came as node rank 1 of 4"),
        ({"node_rank": 2}, "it came as node rank 2 of 2"),
        ({"version": 0}, "run the same release on every host"),
    ],
)
def test_a_host_that_does_not_fit_is_refused_and_the_right_one_taken(two: Hosts, hello: dict[str, int], said: str) -> None:
    with closing(joined(two, **hello)) as wrong, closing(joined(two)), closing(socket.create_connection(hosts.parsed(two.endpoint))) as odd:
        odd.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert [host.node_rank for host in two.gather()] == [1]
        refusal = frames.receive(wrong, 1024)
        assert refusal is not None
        assert refusal[0] == frames.REFUSED
        assert said in refusal[1].decode()


def test_steps_go_out_and_answers_come_back_in_order(two: Hosts) -> None:
    with closing(joined(two)) as other:
        (host,) = two.gather()
        host.start(ORDER)
        frame = frames.receive(other, 64)
        assert frame is not None
        assert RankOrder(**json.loads(frame[1])) == ORDER
        for message in (b"first", b"second"):
            host.send(message)
        assert [frames.receive(other, 64) for _ in range(2)] == [(frames.STEP, b"first"), (frames.STEP, b"second")]
        for number in range(2):
            frames.send(other, frames.ANSWER, number.to_bytes(8, "little") + bytes([number]))
        assert [host.answer(number, host.check) for number in range(2)] == [b"\0", b"\1"]
        other.close()
        with pytest.raises(EngineError, match=r"host 1 \(127.0.0.1\) is gone: it closed its connection"):
            host.answer(2, host.check)


def test_a_host_that_falls_silent_is_told_though_its_connection_stands(two: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "SILENCE_S", 0.2)
    with closing(joined(two)):
        (host,) = two.gather()
        host.start(ORDER)
        with pytest.raises(EngineError, match=r"host 1 \(127.0.0.1\) has not answered for 0.2 s"):
            host.answer(0, host.check)


def test_an_order_that_is_none_is_refused_and_host_0_told(two: Hosts) -> None:
    said: list[str] = []

    def lend() -> None:
        with pytest.raises(EngineError, match="the order of host 0: engine is 1; it must be text"):
            serve(two.endpoint, 2, 1, said.append)
        said.append("refused")

    other = threading.Thread(target=lend, daemon=True)
    other.start()
    (host,) = two.gather()
    frames.send(host._connection, frames.START, b'{"engine": 1}')
    with pytest.raises(EngineError, match="is gone"):
        host.answer(0, host.check)
    other.join(5)
    assert said == [f"joined {two.endpoint} as host 1 of 2", "refused"]


def test_an_address_has_an_interface() -> None:
    assert interface_of("127.0.0.1") == "lo"
    with pytest.raises(EngineError, match=r"no network interface of this host has the address 192.0.2.1"):
        interface_of("192.0.2.1")
    with pytest.raises(EngineError, match=r"--rdzv-endpoint is 'node0'; write HOST:PORT"):
        hosts.parsed("node0")
