"""An OpenAI-compatible server as a target: streaming completions over HTTP, token arrivals stamped as their bytes are read.

One thread with one event loop serves all streams; the driver's thread only hands requests over, so its send times do not wait for parsing.
Bodies are encoded before the run. `sent` is when the request leaves the client: the write of its body to the socket, or the opening of the
connection where it needs a new one. The client's own time before that is the driver's lag, and the loop watches itself as the driver does.

A request is answered when its stream ended as an answer does (`openai_answer.py`); its place is free when the answer is closed. A
connection that the server had closed while it was idle is replaced once, as any client would: nothing of that request was served, and its
record says that it was sent again. One that breaks later had its request, perhaps half served; sent again, it would be load that no record
tells, so it fails.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from trtllm_bench.errors import BenchError, RunFailure
from trtllm_bench.load.driver import BEAT_S, STANDSTILL_S
from trtllm_bench.load.sse import EventStream
from trtllm_bench.load.target import Deliver, RequestOutcome, Standstill, Target
from trtllm_bench.spec.endpoints import ENDPOINTS
from trtllm_bench.spec.measurement import NO_FIELDS, SENT_FIELDS, MeasurementSpec, safe_target
from trtllm_bench.targets.http_address import Credentials, checked_key, proxy_for, split_address
from trtllm_bench.targets.http_sending import SendTrace, allow_connections, stamping
from trtllm_bench.targets.http_words import complaint, listed_models, reason, said_in, short
from trtllm_bench.targets.openai_answer import Answer, AnswerError
from trtllm_bench.targets.registry import Identity, OnBuild, StaticTarget, register
from trtllm_workloads.request import RequestSpec, Workload
from trtllm_workloads.tokens import Int32Array, TextPrompts

if TYPE_CHECKING:
    import aiohttp

CONNECT_S = 10.0
DRAIN_S = 1.0
"""Patience with a stream after its [DONE], so that its connection can be used again."""
CLOSED_IDLE_S = 1.0
"""How soon after a request leaves it shows that its connection had been closed before: a round trip, with room."""
LOST_S = 0.5
"""How often it is looked for answers whose connection is gone."""
BODIES_BYTES = 2 << 30
"""Most bytes of request bodies encoded before the run; later ones are encoded as they are sent."""
MOST_SAID, MOST_LISTED = 1 << 16, 1 << 24
"""Bytes that are read of a refusal, and of a list of models."""
MOST_EVENT = 1 << 28
"""Bytes without a whole event after which a stream is given up."""
LISTED = 8
"""Models that a refusal names."""
NO_LIST = (404, 405, 501)
"""Answers of a server that has no list of models."""
KEY_VARIABLE = "OPENAI_API_KEY"


def as_text(endpoint: str, prompts: str) -> bool:
    """Whether prompts go out as text, by `--endpoint` and `--prompts`."""
    return prompts == "text" or not ENDPOINTS[endpoint].takes_token_ids


@dataclass
class HttpTarget(Target):
    """`base_url` such as `http://127.0.0.1:8000` (with or without `/v1`). `model` empty: the first the server lists."""

    base_url: str
    model: str = ""
    api_key: str = field(default="", repr=False)
    extra: dict[str, Any] = field(default_factory=dict)
    """Further fields of the request body."""
    decode: Callable[[Int32Array], str] | None = None
    """A tokenizer's decoding, for servers that take text only; without it token ids are sent as they are."""
    endpoint: str = "completions"
    prompts: str = "tokens"
    optional_fields: tuple[str, ...] = tuple(SENT_FIELDS.split(","))
    """Fields to send that not every server takes."""
    count: Callable[[str], int] | None = None
    """Tokens of a text, for servers that count none."""

    def __post_init__(self) -> None:
        self.base_url, user, password = split_address(self.base_url, self.endpoint)
        self._proxy = proxy_for(self.base_url) or None
        of_proxy = unquote(urlsplit(self._proxy or "").password or "")
        self._credentials = Credentials(checked_key(self.api_key), user, password, (of_proxy,))
        self._root = self.base_url.rstrip("/").removesuffix("/v1") + "/v1"
        self._url = f"{self._root}/{ENDPOINTS[self.endpoint].path}"
        self._bodies: dict[int, bytes] = {}
        self._stopped_at: list[Standstill] = []

    def settings(self) -> dict[str, Any]:
        """What a row says of how the server was asked; no credentials."""
        sent = ",".join(self.optional_fields)
        told = {
            "url": self.base_url,
            "served_model": self.model,
            "endpoint": self.endpoint,
            "prompts": "text" if self.decode is not None or as_text(self.endpoint, self.prompts) else "tokens",
            "optional_fields": "" if sent == SENT_FIELDS else sent or NO_FIELDS,
            "extra_body": json.dumps(self.extra, sort_keys=True) if self.extra else "",
            "proxy": safe_target(self._proxy or ""),
        }
        return {name: value for name, value in told.items() if value}

    def check(self) -> str:
        """Asks the server for its models and settles which is used. Raises `RunFailure` when it does not answer as such a server does."""
        return asyncio.run(self._check())

    async def _check(self) -> str:
        import aiohttp

        try:
            timeout = aiohttp.ClientTimeout(total=CONNECT_S)
            async with aiohttp.ClientSession(timeout=timeout, headers=self._headers()) as session:
                async with session.get(f"{self._root}/models", proxy=self._proxy) as answer:
                    status, said = answer.status, await said_in(answer, MOST_LISTED)
                listed = listed_models(said) if status == 200 else None
                if self.model and (status in NO_LIST or (status == 200 and listed is None)):
                    return await self._probe(session)
        except TimeoutError:
            raise RunFailure(f"no server answers at {self._root}: nothing came for {CONNECT_S:g} s") from None
        except aiohttp.ClientError as error:
            raise RunFailure(f"no server answers at {self._root}: {self._hidden(reason(error))}") from None
        if listed is not None:
            return self._settle(listed)
        what = f"answered {status}" if status != 200 else "is not the list of models an OpenAI-compatible server gives; it says"
        hint = "; name one with --model" if status in (200, *NO_LIST) else ""
        raise RunFailure(f"{self._root}/models {what}: {complaint(said, self._hidden) or 'nothing'}{hint}")

    def _settle(self, listed: Sequence[str]) -> str:
        """The model to use, of those the server lists."""
        if self.model and self.model not in listed:
            others = f" and {len(listed) - LISTED:,} more" if len(listed) > LISTED else ""
            named = ", ".join(short(name) for name in listed[:LISTED]) or "nothing"
            raise RunFailure(f"{self._root} does not serve '{short(self.model)}'; it serves {named}{others}")
        if not listed:
            raise RunFailure(f"{self._root} serves no model")
        self.model = self.model or listed[0]
        return self.model

    async def _probe(self, session: aiohttp.ClientSession) -> str:
        """A request for one token, where the server lists no models."""
        import numpy as np

        asked = RequestSpec(-1, np.ones(1, np.int32), None, 1, 1, 0.0)
        if self.decode is None and as_text(self.endpoint, self.prompts):
            asked = RequestSpec(-1, None, "a", 1, 1, 0.0)
        async with session.post(self._url, data=self._encoded(asked), headers=JSON, proxy=self._proxy) as answer:
            if answer.status != 200:
                said = complaint(await said_in(answer, MOST_SAID), self._hidden) or "nothing"
                raise RunFailure(f"{self._url} answered {answer.status} to a request for one token of '{self.model}': {said}")
        return self.model

    def prepare(self, requests: Sequence[RequestSpec]) -> None:
        if not self.model:
            self.check()
        self._bodies, size = {}, 0
        for request in requests:
            if size > BODIES_BYTES:
                break
            try:
                self._bodies[request.id] = body = self._encoded(request)
            except BenchError:
                continue  # told when it is submitted
            size += len(body)

    def start(self, deliver: Deliver) -> None:
        if not self.model:
            self.check()
        self._deliver = deliver
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._heard: dict[int, float] = {}
        self._replies: dict[int, aiohttp.ClientResponse] = {}
        self._lost: set[int] = set()
        self._stopped_at = []
        allow_connections()
        self._loop = asyncio.new_event_loop()
        ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, args=(ready,), name="http-target", daemon=True)
        self._thread.start()
        ready.wait()

    def _serve(self, ready: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._open_sessions())
        self._loop.call_later(BEAT_S, self._beat, self._loop.time() + BEAT_S)
        self._loop.call_later(LOST_S, self._end_the_lost)
        ready.set()
        self._loop.run_forever()
        self._loop.run_until_complete(self._close())
        self._loop.close()

    async def _open_sessions(self) -> None:
        import aiohttp

        def session(**connector: Any) -> aiohttp.ClientSession:
            return aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, **connector),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S),
                headers=self._headers(),
                trace_configs=[stamping()],
            )

        self._session = session(keepalive_timeout=300)
        self._fresh = session(force_close=True)

    def _beat(self, expected_s: float) -> None:
        """Runs every `BEAT_S`; the loop's clock is the driver's (`time.monotonic` and `time.perf_counter` are one on Linux)."""
        late, now = self._loop.time() - expected_s, time.perf_counter()
        if late > STANDSTILL_S:
            self._stopped_at.append((now - late, now))
        self._loop.call_later(BEAT_S, self._beat, self._loop.time() + BEAT_S)

    def _end_the_lost(self) -> None:
        """Ends each answer whose connection is gone, which aiohttp does not where the chunks of the stream itself are damaged.

        Seen twice, since an answer that has all its bytes is read to its end after its connection."""
        import aiohttp

        lost = set()
        for number, reply in self._replies.items():
            connection = reply.connection
            transport = connection.transport if connection is not None else None
            if (transport is None or transport.is_closing()) and not reply.content.is_eof() and reply.content.exception() is None:
                lost.add(number)
        for number in lost & self._lost:
            self._replies[number].content.set_exception(aiohttp.ClientPayloadError())
        self._lost = lost
        self._loop.call_later(LOST_S, self._end_the_lost)

    async def _close(self) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._session.close()
        await self._fresh.close()

    def submit(self, request: RequestSpec, arrival_s: float) -> None:
        body = self._bodies.pop(request.id, None) or self._encoded(request)
        self._loop.call_soon_threadsafe(self._begin, request, body)

    def _begin(self, request: RequestSpec, body: bytes) -> None:
        task = self._loop.create_task(self._ask(request, body))
        self._tasks[request.id] = task
        task.add_done_callback(lambda _: self._tasks.pop(request.id, None))

    def heard_s(self, request_id: int) -> float:
        return self._heard.get(request_id, math.nan)

    def cancel(self, request_id: int) -> None:
        def drop() -> None:
            task = self._tasks.get(request_id)
            if task is not None:
                task.cancel()

        self._loop.call_soon_threadsafe(drop)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def standstills(self) -> Sequence[Standstill]:
        return self._stopped_at

    def _headers(self) -> dict[str, str]:
        return self._credentials.headers()

    def _hidden(self, text: str) -> str:
        """What a server said, without the credentials it may have repeated."""
        return self._credentials.hide(text)

    def body(self, request: RequestSpec) -> dict[str, Any]:
        """The request as the endpoint takes it. Raises `BenchError` where the prompt cannot be had in its form."""
        text = request.text
        if request.prompt is not None and self.decode is not None:
            text = self.decode(request.prompt)
        if text is None:
            self.check_token_ids()
        prompt = text if text is not None or request.prompt is None else request.prompt.tolist()
        content = {"model": self.model, **ENDPOINTS[self.endpoint].fields(prompt)}
        named = "max_completion_tokens" if "max_completion_tokens" in self.optional_fields else "max_tokens"
        content[named] = request.output_tokens
        values = {
            "temperature": 0.0,
            "ignore_eos": True,
            "min_tokens": request.output_tokens,
            "stream_options": {"include_usage": True},
        }
        optional = {name: values[name] for name in values if name in self.optional_fields}
        return {**content, "stream": True, **optional, **self.extra}

    def check_token_ids(self) -> None:
        """Raises `BenchError` where prompts of token ids must go out as text and no tokenizer makes text of them."""
        if self.decode is None and as_text(self.endpoint, self.prompts):
            asked = ENDPOINTS[self.endpoint].takes_token_ids
            what = "prompts are to go out as text" if asked else f"the {self.endpoint} endpoint takes text"
            raise BenchError(f"{what} and the workload has token ids; give --tokenizer, whose decoding makes text of them")

    def _encoded(self, request: RequestSpec) -> bytes:
        return json.dumps(self.body(request), separators=(",", ":")).encode()

    async def _ask(self, request: RequestSpec, body: bytes) -> None:
        import aiohttp

        trace = SendTrace()
        try:
            try:
                await self._stream(self._session, request, body, trace)
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError, ConnectionResetError):
                if not trace.reused or trace.answered or time.perf_counter() - trace.sent_s > CLOSED_IDLE_S:
                    raise
                trace.resent = True
                await self._stream(self._fresh, request, body, trace)
        except asyncio.CancelledError:
            raise
        except AnswerError as error:
            self._fail(request, trace, error.told(self._hidden))
        except Exception as error:
            broke = f"after {trace.tokens} events with tokens: " if trace.tokens else ""
            self._fail(request, trace, broke + self._hidden(reason(error)))
        finally:
            self._heard.pop(request.id, None)
            self._replies.pop(request.id, None)

    def _fail(self, request: RequestSpec, trace: SendTrace, why: str) -> None:
        now = time.perf_counter()
        self._deliver(RequestOutcome(request.id, now, 0, error=why, sent_s=trace.sent_s, closed_s=now, resent=trace.resent))

    async def _stream(self, session: aiohttp.ClientSession, request: RequestSpec, body: bytes, trace: SendTrace) -> None:
        import aiohttp

        async with session.post(self._url, data=body, headers=JSON, trace_request_ctx=trace, proxy=self._proxy) as reply:
            trace.answered = True
            if reply.method != "POST":
                raise AnswerError(f"HTTP {reply.history[-1].status}: it redirects to {reply.url}; give the address where it is served")
            if reply.status != 200:
                raise AnswerError(f"HTTP {reply.status}", await said_in(reply, MOST_SAID))
            self._replies[request.id] = reply
            events, answer, now, waiting = EventStream(), Answer(), time.perf_counter(), 0
            try:
                while not answer.closed and (chunk := await reply.content.readany()):
                    now, waiting = time.perf_counter(), waiting + len(chunk)
                    for event in events.feed(chunk):
                        answer.take(event, now)
                        waiting = 0
                    if waiting > MOST_EVENT:
                        raise AnswerError(f"the stream holds {waiting:,} bytes that are not a whole event")
                    self._heard[request.id], trace.tokens = answer.heard_s, len(answer.pieces)
            except aiohttp.ClientPayloadError:
                if not answer.finish_reason:  # with one all of the answer has come, however its connection ends
                    raise
            answer.end(events, now)
            outcome = answer.outcome(request, time.perf_counter(), self.count)
            outcome.sent_s, outcome.resent = trace.sent_s, trace.resent
            self._deliver(outcome)
            try:
                async with asyncio.timeout(DRAIN_S):
                    await reply.content.read()
            except Exception:
                reply.close()  # it was answered; only its connection is lost


