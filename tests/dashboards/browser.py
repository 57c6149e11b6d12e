"""A Chromium tab for tests of pages, over the DevTools protocol; and axe-core, which checks their accessibility.

A browser is part of these tests: without one the fixture fails and says how to get it. Outside CI `nox -s tests` leaves them out then, and
says so.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import time
from importlib import resources
from pathlib import Path
from typing import Any

import aiohttp
import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome-headless-shell")
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-default-apps", "--disable-dev-shm-usage", "--hide-scrollbars"),
)
READY = "document.documentElement?.dataset.ready === 'charts'"


class Browser:
    """A Chromium tab over the DevTools protocol, blocking, with what it said and asked for on the side."""

    def __init__(self, binary: str, profile: Path) -> None:
        command = [binary, *FLAGS, f"--user-data-dir={profile}", "--remote-debugging-port=0", "about:blank"]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.loop = asyncio.new_event_loop()
        self.errors: list[str] = []
        self.requests: list[str] = []
        self._next = 0
        self._answers: dict[int, dict[str, Any]] = {}
        self.loop.run_until_complete(self._connect(profile / "DevToolsActivePort"))

    async def _connect(self, port_file: Path) -> None:
        for _ in range(300):
            if port_file.exists() and len(port_file.read_text().splitlines()) == 2:
                break
            await asyncio.sleep(0.1)
        else:
            raise RuntimeError("Chromium did not open its DevTools port within 30 s.")
        port = port_file.read_text().splitlines()[0]
        self.session = aiohttp.ClientSession()
        async with self.session.get(f"http://127.0.0.1:{port}/json/list") as answer:
            tab = next(t for t in await answer.json() if t["type"] == "page")
        self.socket = await self.session.ws_connect(tab["webSocketDebuggerUrl"], max_msg_size=0)
        for domain in ("Page", "Runtime", "Log", "Network"):
            await self._call(f"{domain}.enable")
        await self._call("Performance.enable", timeDomain="threadTicks")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        return self.loop.run_until_complete(self._call(method, **params))

    async def _call(self, method: str, **params: Any) -> dict[str, Any]:
        self._next += 1
        mine = self._next
        await self.socket.send_json({"id": mine, "method": method, "params": params})
        while True:
            message = json.loads((await self.socket.receive(timeout=60)).data)
            if message.get("id") == mine:
                assert "error" not in message, message["error"]
                return dict(message["result"])
            self._note(message)

    def _note(self, message: dict[str, Any]) -> None:
        method, params = message.get("method", ""), message.get("params", {})
        if method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.errors.append(str([a.get("value", a.get("description")) for a in params["args"]]))
        elif method == "Runtime.exceptionThrown":
            self.errors.append(params["exceptionDetails"].get("exception", {}).get("description", "exception"))
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.errors.append(params["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])

    def js(self, expression: str) -> Any:
        """Value of `expression`, promises awaited. Raises on an exception in the page."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, expression: str, seconds: float = 30) -> None:
        end = time.monotonic() + seconds
        while not self.js(expression):
            assert time.monotonic() < end, f"still not true after {seconds} s: {expression}"
            time.sleep(0.05)

    def open(self, url: str, width: int = 1280, height: int = 900, scheme: str = "light", ready: str = READY) -> None:
        self.call("Page.navigate", url="about:blank")  # another address of one page alone would not load it again
        self.errors.clear()
        self.requests.clear()
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.call("Page.navigate", url=url)
        self.until(ready)

    def cpu_s(self) -> float:
        """Seconds of processor time that the page's main thread has used, however busy the machine is."""
        metrics = self.call("Performance.getMetrics")["metrics"]
        return float(next(one["value"] for one in metrics if one["name"] == "TaskDuration"))

    def violations(self) -> list[str]:
        """What axe-core finds against WCAG A and AA and its best practices: rule and element."""
        self.js(resources.files("axe_core_python").joinpath("axe.min.js").read_text(encoding="utf-8") + ";0")
        tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
        found = "r.violations.flatMap((v) => v.nodes.map((n) => `${v.id}: ${n.html.slice(0, 200)}`))"
        return list(self.js(f"axe.run(document, {{runOnly: {tags}}}).then((r) => {found})"))

    def key(self, name: str) -> None:
        """Presses a key, as `Enter` or `ArrowRight`."""
        codes = {"Enter": 13, "Escape": 27, "Tab": 9, "ArrowLeft": 37, "ArrowRight": 39, "ArrowDown": 40}
        for kind in ("keyDown", "keyUp"):
            extra = {"text": "\r"} if name == "Enter" and kind == "keyDown" else {}
            self.call("Input.dispatchKeyEvent", type=kind, key=name, code=name, windowsVirtualKeyCode=codes[name], **extra)

    def close(self) -> None:
        self.loop.run_until_complete(self.socket.close())
        self.loop.run_until_complete(self.session.close())
        self.loop.close()
        self.process.terminate()
        self.process.wait(timeout=20)


def chromium() -> str:
    """Path of the browser: `TRTLLM_BENCH_CHROMIUM`, or a known name on PATH."""
    found = os.environ.get("TRTLLM_BENCH_CHROMIUM") or next((path for name in NAMES if (path := shutil.which(name))), None)
    if not found:
        pytest.fail(
            "The dashboard is tested in a browser and none is installed: apt-get install chromium, or set TRTLLM_BENCH_CHROMIUM.",
            pytrace=False,
        )
    return found
