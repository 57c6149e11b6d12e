"""What passes between the process that schedules and the hosts that lend it their ranks: frames over a TCP connection.

A frame is a byte that says what it is, the number of bytes that follow (little-endian, 8 bytes), and these: JSON, or a step and its answer
as `wire` writes them. Nothing is pickled, so nobody is sent code; but a host that has joined starts what it is told to, so the port belongs
into a network whose hosts trust each other, as torchrun's does.
"""

from __future__ import annotations

import socket
import struct

from trtllm_engines.errors import EngineError

VERSION = 1
HELLO, REFUSED, START, STATUS, STEP, ANSWER, STOP, STOPPED = range(8)
"""HELLO: JSON of who joins. REFUSED: a sentence. START: JSON of a `RankOrder`. STATUS: JSON of a `HostStatus`. STEP: a step batch. ANSWER:
the step's number (8 bytes), then what was sampled. STOP, STOPPED: nothing."""
MOST_JSON = 2**16
_HEADER = struct.Struct("<BQ")


def send(connection: socket.socket, kind: int, data: bytes = b"") -> None:
    """Raises `OSError`."""
    connection.sendall(_HEADER.pack(kind, len(data)) + data)


def receive(connection: socket.socket, most: int) -> tuple[int, bytes] | None:
    """The next frame, None at the end of the connection. Raises `EngineError` for more than `most` bytes, `OSError` as sockets do."""
    header = _read(connection, _HEADER.size)
    if header is None:
        return None
    kind, size = _HEADER.unpack(header)
    if kind > STOPPED or size > max(most, MOST_JSON):
        raise EngineError(f"a frame of kind {kind} and {size} bytes is not of this release; run the same release on every host")
    data = _read(connection, size)
    return None if data is None else (kind, data)


def _read(connection: socket.socket, size: int) -> bytes | None:
    data = bytearray(size)
    view, at = memoryview(data), 0
    while at < size:
        count = connection.recv_into(view[at:])
        if not count:
            return None
        at += count
    return bytes(data)


def connected(connection: socket.socket) -> socket.socket:
    """Set up for small frames that are due at once."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    return connection
