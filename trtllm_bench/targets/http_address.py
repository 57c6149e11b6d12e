"""Where a server is, who asks it, and the proxy between: settled before anything is sent.

Credentials come in the address or as a key. They go into one header and nowhere else: records and messages have the address without them,
and `Credentials.hide` takes them out of what a server repeats. An address with a query is refused, as it is where some servers want a key.

A proxy named by `$http_proxy` or `$https_proxy` is used as other HTTP clients do, `$no_proxy` included. One is never used for this machine
itself, and a record says which was.
"""

from __future__ import annotations

import base64
import ipaddress
import json
import re
from dataclasses import dataclass, field
from urllib.parse import SplitResult, quote, unquote, urlsplit

from trtllm_bench.errors import BenchError
from trtllm_bench.spec.endpoints import ENDPOINTS
from trtllm_bench.spec.measurement import HIDDEN, safe_target

SHORT_SECRET = 6
"""A secret shorter than this is hidden only where it stands as a word: it would be found inside others."""


@dataclass(frozen=True)
class Credentials:
    """`key` goes out as a bearer token; without one, `user` and `password` as basic authentication."""

    key: str = field(default="", repr=False)
    user: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    others: tuple[str, ...] = field(default=(), repr=False)
    """Further secrets to hide, such as a proxy's password."""

    def headers(self) -> dict[str, str]:
        if self.key:
            return {"Authorization": f"Bearer {self.key}"}
        return {"Authorization": f"Basic {self._basic}"} if self.user or self.password else {}

    @property
    def _basic(self) -> str:
        return base64.b64encode(f"{self.user}:{self.password}".encode()).decode()

    def hide(self, text: str) -> str:
        """`text` without any of the secrets, in the spellings in which a server may repeat them."""
        secrets = [secret for secret in (self.key, self.password, *self.others) if secret]
        spellings = {self._basic} if self.password else set()
        for secret in secrets:
            spellings |= {secret, quote(secret, safe=""), quote(secret), json.dumps(secret)[1:-1], repr(secret.encode())[2:-1]}
            spellings.add(secret.encode().decode("latin-1"))
        for spelling in sorted(spellings, key=len, reverse=True):
            word = re.escape(spelling)
            text = re.sub(rf"(?<!\w){word}(?!\w)" if len(spelling) < SHORT_SECRET else word, HIDDEN, text)
        return text


def checked_key(key: str) -> str:
    """A key as it goes into a header. Raises `BenchError` where it cannot."""
    key = key.strip()
    if not key.isprintable():  # halves of surrogate pairs, which stand for bytes that are no UTF-8, are not printable either
        raise BenchError("the key holds a character that no header of HTTP can; look at --api-key or $OPENAI_API_KEY")
    return key


def split_address(address: str, endpoint: str) -> tuple[str, str, str]:
    """(address without credentials, user, password). Raises `BenchError` for what is not a server's address."""
    if "@" in address.partition("://")[2].partition("/")[2]:
        raise BenchError("the server's address has an @ behind its host; in a user or password write @ as %40 and / as %2F")
    shown = safe_target(address).partition("?")[0].partition("#")[0]
    try:
        parts = urlsplit(address)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise BenchError(f"'{shown}' is not a server address; write for example http://127.0.0.1:8000")
    if parts.query or parts.fragment:
        raise BenchError(f"the server's address has more behind '{shown}'; leave it out (a key is given with --api-key)")
    return _below_endpoint(safe_target(address), parts, endpoint), unquote(parts.username or ""), unquote(parts.password or "")


def _below_endpoint(base: str, parts: SplitResult, endpoint: str) -> str:
    """The address without the path of the endpoint itself, which is often given with it."""
    paths = {name: one.path for name, one in ENDPOINTS.items()}
    for name, path in sorted(paths.items(), key=lambda one: -len(one[1])):
        if parts.path.rstrip("/").endswith(f"/v1/{path}"):
            if name != endpoint:
                raise BenchError(f"'{base}' is the {name} endpoint; give --endpoint {name}, or the address without '{path}'")
            return base.rstrip("/").removesuffix(f"/{path}")
    return base


def proxy_for(address: str) -> str:
    """The proxy to ask this address through, with the credentials it is asked with; '' for none. Raises `BenchError` for one not spoken."""
    from urllib.request import getproxies, proxy_bypass

    parts = urlsplit(address)
    host = parts.hostname or ""
    proxy = getproxies().get(parts.scheme, "")
    if not proxy or _is_this_machine(host) or proxy_bypass(host):
        return ""
    proxy = proxy if "://" in proxy else f"http://{proxy}"
    if urlsplit(proxy).scheme not in ("http", "https"):
        raise BenchError(f"${parts.scheme}_proxy is of a kind that is not spoken here; name a proxy of HTTP, or name {host} in $no_proxy")
    return proxy


def _is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
