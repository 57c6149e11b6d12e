"""A chat template: compiled once, in a process of its own (`chat_worker`), which is ended when a conversation takes it too long.

Rejected: rendering here. jinja2's sandbox bounds neither a loop nor the length of a string, and nothing can stop a thread.
"""

from __future__ import annotations

import contextlib
import json
import selectors
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path
from typing import IO, Any

from trtllm_engines.errors import EngineError

SECONDS = 10.0
"""Most that a template may take to compile, and a conversation to render."""
START_SECONDS = 60.0
"""Most that the process may take to start, which says nothing of the template."""
MOST_CHARACTERS = 1 << 20
"""Of a template; the longest known have 30 thousand."""
_WORKER = Path(__file__).with_name("chat_worker.py")


class ChatTemplate:
    """`source` is the template's text, `where` says whose it is. May be used from any thread."""

    def __init__(self, source: str, where: str) -> None:
        if len(source) > MOST_CHARACTERS:
            raise EngineError(f"the chat template of {where} has {len(source)} characters; it may have {MOST_CHARACTERS}")
        self._source, self._where = source, where
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def render(self, **variables: Any) -> str:
        """Raises `EngineError` for a template that is broken, refuses these variables, or takes too long or too much."""
        try:
            request = json.dumps(variables)
        except (TypeError, ValueError, RecursionError) as error:
            raise EngineError(f"messages, tools and documents must be what JSON can hold ({error})") from None
        with self._lock:
            process = self._started()
            said = self._exchange(process, request, SECONDS)
        if "error" in said:
            raise EngineError(f"the chat template of {self._where} refuses these messages ({' '.join(said['error'].split())[:300]})")
        return str(said["text"])

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        command = [sys.executable, "-P", str(_WORKER)]
        try:
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        except OSError as error:
            raise EngineError(f"no process can be started to render the chat template ({error.strerror})") from None
        self._process = process
        weakref.finalize(self, _end, process)
        said = self._exchange(process, json.dumps(self._source), START_SECONDS)
        if "broken" in said:
            self._process = None
            raise EngineError(f"the chat template of {self._where} cannot be compiled ({' '.join(said['broken'].split())[:300]})")
        return process

    def _exchange(self, process: subprocess.Popen[bytes], line: str, seconds: float) -> dict[str, Any]:
        """Sends a line and returns the answer. The process is ended where none comes in time."""
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(line.encode() + b"\n")
            process.stdin.flush()
            answer = _line(process.stdout, time.monotonic() + seconds)
        except (BrokenPipeError, EOFError):
            answer = b'{"error": "it ended the process that renders it"}'
        except TimeoutError:
            answer = json.dumps({"error": f"it takes more than {seconds:g} s"}).encode()
        except BaseException:
            self._process = None
            _end(process)
            raise
        said: dict[str, Any] = json.loads(answer)
        if "error" in said and process.poll() is None and b"takes more" in answer:
            self._process = None
            _end(process)
        return said


def _line(stream: IO[bytes], until: float) -> bytes:
    """The next line. Raises TimeoutError at `until` (`time.monotonic`), EOFError where the stream ends first."""
    parts: list[bytes] = []
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        while not parts or not parts[-1].endswith(b"\n"):
            if not selector.select(max(0.0, until - time.monotonic())):
                raise TimeoutError
            part = stream.read1(1 << 20)  # type: ignore[attr-defined]
            if not part:
                raise EOFError
            parts.append(part)
    return b"".join(parts)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()
    process.wait()
