"""A host that lends its GPUs to an engine that another host schedules: it starts ranks when it is told to, and passes steps on to them.

`serve` connects to the process that schedules and obeys it until that ends. Between the connection and the ranks there is the same ring as
on the host that schedules, so ranks know nothing of hosts: what comes in is written to the ring, what they answer is sent back.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from typing import TYPE_CHECKING

from trtllm_engines.documents import checked_json
from trtllm_engines.errors import EngineError
from trtllm_engines.runtime import frames
from trtllm_engines.runtime.host_ranks import HostRanks, RankOrder
from trtllm_engines.runtime.hosts import JOIN_S, HostStatus, interface_of, parsed

if TYPE_CHECKING:
    from pydantic import TypeAdapter

STATUS_S = 1.0
_STEP_S = 30.0
"""How long a step waits for room in the ring: more than the process that schedules gives it."""
_SPIN_S = 500e-6


@cache
def _order_reader() -> TypeAdapter[RankOrder]:
    from pydantic import TypeAdapter

    return TypeAdapter(RankOrder)


class _Relay:
    """The ranks of one engine on this host, and the thread that sends what they say."""

    def __init__(self, order: RankOrder, interface: str, send: Callable[[int, bytes], None]) -> None:
        self._send = send
        self._ending = threading.Event()
        self._answers = order.ranks * order.node_rank <= _answering(order) < order.ranks * (order.node_rank + 1)
        self.error = ""
        self.ranks = HostRanks(order, interface)
        self._thread = threading.Thread(target=self._report, name="host-relay", daemon=True)
        self._thread.start()

    def step(self, message: bytes) -> None:
        """Passes a step on; what goes wrong is in the next status."""
        deadline = time.monotonic() + _STEP_S

        def wait() -> None:
            if self.error or time.monotonic() > deadline:
                raise EngineError(self.error or f"its ranks took no step for {_STEP_S:g} s")

        try:
            self.ranks.ring.send(message, wait)
        except EngineError as error:
            self.error = self.error or str(error)

    def _report(self) -> None:
        number, told, busy = 0, 0.0, time.perf_counter()
        ring = self.ranks.ring
        with contextlib.suppress(OSError):
            while not self._ending.is_set():
                if self._answers and ring.answered(number):
                    self._send(frames.ANSWER, number.to_bytes(8, "little") + ring.answer(number, lambda: None))
                    number, busy = number + 1, time.perf_counter()
                    continue
                if time.monotonic() - told > (STATUS_S if self.ranks.ready() else 0.1):
                    self._send(frames.STATUS, json.dumps(asdict(self._status())).encode())
                    told = time.monotonic()
                time.sleep(50e-6 if time.perf_counter() - busy > _SPIN_S else 0)

    def _status(self) -> HostStatus:
        try:
            self.ranks.check()
        except EngineError as error:
            self.error = self.error or str(error)
        return HostStatus(self.ranks.ready() and not self.error, self.error, tuple(self.ranks.ring.processes()))

    def close(self) -> None:
        self._ending.set()
        self._thread.join()
        self.ranks.close()


def _answering(order: RankOrder) -> int:
    """The rank whose tokens are the step's: the first of the last stage."""
    return order.ranks * order.nnodes - order.tp


def serve(endpoint: str, nnodes: int, node_rank: int, say: Callable[[str], None], join_s: float = JOIN_S) -> None:
    """Joins host 0 at `endpoint` and runs ranks for it until it ends. `say` is told what happens, a line each.

    Raises `EngineError` where host 0 does not answer within `join_s` seconds, or refuses.
    """
    connection = _join(endpoint, nnodes, node_rank, join_s)
    lock = threading.Lock()

    def send(kind: int, data: bytes = b"") -> None:
        with lock:
            frames.send(connection, kind, data)

    say(f"joined {endpoint} as host {node_rank} of {nnodes}")
    interface = interface_of(connection.getsockname()[0])
    relay: _Relay | None = None
    most = frames.MOST_JSON
    try:
        while (frame := frames.receive(connection, most)) is not None:
            kind, data = frame
            if kind == frames.REFUSED:
                raise EngineError(f"host 0 at {endpoint} does not take this host: {data.decode(errors='replace')}")
            if kind == frames.START:
                order = checked_json(_order_reader(), data.decode(errors="replace"), "the order of host 0")
                most = max(order.message_bytes, frames.MOST_JSON)
                say(f"{order.ranks} rank{'s' * (order.ranks != 1)} of {order.engine}")
                try:
                    relay = _Relay(order, interface, send)
                except (EngineError, OSError) as error:
                    send(frames.STATUS, json.dumps(asdict(HostStatus(error=str(error)))).encode())
            elif kind == frames.STEP and relay is not None:
                relay.step(data)
            elif kind == frames.STOP:
                if relay is not None:
                    relay.close()
                    relay = None
                send(frames.STOPPED)
    except OSError:
        pass  # host 0 is gone, as at the end of its work
    finally:
        if relay is not None:
            relay.close()
        connection.close()
    say("host 0 has ended")


def _join(endpoint: str, nnodes: int, node_rank: int, join_s: float) -> socket.socket:
    if not 1 <= node_rank < nnodes:
        fits = "1" if nnodes == 2 else f"1 to {nnodes - 1}"
        raise EngineError(f"--node-rank is {node_rank}; with --nnodes {nnodes} it must be {fits} (0 is the host that measures)")
    where, deadline = parsed(endpoint), time.monotonic() + join_s
    while True:
        try:
            connection = frames.connected(socket.create_connection(where, timeout=5.0))
            break
        except OSError as error:
            if time.monotonic() > deadline:
                raise EngineError(
                    f"host 0 did not answer at {endpoint} within {join_s:g} s ({error.strerror or error}); start the measurement there "
                    f"with --nnodes {nnodes} --rdzv-endpoint {endpoint}"
                ) from None
            time.sleep(0.2)
    connection.settimeout(None)
    hello = {"version": frames.VERSION, "node_rank": node_rank, "nnodes": nnodes}
    frames.send(connection, frames.HELLO, json.dumps(hello).encode())
    return connection
