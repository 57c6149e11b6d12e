"""An OpenAI-compatible server of known timing, which writes down what it did: the truth that load drivers are set beside.

    python tests/peers/exact_server.py --port 8000 --log requests.jsonl

Request i has its first token after a time drawn evenly from `TTFT_MS`, and each later one after a gap from `ITL_MS`; both are drawn by its
number alone, so every driver meets the same server. Each token is one event of the stream. A line of the log is one request, in seconds of
the monotonic clock that all processes of a machine share: when its head arrived, and when each token was written to its socket.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import time
from pathlib import Path
from typing import Any

from aiohttp import web

MODEL = "exact"
TTFT_MS = (60.0, 140.0)
ITL_MS = (15.0, 25.0)


class ExactServer:
    def __init__(self, log: Path) -> None:
        self._numbers = itertools.count()
        self._log = log.open("w", buffering=1)

    def app(self) -> web.Application:
        app = web.Application(client_max_size=1 << 28)
        for path in ("/", "/health"):
            app.router.add_get(path, self._health)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/completions", self._answer)
        app.router.add_post("/v1/chat/completions", self._answer)
        return app

    async def _health(self, request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": MODEL, "object": "model", "created": 0, "owned_by": "nobody"}]})

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        arrived = time.perf_counter()
        number = next(self._numbers)
        body = await request.json()
        tokens = int(body.get("max_completion_tokens") or body.get("max_tokens") or 16)
        chat = "messages" in body
        chance = random.Random(number)
        delays = [chance.uniform(*TTFT_MS), *(chance.uniform(*ITL_MS) for _ in range(tokens - 1))]
        reply = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await reply.prepare(request)
        due, written = arrived, []
        for place, delay in enumerate(delays):
            due += delay / 1e3
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            await reply.write(self._event(number, chat, " w", place == tokens - 1))
            written.append(time.perf_counter())
        prompt_tokens = len(str(body.get("prompt", body.get("messages"))).split())
        usage = {"prompt_tokens": prompt_tokens, "completion_tokens": tokens, "total_tokens": prompt_tokens + tokens}
        if (body.get("stream_options") or {}).get("include_usage"):
            await reply.write(b"data: " + json.dumps(self._head(number, chat) | {"choices": [], "usage": usage}).encode() + b"\n\n")
        await reply.write(b"data: [DONE]\n\n")
        await reply.write_eof()
        self._log.write(json.dumps({"number": number, "arrived_s": arrived, "written_s": written}) + "\n")
        return reply

    def _head(self, number: int, chat: bool) -> dict[str, Any]:
        kind = "chat.completion.chunk" if chat else "text_completion"
        return {"id": f"request-{number}", "object": kind, "created": 0, "model": MODEL}

    def _event(self, number: int, chat: bool, text: str, last: bool) -> bytes:
        content: dict[str, Any] = {"delta": {"role": "assistant", "content": text}} if chat else {"text": text}
        choice = {"index": 0, "finish_reason": "length" if last else None, **content}
        return b"data: " + json.dumps(self._head(number, chat) | {"choices": [choice]}).encode() + b"\n\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--log", type=Path, default=Path("requests.jsonl"))
    given = parser.parse_args()
    web.run_app(ExactServer(given.log).app(), host="127.0.0.1", port=given.port, print=None, backlog=4096)


if __name__ == "__main__":
    main()