JSON = {"Content-Type": "application/json", "Accept": "text/event-stream", "Accept-Encoding": "identity"}
"""Nothing compressed: a proxy that compresses gathers tokens first."""


def target_of(spec: MeasurementSpec) -> HttpTarget:
    """Raises `BenchError` for an invalid address or tokenizer."""
    server = spec.server
    decode: Callable[[Int32Array], str] | None = None
    count: Callable[[str], int] | None = None
    if server.tokenizer is not None:
        from trtllm_engines.checkpoints.tokenizer import Tokenizer

        tokenizer = Tokenizer(server.tokenizer)
        count = lambda text: len(tokenizer.encode(text, add_special_tokens=False))  # noqa: E731
        if as_text(server.endpoint, server.prompts):
            decode = lambda ids: tokenizer.decode(ids.tolist())  # noqa: E731
    return HttpTarget(
        spec.target,
        server.served_model_name or spec.engine.model or "",
        server.api_key or os.environ.get(KEY_VARIABLE, ""),
        json.loads(server.extra_body or "{}"),
        decode,
        server.endpoint,
        server.prompts,
        server.fields_sent,
        count,
    )


class OpenServer(StaticTarget):
    """A server that has answered; refuses a workload whose prompts its endpoint does not take before one is sent."""

    def __init__(self, server: HttpTarget, identity: Identity, salt: int) -> None:
        super().__init__(server, identity, salt)
        self._server = server

    def serve(self, workload: Workload) -> Target:
        if not isinstance(workload.prompts, TextPrompts):
            self._server.check_token_ids()
        return self._server


def _open(spec: MeasurementSpec, on_build: OnBuild | None) -> OpenServer:
    """It does not say what precision it serves with. Raises `RunFailure` when it is not there, or does not serve the model."""
    target = target_of(spec)
    model = target.check()
    identity = Identity("http", model=model, precision="as served", settings=target.settings())
    return OpenServer(target, identity, salt=secrets.randbits(47) << 16)


def _check(spec: MeasurementSpec) -> None:
    target_of(spec).check()


register(
    "http",
    open=_open,
    check=_check,
    matches=lambda address: address.lower().startswith(("http://", "https://")),
    shown="the address of a server such as http://127.0.0.1:8000",
    names_its_model=True,
)
