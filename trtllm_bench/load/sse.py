"""Server-sent events, read as the WHATWG standard says (HTML Living Standard, section 9.2.6, "Interpreting an event stream").

Incremental: bytes go in as they arrive, whole events come out. An event may span any number of reads, a read may hold any number of events,
and neither has a largest size. Lines end in LF, CR or CR LF; a CR at the end of a read may still be followed by its LF.

Two things go beyond the standard. A line of a field named `error` (llama.cpp's server) is an event of that name. Lines of no field, such as
a page of HTML or a whole answer in JSON, are kept as `strays`, since they are then all that the server said.

Rejected: reading by line (an event is not a line: its data may have several), and httpx-sse, aiohttp-sse-client and their like (each splits
lines on more than the standard's three ends, or needs a client of its own).
"""

from __future__ import annotations

from dataclasses import dataclass

BOM = b"\xef\xbb\xbf"
NO_NEWS = (b"", b"id", b"retry")
"""Fields that nothing here needs; the empty one is a comment."""
MOST_STRAYS = 1 << 16
"""How many bytes are kept of the lines that are not fields of an event."""


@dataclass(frozen=True, slots=True)
class Event:
    """`data`: the event's data lines joined by LF. `name`: its `event` field, `message` where it has none."""

    data: str
    name: str = "message"


class EventStream:
    """One stream. `feed` takes the next bytes and returns the events they complete."""

    def __init__(self) -> None:
        self._unfinished: list[bytes] = []
        """Pieces of the line that has not ended yet."""
        self._skip_lf = False
        self._begun = False
        self._data: list[bytes] = []
        self._name = b""
        self._strays: list[bytes] = []
        self._room = MOST_STRAYS

    @property
    def strays(self) -> str:
        """Lines that are not fields of an event: the whole answer, where it is not an event stream."""
        return b"\n".join(self._strays).decode(errors="replace")

    @property
    def unfinished(self) -> str:
        """Data of an event that no blank line has ended. The standard drops it when the stream ends."""
        return b"\n".join(self._data).decode(errors="replace")

    def feed(self, chunk: bytes) -> list[Event]:
        """The events that `chunk` completes, in order."""
        if self._skip_lf and chunk:
            self._skip_lf = False
            if chunk[:1] == b"\n":
                chunk = chunk[1:]
        if not self._begun:
            chunk = self._without_mark(chunk)
        if not chunk:
            return []
        lines = chunk.splitlines(keepends=True)  # of bytes: at LF, CR and CR LF only
        rest = b"" if lines[-1].endswith((b"\n", b"\r")) else lines.pop()
        self._skip_lf = not rest and lines[-1].endswith(b"\r")
        events: list[Event] = []
        for line in lines:
            if self._unfinished:
                line = b"".join((*self._unfinished, line))
                self._unfinished.clear()
            self._line(line.rstrip(b"\r\n"), events)
        if rest:
            self._unfinished.append(rest)
        return events

    def end(self) -> Event | None:
        """The stream is over: the event that no blank line ended, which the standard drops, where there is one."""
        if self._unfinished:
            line = b"".join(self._unfinished)
            self._unfinished.clear()
            self._line(line, [])
        return Event(self.unfinished, self._name.decode(errors="replace") or "message") if self._data else None

    def _without_mark(self, chunk: bytes) -> bytes:
        """Drops one byte order mark at the very beginning, which may come a byte at a time."""
        begin = b"".join((*self._unfinished, chunk))
        self._unfinished.clear()
        if len(begin) < len(BOM) and BOM.startswith(begin):
            if begin:
                self._unfinished.append(begin)
            return b""
        self._begun = True
        return begin.removeprefix(BOM)

    def _line(self, line: bytes, events: list[Event]) -> None:
        if not line:
            if self._data:
                events.append(Event(self.unfinished, self._name.decode(errors="replace") or "message"))
            self._data, self._name = [], b""
            return
        name, colon, value = line.partition(b":")
        if colon and value[:1] == b" ":
            value = value[1:]
        if name == b"data":
            self._data.append(value)
        elif name == b"event":
            self._name = value
        elif name == b"error" and colon:
            self._data.append(value)
            self._name = name
        elif name not in NO_NEWS and self._room > 0:
            self._strays.append(line[: self._room])
            self._room -= len(line)
