"""Runs one reading under a limit on time and memory, and judges how it ended."""

from __future__ import annotations

import contextlib
import io
import resource
import signal
from collections.abc import Callable, Iterator

SECONDS = 10.0
"""Most processor time that a reading may take, in this process or in those it starts."""
WAITING_SECONDS = 120.0
"""Most that it may take by the clock, which says little on a busy machine."""
BYTES = 2 * 2**30
MOST_CHARACTERS = 1000
"""Of a refusal: long enough for a path, a field and a value, too short for a dump."""


class Hang(BaseException):
    """Not an Exception: nothing that is read may swallow it."""


def fault_of(read: Callable[[], object], refusals: tuple[type[Exception], ...]) -> str:
    """What was wrong with how `read()` ended; empty where it returned or refused in one sentence."""
    began, before = _processor_s(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        with _limits(), contextlib.redirect_stdout(io.StringIO()):
            read()
    except refusals as error:
        return _fault_of_sentence(str(error))
    except Hang:
        return f"hung for {SECONDS:g} s"
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    if grown > BYTES:
        return f"took {grown / 2**30:.1f} GiB"
    took = _processor_s() - began
    return f"took {took:.1f} s" if took > SECONDS else ""


def _processor_s() -> float:
    """Processor time of this process and of those it has waited for."""
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def _fault_of_sentence(text: str) -> str:
    if not text.strip() or len(text.splitlines()) != 1:
        return f"refused in {len(text.splitlines())} lines: {text[:300]!r}"
    if len(text) > MOST_CHARACTERS:
        return f"refused in {len(text)} characters: {text[:300]!r}"
    for word in ("Traceback", "this is a bug", "pydantic", "validation error", "Input should"):
        if word in text:
            return f"refused with {word!r}: {text[:300]!r}"
    try:
        text.encode()
    except UnicodeEncodeError:
        return f"refused with text that cannot be printed: {text!a}"
    return ""


@contextlib.contextmanager
def _limits() -> Iterator[None]:
    def hang(*_: object) -> None:
        raise Hang

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    earlier = {number: signal.signal(number, hang) for number in (signal.SIGALRM, signal.SIGPROF)}
    resource.setrlimit(resource.RLIMIT_AS, (now + BYTES, hard))
    signal.setitimer(signal.ITIMER_REAL, WAITING_SECONDS)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        for number, handler in earlier.items():
            signal.signal(number, handler)
