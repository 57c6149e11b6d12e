"""Ctrl-C, SIGTERM and SIGHUP: one way out, whatever the process is doing.

The first signal is passed on to all child processes and raised as `Interrupted`, so that every `finally` runs; `main` then says in one
sentence what was kept and how to go on, and exits with 128 + the signal's number. `Interrupted` is a KeyboardInterrupt because asyncio and
other event loops let that through and swallow any other exception. A second signal, or a clean-up that takes longer than `PATIENCE_S`,
ends the process at once. Where a library swallows the exception (a `__del__`, a callback of C code), it is raised again, and an error that
a library made of it still counts as the signal.

This module is the first that the tool imports, and imports nothing that takes time (`typing` and `contextlib` would double the moment in
which a signal still finds Python's own handlers). Rejected: a flag that loops look at (most of a run is
spent in other people's loops), and handlers by command (the moments between them stay uncovered).
"""

from __future__ import annotations

import _thread
import atexit
import os
import signal
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PATIENCE_S = 15.0
DOUBLE_S = 0.5
"""A second signal this soon after the first is the same event: a terminal and a supervisor both passing it on."""
CHILDREN_S = 3.0
"""What child processes have to end by themselves."""
NOTHING = "nothing new is kept; run the command again"


class Interrupted(KeyboardInterrupt):
    """A signal asked the process to end."""


class _State:
    pid = 0
    """The process that took the signals over."""
    signum = 0
    """The first signal received; 0 for none."""
    at = 0.0
    children: set[tuple[int, int]]
    """(pid, start time) of what is to end with us."""
    kept = ""
    """What was kept, as told on the way out."""
    sayers: list[Callable[[], str]]
    said = False


_state = _State()
_state.children, _state.sayers = set(), []


def install() -> None:
    """Takes the signals over, those excepted that the process was started to ignore (nohup, a shell's background job)."""
    _state.pid = os.getpid()
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _on_signal)
    signal.signal(signal.SIGALRM, _raise_again)
    sys.unraisablehook = _on_unraisable
    os.register_at_fork(after_in_child=_as_if_never_installed)
    atexit.register(_ignore)  # registered first, so called last


def finished() -> None:
    """The work is done: a signal from now on has nothing to clean up."""
    for number in SIGNALS:
        if signal.getsignal(number) is _on_signal:
            signal.signal(number, lambda number, _: os._exit(128 + number))


def _ignore() -> None:
    """For the interpreter's own end, which gives every handler of ours back to the system but leaves what is ignored."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def received() -> int:
    """Number of the signal that asked the process to end; 0 for none."""
    return _state.signum


class keeping:
    """While this lasts, `say` tells what would be kept if the work ended now, and how to go on; empty for nothing. Asked once, on the way
    out."""

    def __init__(self, say: Callable[[], str]) -> None:
        self._say = say

    def __enter__(self) -> None:
        if not _state.sayers and not _state.signum:
            _state.kept = ""
        _state.sayers.append(self._say)

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None or _state.signum:
            _ask(self._say)
        _state.sayers.remove(self._say)


def kept() -> str:
    """What the work that ended early has kept; empty where nobody said."""
    return _state.kept


def farewell() -> int:
    """Says the one sentence, sees children out; returns the exit code."""
    number = _state.signum or signal.SIGINT
    if _state.signum:
        _end_children()
    if not _state.said:
        _state.said = bool(_state.signum)
        name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        try:
            sys.stdout.flush()
            print(f"trtllm-bench: stopped by {name}; {_state.kept or NOTHING}", file=sys.stderr, flush=True)
        except (OSError, ValueError):  # after a SIGHUP there may be no terminal
            pass
    return 128 + number


def _ask(say: Callable[[], str]) -> None:
    try:
        _state.kept = _state.kept or say()
    except Exception:  # what is said must not hide why the work ended
        return


def _on_signal(number: int, _: Any) -> None:
    if os.getpid() != _state.pid:  # a child forked just now, which did not come to `_as_if_never_installed`
        signal.signal(number, signal.SIG_DFL)
        _send(os.getpid(), number)
        return
    now = time.monotonic()
    if _state.signum:
        if now - _state.at > DOUBLE_S:
            _leave()
        return
    _state.signum, _state.at = number, now
    _pass_on()
    _thread.start_new_thread(_leave_after, (PATIENCE_S,))
    raise Interrupted(number)


def _raise_again(*_: Any) -> None:
    raise Interrupted(_state.signum)


def _on_unraisable(unraisable: Any) -> None:
    if isinstance(unraisable.exc_value, Interrupted):
        signal.setitimer(signal.ITIMER_REAL, 0.01)
    elif not _state.signum:
        sys.__unraisablehook__(unraisable)


def _leave_after(seconds: float) -> None:
    time.sleep(seconds)
    _leave()


def _leave() -> None:
    """Ends the process without further clean-up."""
    for say in _state.sayers[-1:]:
        _ask(say)
    os._exit(farewell())


def _as_if_never_installed() -> None:
    """In a forked child: it ends quietly when its parent passes a signal on."""
    for number in (*SIGNALS, signal.SIGALRM):
        if signal.getsignal(number) in (_on_signal, _raise_again):
            signal.signal(number, signal.SIG_DFL)


def _pass_on() -> None:
    """Asks every descendant to end."""
    _state.children |= _descendants()
    for pid, _ in _state.children:
        _send(pid, signal.SIGTERM)


def _end_children() -> None:
    """Waits for the descendants to end, then ends them."""
    _state.children |= _descendants()
    until = time.monotonic() + CHILDREN_S
    while alive := {one for one in _state.children if _start_of(one[0]) == one[1]}:
        if time.monotonic() > until:
            for pid, _ in alive:
                _send(pid, signal.SIGKILL)
            return
        time.sleep(0.02)


def _send(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except OSError:
        return  # it has ended


def _descendants() -> set[tuple[int, int]]:
    """Children, their children and so on, as Linux tells; none elsewhere. Python's helper that cleans up after us is left to."""
    parents: dict[int, tuple[int, int]] = {}
    for name in os.listdir("/proc") if os.path.isdir("/proc/self") else []:
        if name.isdecimal() and (fields := _stat(int(name))):
            parents[int(name)] = int(fields[1]), int(fields[19])
    children: set[tuple[int, int]] = set()
    level = {os.getpid()}
    while level:
        level = {pid for pid, (parent, _) in parents.items() if parent in level and not _tracks_resources(pid)}
        children |= {(pid, parents[pid][1]) for pid in level}
    return children


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat after the name, the state first; empty for a process that is gone or a zombie."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return []
    return [] if fields[0] in "ZX" else fields


def _start_of(pid: int) -> int:
    fields = _stat(pid)
    return int(fields[19]) if fields else -1


def _tracks_resources(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return b"resource_tracker" in file.read()
    except OSError:
        return False
