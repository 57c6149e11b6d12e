"""What a server said of a request that failed, and what the HTTP library said for it, as part of one sentence.

Servers answer in many forms: JSON of several shapes, a page of HTML from the proxy before them, plain text of any length. What is told is
one short line of printable text, so that equal failures read equal and can be counted, and that a terminal and a record can hold it.
Credentials are taken out before the line is cut: a key that is cut in two would not be recognised.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Callable, Mapping
from html import unescape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import aiohttp

COMPLAINT = 110
"""Most characters of a refusal that are told."""
WORDS = ("error", "message", "detail", "errors", "msg")
"""Fields that hold what a server says, by rank."""
MOST_DETAILS = 3

SAID_S = 10.0
"""Patience with a body that is only told."""

Hide = Callable[[str], str]
"""Takes credentials out of a text."""


def complaint(body: str, hide: Hide = str) -> str:
    """What a server says in a body or an event, on one short line; empty where it says nothing."""
    line = one_line(hide(_words_of(body)))
    token_ids = " (prompts go out as token ids, which the server must take)" if "prompt" in line and "string" in line else ""
    return short(line) + token_ids


def _words_of(body: str) -> str:
    try:
        content = json.loads(body)
        return _words(content)
    except (ValueError, RecursionError):
        pass
    begin = body[:1000].lower()
    if "<html" in begin or "<!doctype html" in begin:
        named = re.search(r"<(title|h1)[^>]*>(.*?)</\1>", body, re.IGNORECASE | re.DOTALL)
        return unescape(re.sub(r"<[^>]*>", " ", named[2] if named else body))
    return body


def _words(content: Any) -> str:
    if isinstance(content, Mapping):
        for name in WORDS:
            if content.get(name):
                where = content.get("loc")  # of FastAPI: which field of the body is wrong
                said = _words(content[name])
                return f"{'.'.join(map(str, where))}: {said}" if isinstance(where, list) else said
    if isinstance(content, list) and content:
        return "; ".join(_words(one) for one in content[:MOST_DETAILS])
    if isinstance(content, str) and content.lstrip().startswith("{"):  # of a server behind the one that answers
        return _words_of(content)
    return str(content)


def one_line(text: str) -> str:
    """A text without line ends, control characters and halves of surrogate pairs."""
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in " ".join(text.split()))


def short(text: str) -> str:
    line = one_line(text)
    return line if len(line) <= COMPLAINT else line[: COMPLAINT - 1] + "…"


def reason(error: BaseException) -> str:
    """Why a request failed, by an exception of the HTTP library or of the system."""
    import aiohttp
    from aiohttp.http_exceptions import ContentEncodingError, HttpProcessingError

    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        why = getattr(error.certificate_error, "verify_message", "") or str(error.certificate_error)
        return f"the certificate of {error.host}:{error.port} is not trusted ({why}); name a file that holds it in $SSL_CERT_FILE"
    if isinstance(error, aiohttp.ClientConnectorError):
        number = error.os_error.errno or 0
        why = getattr(error.os_error, "reason", "") or (os.strerror(number) if number > 0 else error.os_error.strerror)
        return f"cannot connect to {error.host}:{error.port} ({why or error.os_error})"
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "the server closed the connection without an answer"
    if isinstance(error, aiohttp.TooManyRedirects):
        return f"it redirects without end ({error.request_info.real_url})"
    if isinstance(error, aiohttp.InvalidURL | aiohttp.NonHttpUrlClientError):
        return f"it redirects to '{short(str(error))}', which is not an address of a server"
    if isinstance(error, aiohttp.ClientPayloadError):
        if isinstance(error.__cause__, ContentEncodingError):
            return short(error.__cause__.message)
        return "the connection broke off before the answer's end"
    if isinstance(error, aiohttp.ClientResponseError | HttpProcessingError):
        said = short(error.message)
        return f"what answers speaks no HTTP that can be read ({said})" if "decode" not in said else said
    if isinstance(error, TimeoutError):
        return short(str(error)) or "nothing came in time"
    return str(error) or type(error).__name__


async def said_in(reply: aiohttp.ClientResponse, most: int) -> str:
    """The body of a refusal or a list, at most this many bytes of it; what came of one that broke off."""
    import aiohttp

    parts, size = [], 0
    try:
        async with asyncio.timeout(SAID_S):
            while size < most and (chunk := await reply.content.readany()):
                parts.append(chunk)
                size += len(chunk)
    except (TimeoutError, aiohttp.ClientError):
        pass
    if not reply.content.at_eof():
        reply.close()
    try:
        return b"".join(parts)[:most].decode(reply.charset or "utf-8", errors="replace")
    except LookupError:
        return b"".join(parts)[:most].decode(errors="replace")


def listed_models(said: str) -> list[str] | None:
    """The models that a server lists in one of the forms there are; None where it is not such a list."""
    try:
        content = json.loads(said)
    except (ValueError, RecursionError):
        return None
    if isinstance(content, dict):
        content = content.get("data", content.get("models"))
    if not isinstance(content, list):
        return None
    names = []
    for entry in content:
        name = next((entry[key] for key in ("id", "model", "name") if entry.get(key)), None) if isinstance(entry, dict) else entry
        if not isinstance(name, str) or not name.isprintable():
            return None
        names.append(name)
    return names
