"""What requests share: prefixes, conversations, adapters, priorities and limits, put on lengths that are already drawn.

Each function adds one column (or the prompts) and nothing else, so that any combination works and each is tested alone.
Prompts share a prefix by naming the same token stream (`tokens.py`); so sharing is exact, down to the token.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from trtllm_workloads.errors import WorkloadError, shown
from trtllm_workloads.lengths import Lengths
from trtllm_workloads.request import Workload
from trtllm_workloads.tokens import Int32Array, Int64Array, SegmentPrompts, UInt64Array, Vocabulary, stream_keys

Float64Array = npt.NDArray[np.float64]
Pick = Literal["uniform", "round-robin", "zipf"]
MOST_THINGS = 10_000_000


def pick(n: int, count: int, how: Pick, rng: np.random.Generator, alpha: float = 1.0) -> Int64Array:
    """One of `count` things for each of n requests; Zipf gives thing k weight (k + 1) ** -alpha."""
    if not 1 <= count <= MOST_THINGS:
        raise WorkloadError(f"cannot choose among {shown(count)} things; give at least 1 and at most {MOST_THINGS:,}")
    if how == "round-robin":
        return np.asarray(np.arange(n, dtype=np.int64) % count)
    if how == "uniform":
        return np.asarray(rng.random(n) * count, dtype=np.float64).astype(np.int64)
    if how == "zipf":
        cumulative = np.cumsum(np.arange(1, count + 1, dtype=np.float64) ** -alpha)
        picked = np.searchsorted(cumulative, rng.random(n) * cumulative[-1], side="right")
        return np.asarray(np.minimum(picked, count - 1), dtype=np.int64)
    raise WorkloadError(f"'{how}' is not a way to choose; there are {', '.join(get_args(Pick))}")


def segments(parts: list[tuple[UInt64Array, Int32Array]], vocabulary: Vocabulary) -> SegmentPrompts:
    """Prompts whose k-th segment, for every request, is the first `length` tokens of `stream`; empty segments cost nothing."""
    streams = np.stack([stream for stream, _ in parts], axis=1)
    lengths = np.stack([length for _, length in parts], axis=1).astype(np.int64)
    kept = lengths > 0
    offsets = np.concatenate([[0], np.cumsum(kept.sum(axis=1))]).astype(np.int64)
    return SegmentPrompts(offsets, streams[kept], np.zeros(int(kept.sum()), np.int64), lengths[kept], vocabulary)


def unshared(lengths: Int32Array, vocabulary: Vocabulary, seed: int) -> SegmentPrompts:
    """Prompts that have nothing in common."""
    return segments([(stream_keys(seed, "request", np.arange(len(lengths))), lengths)], vocabulary)


@dataclass(frozen=True)
class PrefixTree:
    """Shared prefixes: `levels[k] = (fan-out, tokens)`. One level is a pool of prefixes; more make a tree.

    A request takes one branch a level, so its prefix is one path from the root (a system prompt, then a tool list, then a document).
    The prefix counts into the prompt's length: a prompt keeps at least `1` token of its own, and a prefix longer than that is cut.
    """

    levels: tuple[tuple[int, int], ...]
    how: Pick = "uniform"
    alpha: float = 1.0

    def __post_init__(self) -> None:
        for fan_out, tokens in self.levels:
            if fan_out < 1 or tokens < 1:
                raise WorkloadError(f"shared prefixes: a level of {fan_out} branches of {tokens} tokens; both must be at least 1")
        if math.prod(fan_out for fan_out, _ in self.levels) >= 2**62:
            raise WorkloadError("shared prefixes: the branches of all levels multiply to 2**62 or more; give fewer")

    def prompts(self, lengths: Int32Array, vocabulary: Vocabulary, seed: int, rng: np.random.Generator) -> SegmentPrompts:
        n = len(lengths)
        node = np.zeros(n, dtype=np.int64)
        left = lengths.astype(np.int64) - 1
        parts: list[tuple[UInt64Array, Int32Array]] = []
        for depth, (fan_out, tokens) in enumerate(self.levels):
            node = node * fan_out + pick(n, fan_out, self.how, rng, self.alpha)
            taken = np.minimum(left, tokens)
            left = left - taken
            parts.append((stream_keys(seed, f"prefix{depth}", node), taken.astype(np.int32)))
        parts.append((stream_keys(seed, "request", np.arange(n)), (left + 1).astype(np.int32)))
        return segments(parts, vocabulary)


@dataclass(frozen=True)
class Conversations:
    """Multi-turn sessions: turn k's prompt is all earlier prompts and answers of the session, then `input` new tokens.

    Answers inside later prompts are synthetic, of the length that was asked for, so the workload is fixed before anything runs.
    """

    turns: Lengths
    think_mean_s: float = 0.0
    system_tokens: int = 0
    """A system prompt shared by all sessions."""
    max_tokens: int = 0
    """Sessions end before a turn whose prompt and answer would pass this many tokens; 0 for no limit."""

    def __post_init__(self) -> None:
        if self.think_mean_s < 0 or self.system_tokens < 0 or self.max_tokens < 0:
            raise WorkloadError("conversations: think time, system prompt and token limit cannot be negative")

    def build(
        self, name: str, inputs: Int32Array, outputs: Int32Array, vocabulary: Vocabulary, seed: int, rng: np.random.Generator
    ) -> Workload:
        """n requests as whole sessions (the last one cut where n ends), in order of session then turn; think times are exponential."""
        n = len(inputs)
        turns_of = np.maximum(self.turns.at(rng.random(n)), 1)
        think = -self.think_mean_s * np.log1p(-rng.random(n))
        session, turn = np.empty(n, np.int64), np.empty(n, np.int32)
        prompt_tokens = np.empty(n, np.int64)
        current, position, held = -1, 0, 0
        for row in range(n):
            asked = int(inputs[row]) + int(outputs[row])
            full = self.max_tokens and held + asked > self.max_tokens
            if current < 0 or position >= turns_of[current] or full:
                current, position, held = current + 1, 0, self.system_tokens
            session[row], turn[row] = current, position
            prompt_tokens[row] = held + int(inputs[row])
            position, held = position + 1, held + asked
        after = np.where(turn > 0, np.arange(n) - 1, -1).astype(np.int64)
        # One stream a session: turn k's prompt is simply the stream's first tokens, because answers lie in it at their place.
        whole = prompt_tokens - self.system_tokens
        prompts = segments(
            [
                (stream_keys(seed, "system", np.zeros(n, np.int64)), np.full(n, self.system_tokens, np.int32)),
                (stream_keys(seed, "session", session), whole.astype(np.int32)),
            ],
            vocabulary,
        )
        return Workload(
            name=name,
            prompts=prompts,
            input_tokens=prompt_tokens.astype(np.int32),
            output_tokens=outputs,
            session=session,
            turn=turn,
            after=after,
            think_s=np.where(turn > 0, think, 0.0),
        )


def with_adapters(workload: Workload, count: int, how: Pick, rng: np.random.Generator, alpha: float = 1.0, share: float = 1.0) -> Workload:
    """LoRA adapter ids 0..count-1; `share` of the requests have one. Turns of a session keep their session's adapter."""
    if not 0 <= share <= 1:
        raise WorkloadError(f"LoRA mix: the share of requests with an adapter is {share:g}; it must lie in [0, 1]")
    n = len(workload)
    ids = np.where(rng.random(n) < share, pick(n, count, how, rng, alpha), -1).astype(np.int32)
    if workload.session is not None:
        _, first = np.unique(workload.session, return_index=True)
        ids = ids[first][np.searchsorted(workload.session[first], workload.session)]
    return replace(workload, lora_id=ids)


def with_priorities(workload: Workload, weights: tuple[float, ...], rng: np.random.Generator) -> Workload:
    """Priority k (0 is the most urgent) with probability proportional to weights[k]."""
    if not weights or not all(weight >= 0 for weight in weights) or not 0 < sum(weights) < np.inf:
        raise WorkloadError("priorities: weights must not be negative, and one must be above 0")
    edges = np.cumsum(weights) / sum(weights)
    return replace(
        workload, priority=np.minimum(np.searchsorted(edges, rng.random(len(workload)), side="right"), len(weights) - 1).astype(np.int32)
    )


def with_slo(workload: Workload, ttft_ms: float | None, tpot_ms: float | None, e2e_ms: float | None) -> Workload:
    """The same limits for every request; None for no limit."""
    limits = [float("nan") if limit is None else limit for limit in (ttft_ms, tpot_ms, e2e_ms)]
    if any(limit <= 0 for limit in limits):
        raise WorkloadError("SLO: limits are in milliseconds and must be above 0")
    return replace(workload, slo_ms=np.tile(np.asarray(limits, dtype=np.float64), (len(workload), 1)))
