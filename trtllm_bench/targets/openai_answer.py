"""One streamed answer of an OpenAI-compatible server: which events are tokens, how many, and whether the answer ended as answers do.

An event with a choice is a token's arrival even when its text is empty: special tokens and parts of a character decode to nothing. Two
kinds of event may be none: the last one, where it only brings `finish_reason`, and in a chat the first, which only names the role. The
server's `usage` decides where it can: as many tokens as events, or one fewer.

Counts come from `usage`, from the running `usage` of each event where the server sends it (vLLM's `continuous_usage_stats`), or from a
tokenizer. Without any of them the pieces are counted, and the outcome says so unless there are as many as tokens were asked for.
Where several tokens come in a piece and only their total is known, they are laid over the pieces evenly; the first piece's and the last
piece's times are exact either way.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from trtllm_bench.load.sse import Event, EventStream
from trtllm_bench.load.target import RequestOutcome
from trtllm_bench.targets.http_words import Hide, complaint
from trtllm_workloads.request import RequestSpec

IntArray = npt.NDArray[np.int64]
DONE = "[DONE]"
NO_ANSWER = ("abort", "error", "cancelled", "canceled", "timeout")
"""Values of `finish_reason` with which a server gives an answer up."""
CONTENT = ("content", "reasoning_content", "reasoning", "tool_calls", "function_call", "refusal")
NO_REASON = ("", "null")
"""Values of `finish_reason` with which some servers say that the answer goes on."""
MOST_TOKENS = 1 << 20
"""No answer has more; a count beyond it is damage, and a list as long would take the memory."""
MOST_PROMPT = 1 << 31


class AnswerError(Exception):
    """The request failed: what happened, and the server's own words (a body, or an event's data) where there may be any."""

    def __init__(self, what: str, words: str | None = None) -> None:
        super().__init__(what)
        self.words = words

    def told(self, hide: Hide) -> str:
        return str(self) if self.words is None else f"{self}: {complaint(self.words, hide) or 'nothing'}"


@dataclass
class _Piece:
    time_s: float
    text: str = ""
    tokens: int = -1
    """Tokens so far by the event's own `usage`; -1 where it has none."""
    doubtful: bool = False
    """Its text is empty and it brings `finish_reason`: perhaps no token."""


