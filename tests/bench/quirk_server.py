"""An OpenAI-compatible server with one peculiarity, the first part of its path: `http://127.0.0.1:PORT/QUIRK/v1`.

True timing: the first token after `TTFT_S`, then one every `ITL_S`. Everything a server was asked is in `asked`.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections import Counter
from collections.abc import Sequence
from typing import Any

from aiohttp import web

TTFT_S, ITL_S = 0.03, 0.005
FAST_S, TAIL_S = 0.002, 0.3
KEY = "sesame"


def event(content: Any) -> bytes:
    return b"data: " + json.dumps(content).encode() + b"\n\n"


def piece(text: str, finish: str | None = None, **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "text": text, "finish_reason": finish}], **more}


def delta(content: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": content, "finish_reason": finish}]}


class QuirkServer:
    """Runs on a thread of its own until `close`."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.seen: set[str] = set()
        self.served: Counter[str] = Counter()
        self.closed = False
        """Whether `closing` has closed its connection."""
        self._served_on: set[object] = set()
        self.loop = asyncio.new_event_loop()
        ready = threading.Event()
        threading.Thread(target=self._run, args=(ready,), daemon=True).start()
        ready.wait()

    def url(self, quirk: str) -> str:
        return f"http://127.0.0.1:{self.port}/{quirk}"

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)

    def _run(self, ready: threading.Event) -> None:
        asyncio.set_event_loop(self.loop)

        async def begin() -> None:
            app = web.Application(client_max_size=1 << 28)
            app.router.add_get("/{quirk}/v1/models", self.models)
            app.router.add_post("/{quirk}/v1/completions", self.complete)
            app.router.add_post("/{quirk}/v1/chat/completions", self.complete)
            runner = web.AppRunner(app)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            self.port = runner.addresses[0][1]

        self.loop.run_until_complete(begin())
        ready.set()
        self.loop.run_forever()

    async def models(self, request: web.Request) -> web.StreamResponse:
        quirk = request.match_info["quirk"]
        if quirk == "key" and request.headers.get("Authorization") != f"Bearer {KEY}":
            return web.json_response({"error": {"message": f"no key, or a wrong one: {request.headers.get('Authorization')}"}}, status=401)
        if quirk == "loading":
            return web.json_response({"error": {"message": "model is loading"}}, status=503)
        if quirk == "nolist":
            raise web.HTTPNotFound
        listed = {"data": [{"id": name} for name in (["base", "adapter"] if quirk == "two" else ["m"])]}
        return web.Response(text=json.dumps(listed), content_type="text/plain" if quirk == "plaintext" else "application/json")

    async def complete(self, request: web.Request) -> web.StreamResponse:
        quirk, body = request.match_info["quirk"], await request.json()
        self.served[quirk] += 1
        self.asked.append({**body, "quirk": quirk, "path": request.path})
        if quirk == "proxied":
            self.asked[-1]["proxy"] = request.headers.get("Proxy-Authorization")
        prompt = body.get("prompt", body.get("messages"))
        refusal = self._refusal(quirk, body, prompt)
        if refusal is not None:
            return web.json_response({"error": {"message": refusal[1]}}, status=refusal[0])
        if quirk == "moved":
            raise web.HTTPMovedPermanently("/plain/v1/completions")
        if quirk == "latin":
            return web.Response(status=400, body="refus\xe9".encode("latin-1"), headers={"Content-Type": "text/plain; charset=iso-8859-1"})
        if quirk == "page":
            return web.Response(text="<html><head><title>Sign in</title></head><body>...</body></html>", content_type="text/html")
        if quirk == "whole":
            return web.json_response({"choices": [{"text": "all of it"}]})
        if quirk == "closing":  # an idle connection closed just as it is used again, once
            assert request.transport is not None
            if request.transport in self._served_on and not self.closed:
                self.closed = True
                request.transport.close()
                return web.Response()
            self._served_on.add(request.transport)
        if quirk == "dropping":  # a request on a used connection is worked on, and its connection then lost
            assert request.transport is not None
            if request.transport in self._served_on:
                await asyncio.sleep(0.3)
                request.transport.close()
                return web.Response()
            self._served_on.add(request.transport)
        if quirk == "circle":
            raise web.HTTPTemporaryRedirect(request.path)
        if quirk == "elsewhere":
            raise web.HTTPTemporaryRedirect("gopher://x")
        kind = "application/json" if quirk == "mistyped" else "text/event-stream"
        encoding = {"Content-Encoding": "gzip"} if quirk == "notgzip" else {}
        reply = web.StreamResponse(headers={"Content-Type": kind, **encoding})
        await reply.prepare(request)
        await self._answer(reply, request, quirk, body["max_tokens"], prompt)
        return reply

    def _refusal(self, quirk: str, body: dict[str, Any], prompt: Any) -> tuple[int, str] | None:
        if quirk == "strict" and {"ignore_eos", "stream_options"} & set(body):
            return 400, "unknown field ignore_eos"
        if quirk == "textonly" and not isinstance(prompt, str):
            return 422, "input should be text"
        if quirk == "limited" and self.served[quirk] % 2:
            return 429, "too many requests"
        if quirk == "coldstart" and self.served[quirk] <= 2:
            return 503, "warming up"
        if quirk == "nolist" and body["model"] != "m":
            return 404, f"model {body['model']} does not exist"
        return None

    async def _answer(self, reply: web.StreamResponse, request: web.Request, quirk: str, n: int, prompt: Any) -> None:
        mark = json.dumps(prompt)
        known = mark in self.seen
        self.seen.add(mark)
        usage: dict[str, Any] = {"prompt_tokens": len(prompt), "completion_tokens": n}
        if quirk == "cache":
            usage["prompt_tokens_details"] = {"cached_tokens": len(prompt) if known else 0}
        served = self.served[quirk]

        async def send(parts: Sequence[Any], every: float = ITL_S, wait: float = FAST_S if quirk == "cache" and known else TTFT_S) -> None:
            await asyncio.sleep(wait)
            for place, part in enumerate(parts):
                if place and every:
                    await asyncio.sleep(every)
                await reply.write(part if isinstance(part, bytes) else event(piece(part) if isinstance(part, str) else part))

        async def end(counts: Any = usage) -> None:
            await reply.write((event({"choices": [], "usage": counts}) if counts else b"") + b"data: [DONE]\n\n")

        a = [" a"] * n
        if quirk == "silentfirst":
            await send(["", *a[1:]])
        elif quirk == "silentall":
            await send([""] * n)
        elif quirk == "silentlast":
            await send([*a[:-2], "", piece("", "length")])
        elif quirk == "finishapart":  # llama.cpp's and TGI's way: the last event holds no token
            await send(a)
            await reply.write(event(piece("", "length")))
        elif quirk == "beginapart":
            await reply.write(event(piece("")))
            await send(a)
        elif quirk == "nullchoices":
            await send(a)
            await reply.write(event({"choices": None, "usage": usage}))
            return await end(None)
        elif quirk == "big":
            await send([*a[:-1], piece(" a", extra="x" * 600_000)])
        elif quirk == "twolines":
            await send([b': ping\ndata: {"choices":\ndata: [{"index":0,"text":" a"}]}\n\n'] * n)
        elif quirk == "cr":
            await send([event(piece(" a")).replace(b"\n", b"\r")] * n)
        elif quirk == "nousage":
            await send([" a b c d"] * (n // 4), every=4 * ITL_S)
            return await end(None)
        elif quirk == "usageless":  # one token a piece, and no usage
            await send(a)
            return await end(None)
        elif quirk == "nodone":
            await send([*a[:-1], piece(" a", "length")])
            return None
        elif quirk == "cutoff":
            return await send(a[: n // 2])
        elif quirk == "reset":
            await send(a[: n // 2])
            assert request.transport is not None
            return request.transport.abort()
        elif quirk == "dropped":  # all of the answer, and then no connection
            await send([*a[:-1], piece(" a", "length"), {"choices": [], "usage": usage}])
            assert request.transport is not None
            return request.transport.abort()
        elif quirk == "badchunk":
            await send(a[:3])
            assert request.transport is not None
            request.transport.write(b"zz\r\nno chunk\r\n")
            return await asyncio.sleep(TAIL_S)
        elif quirk == "errorevent":
            await send([*a[:2], {"error": {"message": "out of blocks"}}])
            return None
        elif quirk == "abort":
            await send([*a[:2], piece("", "abort")])
        elif quirk == "tail":  # the answer stays open after its last token
            await send(a)
            await asyncio.sleep(TAIL_S)
        elif quirk == "hang" and served == 3:
            await send(a[:1])
            await asyncio.sleep(60)
        elif quirk == "drip":
            await send(a, every=0.06)
        elif quirk == "chat":
            await reply.write(event(delta({"role": "assistant", "content": ""})))
            await send([delta({"reasoning_content": "a"}), *[delta({"content": "a"})] * (n - 2), delta({"content": ""}, "length")])
        elif quirk == "burst":
            await asyncio.sleep((n - 1) * ITL_S)
            await reply.write(b"".join(event(piece(text)) for text in a))  # a busy machine may part several writes
        else:
            await send(a)
        return await end()
