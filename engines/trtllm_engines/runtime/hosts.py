"""The other hosts of an engine, as the process that schedules sees them: each is a connection that it opened to us (`host_agent`).

Hosts join once, at the address of `--rdzv-endpoint`, and stay for all engines of this process. torchrun's agents then meet at a port that
is chosen anew for each engine, so that ranks that have not quite ended cannot meet those of the next. A host says every second how its
ranks are; one that has said nothing for `SILENCE_S` is taken for lost, whatever its connection looks like.
"""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache

from trtllm_engines.errors import EngineError
from trtllm_engines.runtime import frames
from trtllm_engines.runtime.host_ranks import RankOrder

JOIN_S = 60.0
"""How long hosts are waited for."""
TOLD_AFTER_S = 2.0
"""How long before standard error says which host is waited for."""
SILENCE_S = 8.0
STOP_S = 10.0
_SPIN_S = 200e-6


@dataclass(frozen=True)
class HostStatus:
    """How a host's ranks are: all ready, or why they will not be."""

    ready: bool = False
    error: str = ""
    processes: tuple[int, ...] = ()


class Host:
    """One other host."""

    def __init__(self, connection: socket.socket, node_rank: int, address: str) -> None:
        self.node_rank, self.address = node_rank, address
        self._connection = connection
        self._answers: dict[int, bytes] = {}
        self._answered = 0
        self._most = frames.MOST_JSON
        self._status = HostStatus()
        self._lost = ""
        self._heard = time.monotonic()
        self._stopped = threading.Event()
        self._stopped.set()
        threading.Thread(target=self._listen, name=f"host-{node_rank}", daemon=True).start()

    @property
    def lost(self) -> bool:
        return bool(self._lost)

    def start(self, order: RankOrder) -> None:
        """Has it start its ranks."""
        self._answers.clear()
        self._answered, self._status, self._most = 0, HostStatus(), order.answer_bytes + 8
        self._heard = time.monotonic()
        self._stopped.clear()
        self._send(frames.START, json.dumps(asdict(order)).encode())

    def ready(self) -> bool:
        return self._status.ready

    @property
    def processes(self) -> tuple[int, ...]:
        """Process ids there of its ranks."""
        return tuple(self._status.processes)

    def send(self, message: bytes) -> None:
        """A step for its ranks."""
        self._send(frames.STEP, message)

    def answered(self, number: int) -> bool:
        return self._answered > number

    def answer(self, number: int, wait: Callable[[], None]) -> bytes:
        """What its rank answered to step `number`. `wait` is called while polling and may raise."""
        began = time.perf_counter()
        while not self.answered(number):
            wait()
            time.sleep(50e-6 if time.perf_counter() - began > _SPIN_S else 0)
        return self._answers.pop(number)

    def check(self) -> None:
        """Raises `EngineError` where the host is lost, or its ranks have failed."""
        if self._lost:
            raise EngineError(f"{self} is gone: {self._lost}")
        if self._status.error:
            raise EngineError(f"{self}: {self._status.error}")
        if time.monotonic() - self._heard > SILENCE_S:
            raise EngineError(f"{self} has not answered for {SILENCE_S:g} s; see whether it and the network between run")

    def stop(self) -> None:
        """Has it end its ranks."""
        if not self._lost and not self._stopped.is_set():
            try:
                self._send(frames.STOP)
            except EngineError:
                return

    def await_stop(self) -> None:
        """Returns once it has; a host that does not is lost."""
        if not self._lost and not self._stopped.wait(STOP_S):
            self._lose(f"its ranks did not end within {STOP_S:g} s")

    def __str__(self) -> str:
        return f"host {self.node_rank} ({self.address})"

    def _send(self, kind: int, data: bytes = b"") -> None:
        if self._lost:
            raise EngineError(f"{self} is gone: {self._lost}")
        try:
            frames.send(self._connection, kind, data)
        except OSError as error:
            self._lose(str(error.strerror or error))
            raise EngineError(f"{self} is gone: {self._lost}") from error

    def _listen(self) -> None:
        try:
            while (frame := frames.receive(self._connection, self._most)) is not None:
                self._heard = time.monotonic()
                kind, data = frame
                if kind == frames.ANSWER:
                    number = int.from_bytes(data[:8], "little")
                    self._answers[number] = data[8:]
                    self._answered = number + 1
                elif kind == frames.STATUS:
                    self._status = HostStatus(**json.loads(data))
                elif kind == frames.STOPPED:
                    self._stopped.set()
            self._lose("it closed its connection")
        except (OSError, ValueError, TypeError) as error:
            self._lose(str(error))

    def _lose(self, reason: str) -> None:
        self._lost = self._lost or reason
        self._stopped.set()
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)  # a close alone would wait for the thread that reads
        self._connection.close()


