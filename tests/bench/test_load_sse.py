"""The event stream against a plain reference that sees the whole stream at once, for any content and any chunking."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trtllm_bench.load.sse import Event, EventStream


def reference(stream: bytes) -> list[Event]:
    """The standard's algorithm over the whole stream: cut into lines, then field by field."""
    text = stream.removeprefix(b"\xef\xbb\xbf").decode(errors="replace")
    lines = re.split("\r\n|\n|\r", text)[:-1]  # what follows the last line end is not a line yet
    events, data, name = [], "", ""
    for line in lines:
        if line == "":
            if data:
                events.append(Event(data[:-1], name or "message"))
            data, name = "", ""
        elif line.startswith("data"):
            field, _, value = line.partition(":")
            if field == "data":
                data += value.removeprefix(" ") + "\n"
        elif line.partition(":")[0] == "event":
            name = line.partition(":")[2].removeprefix(" ")
    return events


def read(stream: bytes, cuts: list[int]) -> list[Event]:
    parser, events, begin = EventStream(), [], 0
    for end in [*sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]:
        events += parser.feed(stream[begin:end])
        begin = end
    return events


LINE = st.sampled_from(
    [
        "data: {}",
        "data:x",
        "data",
        "data: ",
        "data:  two",
        ": ping",
        ":",
        "event: error",
        "event",
        "id: 7",
        "retry: 10",
        "",
        "",
        "dat",
        "é\u2028\x0b",
    ]
)


@given(
    lines=st.lists(st.tuples(LINE, st.sampled_from(["\n", "\r", "\r\n"])), max_size=30),
    begin=st.sampled_from([b"", b"\xef\xbb\xbf", b"\xef\xbb", b"\xef\xbb\xbf\xef\xbb\xbf"]),
    rest=st.sampled_from([b"", b"data: cut", b"\r"]),
    cuts=st.lists(st.integers(0, 400), max_size=20),
)
@settings(max_examples=300, deadline=None)
def test_any_chunking_gives_the_events_of_the_whole(lines: list[tuple[str, str]], begin: bytes, rest: bytes, cuts: list[int]) -> None:
    stream = begin + "".join(line + end for line, end in lines).encode() + rest
    assert read(stream, cuts) == reference(stream)
    assert read(stream, list(range(len(stream)))) == reference(stream)


@given(stream=st.binary(max_size=60), cuts=st.lists(st.integers(0, 60), max_size=8))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_read_without_error(stream: bytes, cuts: list[int]) -> None:
    assert read(stream, cuts) == read(stream, [])


@pytest.mark.parametrize(
    ("stream", "data"),
    [
        (b'data: {"a":\ndata: 1}\n\n', ['{"a":\n1}']),
        (b"data: a\r\rdata: b\r\r", ["a", "b"]),
        (b"\xef\xbb\xbfdata: a\r\n\r\n: ping\r\n\r\n", ["a"]),
        (b"data\n\ndata\ndata\n\ndata:", ["", "\n"]),  # the standard's own example
        (b"data: " + b"x" * 700_000 + b"\n\n", ["x" * 700_000]),
    ],
)
def test_cases_of_the_standard_and_of_servers(stream: bytes, data: list[str]) -> None:
    assert [event.data for event in read(stream, [])] == data
    assert [event.data for event in read(stream, list(range(0, len(stream), 1 + len(stream) // 50)))] == data


def test_an_event_that_no_blank_line_ended_is_kept_apart() -> None:
    parser = EventStream()
    assert parser.feed(b"data: [DONE]\n") == []
    assert parser.unfinished == "[DONE]"
