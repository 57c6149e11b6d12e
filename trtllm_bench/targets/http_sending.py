"""A request on its way out: when it left the client, over which connection, and how many connections there may be."""

from __future__ import annotations

import math
import resource
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import aiohttp

MOST_OPEN = 1 << 16
"""Files that this process wants to have open at most."""


def allow_connections() -> None:
    """Raises the limit of open files, often 1,024, as far as this process may: each stream needs one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < (wanted := MOST_OPEN if hard == resource.RLIM_INFINITY else min(hard, MOST_OPEN)):
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


@dataclass
class SendTrace:
    """What is seen of one request on its way out."""

    sent_s: float = math.nan
    reused: bool = False
    answered: bool = False
    """Its response had begun."""
    tokens: int = 0
    resent: bool = False
    """Its connection had been closed before; it went out again over a new one."""

    def stamp(self) -> None:
        if math.isnan(self.sent_s):
            self.sent_s = time.perf_counter()


def stamping() -> aiohttp.TraceConfig:
    """Stamps a request when it leaves: at the write of its body, or as its connection is opened."""
    import aiohttp

    async def leaves(session: Any, context: Any, params: Any) -> None:
        context.trace_request_ctx.stamp()

    async def reused(session: Any, context: Any, params: Any) -> None:
        context.trace_request_ctx.reused = True

    config = aiohttp.TraceConfig()
    config.on_connection_create_start.append(leaves)
    config.on_request_chunk_sent.append(leaves)
    config.on_connection_reuseconn.append(reused)
    return config
