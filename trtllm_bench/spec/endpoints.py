"""Endpoints of an OpenAI-compatible server (`--endpoint`): where each is, and in which form it takes a prompt."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Endpoint:
    path: str
    """Below the server's `/v1`."""
    fields: Callable[[Any], dict[str, Any]]
    """Fields of a request's body that hold the prompt: a text, or a list of token ids where it takes such."""
    takes_token_ids: bool = True


ENDPOINTS: Mapping[str, Endpoint] = {
    "completions": Endpoint("completions", lambda prompt: {"prompt": prompt}),
    "chat": Endpoint("chat/completions", lambda text: {"messages": [{"role": "user", "content": text}]}, takes_token_ids=False),
}
"""The first is the default."""