@dataclass
class Answer:
    """Takes the events of one stream. `closed` is true once the answer has ended for certain."""

    closed: bool = False
    finish_reason: str = ""
    usage: Mapping[str, Any] = field(default_factory=dict)
    pieces: list[_Piece] = field(default_factory=list)

    @property
    def heard_s(self) -> float:
        return self.pieces[-1].time_s if self.pieces else float("nan")

    def take(self, event: Event, now: float) -> None:
        """Raises `AnswerError` for an event that ends the request badly, or that this interface does not have."""
        data = event.data.strip()
        if len(data) < 10 and data.strip('"').upper() == DONE:
            self.closed = True
            return
        content = _object(data)
        if event.name == "error":
            raise AnswerError("the server said", data)
        if content is None:
            if data in ("", "null") or event.name != "message":  # such as a ping
                return
            raise AnswerError("the stream contains invalid JSON", data)
        choices = content.get("choices")
        if content.get("error") or content.get("object") == "error" or (choices is None and _is_complaint(content)):
            raise AnswerError("the server said", data)
        usage = content.get("usage")
        if isinstance(usage, dict):
            self.usage = usage
        if isinstance(choices, list) and choices and isinstance(choices[0], dict):
            self._choice(choices[0], now)

    def _choice(self, choice: Mapping[str, Any], now: float) -> None:
        if choice.get("error"):
            raise AnswerError("the server said", json.dumps(choice["error"]))
        reason = choice.get("finish_reason") or ""
        reason = str(reason.get("type") or "") if isinstance(reason, dict) else str(reason)  # an object is SGLang's own
        reason = "" if reason in NO_REASON else reason
        self.finish_reason = reason or self.finish_reason
        delta = choice.get("delta")
        if isinstance(delta, dict):
            said = "".join(value if isinstance(value, str) else "\0" for name in CONTENT if (value := delta.get(name)))
            if not said and not reason and delta.get("role") and not self.pieces:
                return
        else:
            said = str(choice.get("text") or "")
        counted = _count(self.usage.get("completion_tokens")) if self.usage else -1
        self.pieces.append(_Piece(now, said, counted, doubtful=bool(reason) and not said))

    def end(self, events: EventStream, now: float) -> None:
        """The stream is over. An event that lacks only the blank line behind it is taken, one that was cut is not.

        Raises `AnswerError` where the answer has not ended as answers do."""
        last = events.end()
        if last is not None and not self.closed and (last.data.strip() == DONE or _object(last.data) is not None or last.name == "error"):
            self.take(last, now)
        if self.finish_reason in NO_ANSWER:
            raise AnswerError(f"the server gave the answer up (finish_reason '{self.finish_reason}') after {self._so_far()}")
        if not self.closed and not self.finish_reason:
            if events.strays.strip():
                raise AnswerError("the server said" if self.pieces else "the server did not stream; it said", events.strays)
            raise AnswerError(f"the stream ended after {self._so_far()}, without a finish_reason or [DONE]")

    def _so_far(self) -> str:
        return f"{len(self.pieces)} event{'s' if len(self.pieces) != 1 else ''} with tokens"

    def outcome(self, request: RequestSpec, closed_s: float, count: Callable[[str], int] | None) -> RequestOutcome:
        """The request's outcome. Raises `AnswerError` where no token came."""
        tokens = max(0, _count(self.usage.get("completion_tokens")))
        if tokens > MOST_TOKENS:
            raise AnswerError(f"the server counts {tokens:,} output tokens in its usage, which no answer has")
        pieces = self._arrivals(tokens)
        if not pieces:
            raise AnswerError("the stream ended without a token")
        known = tokens > 0
        if not known and count is not None:
            tokens, known = max(1, count("".join(piece.text for piece in pieces).replace("\0", ""))), True
        if not known:
            tokens, known = len(pieces), len(pieces) == request.output_tokens
        times = np.asarray([piece.time_s for piece in pieces])
        details = self.usage.get("prompt_tokens_details")
        cached = _count(details.get("cached_tokens")) if isinstance(details, dict) else -1
        prompt = _count(self.usage.get("prompt_tokens"))
        return RequestOutcome(
            request.id,
            end_s=float(times[-1]),
            output_tokens=tokens,
            token_times_s=times[_places(pieces, tokens)],
            input_tokens=prompt if 0 < prompt < MOST_PROMPT else -1,  # no prompt has 0
            closed_s=closed_s,
            cached_tokens=cached if cached < MOST_PROMPT else -1,
            chunks=len(pieces),
            counted=known,
        )

    def _arrivals(self, tokens: int) -> list[_Piece]:
        """The pieces that are tokens' arrivals; `tokens` is the server's count, 0 where it gave none."""
        pieces = self.pieces
        if pieces and pieces[-1].doubtful and not self._last_counts(tokens):
            pieces = pieces[:-1]
        if len(pieces) > 1 and tokens == len(pieces) - 1 and not pieces[0].text and pieces[1].text:
            return pieces[1:]  # the beginning of the answer, announced with an empty text
        if tokens < len(pieces):
            said = [piece for piece in pieces if piece.text]
            return said if len(said) == tokens else pieces  # the others were signs of life
        return pieces

    def _last_counts(self, tokens: int) -> bool:
        """Whether a last event without text was a token: it was when there are exactly as many tokens as events, and when tokens come
        several to a piece and it came at their pace."""
        n = len(self.pieces)
        if tokens <= n:
            return tokens == n
        gaps = np.diff([piece.time_s for piece in self.pieces])
        return n < 3 or bool(gaps[-1] > np.median(gaps[:-1]) / 2)


def _object(data: str) -> Mapping[str, Any] | None:
    """The JSON object of an event; None where the event holds no such object."""
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _is_complaint(content: Mapping[str, Any]) -> bool:
    """Whether an event is an error that is not called one: words, and nothing of an answer."""
    return "choices" not in content and "usage" not in content and any(isinstance(content.get(name), str) for name in ("message", "detail"))


def _count(value: Any) -> int:
    """A count of tokens, which some servers write as text or with a decimal point; -1 where there is none."""
    if isinstance(value, str) and value.isdecimal() and len(value) < 20:
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 2**63 or value != int(value):
        return -1
    return int(value)


def _places(pieces: list[_Piece], tokens: int) -> IntArray:
    """Piece of each token, by the running count of the events where they have one."""
    running = np.asarray([piece.tokens for piece in pieces])
    steps = np.diff(running, prepend=0)
    if (running > 0).all() and (steps >= 0).all() and running[-1] == tokens and steps[0] > 0:
        return np.repeat(np.arange(len(pieces)), steps)
    return laid_over(tokens, len(pieces))


def laid_over(tokens: int, pieces: int) -> IntArray:
    """Piece of each token: evenly in order, the first token in the first piece and the last in the last."""
    if tokens >= pieces:
        return (np.arange(tokens) * pieces // tokens).astype(np.int64)
    if tokens == 1:
        return np.zeros(1, dtype=np.int64)
    return (np.arange(tokens) * (pieces - 1) // (tokens - 1)).astype(np.int64)
