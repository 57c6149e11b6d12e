"""An OpenAI-compatible server as a target: streaming completions over HTTP, token arrivals stamped as their bytes are read.

One thread with one event loop serves all streams; the driver's thread only hands requests over, so its send times do not wait for parsing.
`sent` is when the driver handed over, and the client's own time until the bytes are out counts as latency, as it does for any user.

The server's `usage` is the truth about token counts. When it counts more tokens than there were pieces (a server may put several tokens
in a piece), tokens are laid over the pieces evenly in order; the first token's and the last token's time are exact either way.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from trtllm_bench.errors import BenchError, RunFailure
from trtllm_bench.load.target import Deliver, RequestOutcome
from trtllm_bench.spec.measurement import MeasurementSpec
from trtllm_bench.targets.registry import Identity, OnBuild, StaticTarget, register
from trtllm_workloads.request import RequestSpec
from trtllm_workloads.tokens import Int32Array

CONNECT_S = 10.0
COMPLAINT = 110
"""Most characters of a refusal that are told."""


@dataclass
class HttpTarget:
    """`base_url` such as `http://127.0.0.1:8000` (with or without `/v1`). `model` empty: the first the server lists."""

    base_url: str
    model: str = ""
    api_key: str = ""
    extra: dict[str, Any] = field(default_factory=dict)
    """Further fields of the request body."""
    decode: Callable[[Int32Array], str] | None = None
    """A tokenizer's decoding, for servers that take text only; without it token ids are sent as they are."""

    def __post_init__(self) -> None:
        parts = urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise BenchError(f"'{self.base_url}' is no server address; write for example http://127.0.0.1:8000")
        self._root = self.base_url.rstrip("/").removesuffix("/v1") + "/v1"
        self._tasks: set[asyncio.Task[None]] = set()

    def check(self) -> str:
        """Asks the server for its models and settles which is used. Raises `RunFailure` when it does not answer as such a server does."""
        return asyncio.run(self._check())

    async def _check(self) -> str:
        import aiohttp

        try:
            timeout = aiohttp.ClientTimeout(total=CONNECT_S)
            async with (
                aiohttp.ClientSession(timeout=timeout, headers=self._headers()) as session,
                session.get(f"{self._root}/models") as answer,
            ):
                if answer.status != 200:
                    raise RunFailure(f"{self._root}/models answered {answer.status}: is this an OpenAI-compatible server?")
                listed = [entry["id"] for entry in (await answer.json())["data"]]
        except (aiohttp.ClientError, TimeoutError) as error:
            raise RunFailure(f"no server answers at {self._root}: {error or type(error).__name__}") from None
        except (KeyError, TypeError, ValueError):
            raise RunFailure(f"{self._root}/models is not the list of models an OpenAI-compatible server gives") from None
        if self.model and self.model not in listed:
            raise RunFailure(f"{self._root} does not serve '{self.model}'; it serves {', '.join(listed) or 'nothing'}")
        if not listed:
            raise RunFailure(f"{self._root} serves no model")
        self.model = self.model or listed[0]
        return self.model

    def start(self, deliver: Deliver) -> None:
        if not self.model:
            self.check()
        self._deliver = deliver
        self._loop = asyncio.new_event_loop()
        ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, args=(ready,), name="http-target", daemon=True)
        self._thread.start()
        ready.wait()

    def _serve(self, ready: threading.Event) -> None:
        import aiohttp

        asyncio.set_event_loop(self._loop)

        async def opened() -> aiohttp.ClientSession:
            connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=300)
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S)
            return aiohttp.ClientSession(connector=connector, timeout=timeout, headers=self._headers(), read_bufsize=1 << 18)

        self._session = self._loop.run_until_complete(opened())
        ready.set()
        self._loop.run_forever()
        self._loop.run_until_complete(self._close())
        self._loop.close()

    async def _close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._session.close()

    def submit(self, request: RequestSpec, arrival_s: float) -> None:
        self._loop.call_soon_threadsafe(self._begin, request)

    def _begin(self, request: RequestSpec) -> None:
        task = self._loop.create_task(self._ask(request))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}

    def body(self, request: RequestSpec) -> dict[str, Any]:
        """The request as the completions interface takes it: token ids, or text where only that is known or taken."""
        prompt: str | list[int] | None = request.text
        if request.prompt is not None:
            prompt = self.decode(request.prompt) if self.decode else request.prompt.tolist()
        return {
            "model": self.model,
            "prompt": prompt,
            "max_tokens": request.output_tokens,
            "ignore_eos": True,
            "temperature": 0.0,
            "stream": True,
            "stream_options": {"include_usage": True},
            **self.extra,
        }

    async def _ask(self, request: RequestSpec) -> None:
        try:
            outcome = await self._stream(request)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            outcome = RequestOutcome(request.id, time.perf_counter(), 0, error=str(error) or type(error).__name__)
        self._deliver(outcome)

    async def _stream(self, request: RequestSpec) -> RequestOutcome:
        pieces: list[float] = []
        usage: dict[str, Any] = {}
        async with self._session.post(f"{self._root}/completions", json=self.body(request)) as answer:
            if answer.status != 200:
                raise RuntimeError(f"HTTP {answer.status}: {complaint(await answer.text())}")
            async for raw in answer.content:
                now = time.perf_counter()
                line = raw.strip()
                if not line.startswith(b"data:"):
                    continue
                data = line[5:].strip()
                if data == b"[DONE]":
                    break
                try:
                    event = json.loads(data)
                except ValueError:
                    raise RuntimeError(f"the stream holds what is no JSON: {data[:60].decode(errors='replace')}") from None
                if event.get("error"):
                    raise RuntimeError(f"the server said: {event['error']}")
                usage = event.get("usage") or usage
                if any(choice.get("text") for choice in event.get("choices", ())):
                    pieces.append(now)
        if not pieces:
            raise RuntimeError("the stream ended without a token")
        tokens = int(usage.get("completion_tokens") or len(pieces))
        times = np.asarray(pieces)[laid_over(tokens, len(pieces))]
        return RequestOutcome(request.id, pieces[-1], tokens, times, input_tokens=int(usage.get("prompt_tokens") or -1))


def laid_over(tokens: int, pieces: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Piece of each token: evenly in order, the first token in the first piece and the last in the last."""
    if tokens == 1:
        return np.zeros(1, dtype=np.int64)
    return (np.arange(tokens) * (pieces - 1) // (tokens - 1)).astype(np.int64)


def complaint(body: str) -> str:
    """What a server says of a request it refused, on one short line, so that equal failures read equal and can be counted."""
    try:
        content = json.loads(body)
        error = content.get("error", content)
        body = str(error.get("message") or error.get("detail") or error) if isinstance(error, dict) else str(error)
    except (ValueError, AttributeError):
        pass
    line = " ".join(body.split())
    short = line if len(line) <= COMPLAINT else line[: COMPLAINT - 1] + "…"
    return short + (" (prompts go out as token ids, which the server must take)" if "prompt" in line and "string" in line else "")


def _open(spec: MeasurementSpec, on_build: OnBuild | None) -> StaticTarget:
    """It does not say what precision it serves with. Raises `RunFailure` when it is not there."""
    target = HttpTarget(spec.target)
    model = target.check()
    return StaticTarget(target, Identity("http", model=model, precision="as served", settings={"url": spec.target}))


def _check(spec: MeasurementSpec) -> None:
    HttpTarget(spec.target).check()


register(
    "http",
    open=_open,
    check=_check,
    matches=lambda address: address.startswith(("http://", "https://")),
    shown="the address of a server such as http://127.0.0.1:8000",
    names_its_model=True,
)
