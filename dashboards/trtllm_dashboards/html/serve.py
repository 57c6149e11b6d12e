"""The dashboard live: the same page from a small server that tells it when the results have changed.

The server looks at the files' times once a second and never locks or writes them: a sweep cannot notice that it is watched. A change is
announced by a server-sent event, and the page then asks for the whole payload again, gzipped; sending differences was rejected, since 5,000
cells are half a megabyte. The payload is built in a thread and kept until the files change, so that ten viewers cost what one does. It
listens on 127.0.0.1 unless told otherwise: results name machines and commands.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

from trtllm_dashboards import profile_page
from trtllm_dashboards.errors import DashboardError
from trtllm_dashboards.html import contents, page
from trtllm_dashboards.html.payload import build
from trtllm_dashboards.html.profiles import Profile
from trtllm_dashboards.sources import load, stores_in
from trtllm_results.errors import ResultsError
from trtllm_results.store.layout import PROGRESS, ROWS
from trtllm_results.store.progress import read_progress
from trtllm_results.store.selection import named_path

POLL_S = 1.0
Stamp = tuple[tuple[int, int], ...]


@dataclass
class Watch:
    """The payload of some result sets, rebuilt when their files change. A store that does not exist yet is an empty one."""

    specs: Sequence[str]
    where: Sequence[str] = ()
    title: str = ""
    _stamp: Stamp | None = None
    _payload: dict[str, Any] = field(default_factory=dict)
    _pages: dict[str, tuple[Path, str]] = field(default_factory=dict)
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def stores(self) -> list[Path]:
        return [named_path(spec)[1] for named in self.specs for spec in stores_in(named)]

    def files(self) -> list[Path]:
        return [path if path.is_file() else path / ROWS for path in self.stores()]

    def stamp(self) -> Stamp:
        """Changes whenever a file does; a missing file is (0, 0)."""
        stamps = []
        for path in (*self.files(), *(store / PROGRESS for store in self.stores())):
            try:
                status = path.stat()
                stamps.append((status.st_mtime_ns, status.st_size))
            except OSError:
                stamps.append((0, 0))
        return tuple(stamps)

    async def payload(self) -> dict[str, Any]:
        async with self._lock:
            stamp = self.stamp()
            if stamp != self._stamp:
                self._payload = await asyncio.to_thread(self._build)
                self._stamp = stamp
            return self._payload

    def _build(self) -> dict[str, Any]:
        there = [spec for named in self.specs for spec in stores_in(named) if _exists(spec)]
        self._pages = {}
        try:
            content = contents(load(there, self.where), self.title, self._link) if there else build({"": []}, self.title)
        except ResultsError as error:
            content = build({"": []}, self.title)
            if any((path / ROWS).exists() or path.is_file() for path in self.stores()):
                content["notes"] = [f"{str(error).rstrip('.')}."]
        told = [progress for store in self.stores() if (progress := read_progress(store)) is not None]
        content["progress"] = told or None
        return content

    def _link(self, profile: Profile, key: str) -> str:
        name = f"profiles/{len(self._pages)}"
        self._pages[name] = (profile.folder, f"/#cell={key}" if key else "/")
        return name

    def profile(self, name: str) -> str | None:
        """The page of one of the profiles that the payload links to."""
        if f"profiles/{name}" not in self._pages:
            return None
        folder, back = self._pages[f"profiles/{name}"]
        try:
            return profile_page.page(profile_page.load(folder), back)
        except DashboardError:
            return None


def _exists(spec: str) -> bool:
    path = named_path(spec)[1]
    return path.is_file() or (path / ROWS).exists()


def application(watch: Watch, poll_s: float = POLL_S) -> web.Application:
    """`/` is the page, `/data` the payload, `/events` one server-sent event a change, `/profiles/N` the page of a linked profile."""

    async def index(_: web.Request) -> web.Response:
        text = page(await watch.payload(), live=True)
        return web.Response(text=text, content_type="text/html", headers={"Cache-Control": "no-store"})

    async def profile(request: web.Request) -> web.Response:
        text = await asyncio.to_thread(watch.profile, request.match_info["name"])
        if text is None:
            raise web.HTTPNotFound
        return web.Response(text=text, content_type="text/html", headers={"Cache-Control": "no-store"})

    async def data(_: web.Request) -> web.Response:
        body = gzip.compress(json.dumps(await watch.payload(), separators=(",", ":"), allow_nan=False).encode(), 5)
        headers = {"Content-Encoding": "gzip", "Cache-Control": "no-store"}
        return web.Response(body=body, content_type="application/json", headers=headers)

    async def events(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"})
        await response.prepare(request)
        seen: Stamp | None = None
        quiet = 0.0
        with contextlib.suppress(ConnectionResetError):
            while True:
                now = watch.stamp()
                if now != seen:
                    await response.write(b"data: changed\n\n")
                    seen, quiet = now, 0.0
                elif quiet >= 15:
                    await response.write(b": still here\n\n")
                    quiet = 0.0
                await asyncio.sleep(poll_s)
                quiet += poll_s
        return response

    app = web.Application()
    app.router.add_get("/", index)
    app.router.add_get("/data", data)
    app.router.add_get("/events", events)
    app.router.add_get("/profiles/{name}", profile)
    return app


@contextlib.asynccontextmanager
async def listening(watch: Watch, host: str = "127.0.0.1", port: int = 0, poll_s: float = POLL_S) -> AsyncIterator[str]:
    """Serve until the block ends; gives the address. `port` 0 takes a free one. Raises `DashboardError` when the port is taken."""
    runner = web.AppRunner(application(watch, poll_s), access_log=None, shutdown_timeout=0.5)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        try:
            await site.start()
        except OSError as error:
            raise DashboardError(f"cannot listen on {host}:{port}: {error.strerror or error}; choose another --port") from error
        yield f"http://{host}:{runner.addresses[0][1]}/"
    finally:
        await runner.cleanup()


def serve(specs: Sequence[str], *, where: Sequence[str] = (), title: str = "", port: int = 8060, announce: Callable[[str], object]) -> None:
    """Serve until interrupted. `announce` is told the address once the server listens.

    Raises `ResultsError` for results that exist but cannot be read, before it starts to listen.
    """
    watch = Watch(specs, where, title)
    for spec in specs:
        if all(_exists(inside) for inside in stores_in(spec)):
            load([spec])
        elif (path := named_path(spec)[1]).suffix == ".parquet" or not (path.is_dir() or path.parent.is_dir()):
            raise ResultsError(f"no results at {spec}")

    async def run() -> None:
        async with listening(watch, port=port) as address:
            announce(address)
            await asyncio.Event().wait()

    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(run())