class Hosts:
    """The hosts that join this process at `endpoint`, host:port of an address of this host. Raises `EngineError` where it cannot listen."""

    def __init__(self, endpoint: str, nnodes: int, join_s: float = JOIN_S) -> None:
        self.endpoint, self.nnodes, self._join_s = endpoint, nnodes, join_s
        name, port = parsed(endpoint)
        try:
            self.address = socket.gethostbyname(name)
            self._listener = socket.create_server((self.address, port), backlog=nnodes)
        except OSError as error:
            raise EngineError(
                f"--rdzv-endpoint {endpoint}: this host cannot listen there ({error.strerror or error}); name a free port of one of its own"
            ) from error
        self.interface = interface_of(self.address)
        self._hosts: dict[int, Host] = {}

    def gather(self) -> list[Host]:
        """All of them, in order, once they have joined. Raises `EngineError` naming one that has not in time."""
        told, deadline = time.monotonic() + TOLD_AFTER_S, time.monotonic() + self._join_s
        self._hosts = {rank: host for rank, host in self._hosts.items() if not host.lost}
        while missing := [rank for rank in range(1, self.nnodes) if rank not in self._hosts]:
            self._listener.settimeout(max(0.01, min(told, deadline) - time.monotonic()))
            try:
                connection, peer = self._listener.accept()
            except TimeoutError:
                start = f"trtllm-bench host --nnodes {self.nnodes} --node-rank {missing[0]} --rdzv-endpoint {self.endpoint}"
                if told < deadline:
                    print(f"waiting for host {missing[0]} of {self.nnodes}; start there: {start}", file=sys.stderr)
                    told = deadline
                    continue
                raise EngineError(
                    f"host {missing[0]} of {self.nnodes} did not join {self.endpoint} within {self._join_s:g} s; start there: {start}"
                ) from None
            self._welcome(frames.connected(connection), peer[0])
        return [self._hosts[rank] for rank in range(1, self.nnodes)]

    def _welcome(self, connection: socket.socket, address: str) -> None:
        """Takes a host in, or says why not."""
        connection.settimeout(5.0)
        try:
            frame = frames.receive(connection, frames.MOST_JSON)
            hello = json.loads(frame[1]) if frame is not None and frame[0] == frames.HELLO else {}
            rank, nnodes, version = (int(hello.get(name, -1)) for name in ("node_rank", "nnodes", "version"))
        except (OSError, ValueError, TypeError, AttributeError):
            connection.close()
            return
        refusal = ""
        if version != frames.VERSION:
            refusal = "its release speaks another protocol; run the same release on every host"
        elif nnodes != self.nnodes or not 1 <= rank < nnodes:
            refusal = f"--nnodes is {self.nnodes} at host 0 and it came as node rank {rank} of {nnodes}; give the same --nnodes everywhere"
        elif rank in self._hosts:
            refusal = f"node rank {rank} has joined already, from {self._hosts[rank].address}; give each host its own --node-rank"
        connection.settimeout(None)
        if refusal:
            frames.send(connection, frames.REFUSED, refusal.encode())
            connection.close()
        else:
            self._hosts[rank] = Host(connection, rank, address)

    def close(self) -> None:
        """Lets the hosts go."""
        self._listener.close()
        for host in self._hosts.values():
            host._lose("it was let go")


@cache
def hosts_at(endpoint: str, nnodes: int) -> Hosts:
    """Those of this process, which stay from engine to engine."""
    return Hosts(endpoint, nnodes)


def parsed(endpoint: str) -> tuple[str, int]:
    """Host and port. Raises `EngineError`."""
    name, colon, port = endpoint.rpartition(":")
    if not colon or not name or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise EngineError(f"--rdzv-endpoint is '{endpoint}'; write HOST:PORT, such as 10.0.0.1:29400")
    return name, int(port)


def free_port(address: str) -> int:
    with socket.create_server((address, 0)) as probe:
        return int(probe.getsockname()[1])


def interface_of(address: str) -> str:
    """Name of the network interface that has this IPv4 address. Raises `EngineError` where none has."""
    import fcntl
    import struct

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(probe.fileno(), 0x8915, struct.pack("256s", name[:15].encode()))  # SIOCGIFADDR
            except OSError:
                continue  # it has no address
            if socket.inet_ntoa(answer[20:24]) == address or (name == "lo" and address.startswith("127.")):
                return name
    raise EngineError(f"no network interface of this host has the address {address}; name one of its own in --rdzv-endpoint")
