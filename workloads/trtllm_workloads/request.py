"""The workload: what is asked of a target, as columns, with one content hash.

Columns and not a list of objects, because a trace has a million rows and a cell key needs one hash over all of them. The driver turns
rows into `RequestSpec`s before a run starts, so that nothing is generated while requests are being timed.

A request either has an arrival time, or follows another one of its session (`after`): then it is due `think_s` after that one
finished. Its prompt already contains the earlier turns with synthetic answers, so that the workload does not depend on what a target says.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from trtllm_workloads.errors import WorkloadError
from trtllm_workloads.tokens import Int32Array, Int64Array, Prompts, SegmentPrompts, TextPrompts, TokenPrompts

Float64Array = npt.NDArray[np.float64]
NO_LORA = -1
_WARMUP = 0x77A3
"""Salt of prompts that are only for warm-up."""
NO_SLO = (float("nan"),) * 3


@dataclass(frozen=True, slots=True)
class RequestSpec:
    """One request. `prompt` is int32 token ids or None; `text` is set instead when only text is known."""

    id: int
    prompt: Int32Array | None
    text: str | None
    input_tokens: int
    output_tokens: int
    arrival_s: float
    """Seconds after the run's start; NaN for a request that follows another."""
    priority: int = 0
    lora_id: int = NO_LORA
    session: int = -1
    turn: int = 0
    after: int = -1
    """Request number this one follows, or -1."""
    think_s: float = 0.0
    slo_ms: tuple[float, float, float] = NO_SLO
    """TTFT, TPOT and end-to-end limits in milliseconds; NaN where there is none."""


def _column(n: int, value: float, dtype: type) -> npt.NDArray[np.generic]:
    return np.full(n, value, dtype=dtype)


@dataclass(frozen=True)
class Workload:
    """n requests in the order they are to be sent. Optional columns left None take their neutral value."""

    name: str
    prompts: Prompts
    input_tokens: Int32Array
    """[n]; 0 where the prompt is text and its length is the target's to say."""
    output_tokens: Int32Array
    arrival_s: Float64Array = field(default_factory=lambda: np.zeros(0))
    """[n] seconds from the start, NaN where `after` is set; empty when the workload says nothing of arrivals."""
    priority: Int32Array | None = None
    lora_id: Int32Array | None = None
    session: Int64Array | None = None
    turn: Int32Array | None = None
    after: Int64Array | None = None
    think_s: Float64Array | None = None
    slo_ms: Float64Array | None = None
    """[n, 3] TTFT, TPOT, end-to-end limits; NaN for none."""
    skipped: int = 0
    """Bad rows of the file it was read from that were left out."""

    def __post_init__(self) -> None:
        n = len(self.prompts)
        for name in ("input_tokens", "output_tokens", "arrival_s", *OPTIONAL):
            column = getattr(self, name)
            if column is not None and len(column) != n and not (name == "arrival_s" and len(column) == 0):
                raise WorkloadError(f"workload '{self.name}': column {name} has {len(column)} rows for {n} prompts")
        if n == 0:
            raise WorkloadError(f"workload '{self.name}' has no requests")
        if int(self.output_tokens.min()) < 1:
            raise WorkloadError(
                f"workload '{self.name}': request {int(self.output_tokens.argmin())} asks for no output token; ask for at least 1"
            )
        if self.after is not None and bool((self.after >= np.arange(n)).any()):
            bad = int(np.flatnonzero(self.after >= np.arange(n))[0])
            raise WorkloadError(
                f"workload '{self.name}': request {bad} follows request {int(self.after[bad])}, which does not come before it"
            )

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, index: int) -> RequestSpec:
        return next(self.rows(range(index, index + 1)))

    def requests(self) -> list[RequestSpec]:
        """Every request with its tokens in memory."""
        prompts = self.prompts.materialise() if isinstance(self.prompts, SegmentPrompts) else self.prompts
        return list(replace(self, prompts=prompts).rows(range(len(self))))

    def rows(self, rows: range) -> Iterator[RequestSpec]:
        """Requests by number, prompts drawn as they are read."""
        part = slice(rows.start, rows.stop)
        arrival = self.arrival_s[part].tolist() if len(self.arrival_s) else [0.0] * len(rows)
        columns = {name: self.column(name)[part].tolist() for name in OPTIONAL}
        inputs, outputs = self.input_tokens[part].tolist(), self.output_tokens[part].tolist()
        for k, row in enumerate(rows):
            yield RequestSpec(
                id=row,
                prompt=self.prompts.tokens(row),
                text=self.prompts.text(row),
                input_tokens=inputs[k],
                output_tokens=outputs[k],
                arrival_s=arrival[k],
                priority=columns["priority"][k],
                lora_id=columns["lora_id"][k],
                session=columns["session"][k],
                turn=columns["turn"][k],
                after=columns["after"][k],
                think_s=columns["think_s"][k],
                slo_ms=tuple(columns["slo_ms"][k]),
            )

    def column(self, name: str) -> npt.NDArray[np.generic]:
        """An optional column, filled with its neutral value when unset."""
        value = getattr(self, name)
        if value is not None:
            return np.asarray(value)
        neutral, dtype = OPTIONAL[name]
        if name == "slo_ms":
            return np.full((len(self), 3), np.nan)
        return _column(len(self), neutral, dtype)

    def reseeded(self, salt: int) -> Workload:
        """The same requests with other prompts, where those are drawn at random; what they share with each other stays shared. Prompts
        read from a file stay what they are."""
        if isinstance(self.prompts, SegmentPrompts):
            return replace(self, prompts=self.prompts.reseeded(salt))
        return self

    @property
    def shares_prefixes(self) -> bool:
        """Whether prompts begin alike on purpose: turns of a session, a tree of prefixes, a trace that says so."""
        return self.after is not None or (isinstance(self.prompts, SegmentPrompts) and self.prompts.shared)

    def for_warmup(self, n: int) -> Workload:
        """The first n requests, each on its own and due at once, with prompts as long as theirs that no request of the workload has: drawn
        anew, or, where they come from a file, written backwards."""
        rows = list(range(min(n, len(self))))
        alone = replace(self.take(rows), after=None, think_s=None, arrival_s=np.zeros(0))
        if isinstance(self.prompts, SegmentPrompts):
            drawn = [self.prompts.reseeded(_WARMUP).tokens(row) for row in rows]
            return replace(alone, prompts=TokenPrompts.of(drawn))
        texts, tokens = [self.prompts.text(row) for row in rows], [self.prompts.tokens(row) for row in rows]
        if all(one is not None for one in tokens):
            return replace(alone, prompts=TokenPrompts.of([one[::-1] for one in tokens if one is not None]))
        return replace(alone, prompts=TextPrompts(tuple(" ".join((text or "").split()[::-1]) for text in texts)))

    def head(self, n: int) -> Workload:
        """The first n requests (all, when there are fewer)."""
        return self.take(np.arange(min(n, len(self))))

    def take(self, rows: npt.ArrayLike) -> Workload:
        """The given requests, in that order. A request whose predecessor is dropped starts a session of its own at once."""
        index = np.asarray(rows, dtype=np.int64)
        place = np.full(len(self) + 1, -1, dtype=np.int64)
        place[index] = np.arange(len(index))
        changes: dict[str, object] = {"prompts": _Selected(self.prompts, index)}
        for name in ("input_tokens", "output_tokens", *OPTIONAL):
            column = getattr(self, name)
            if column is not None:
                changes[name] = column[index]
        if len(self.arrival_s):
            changes["arrival_s"] = self.arrival_s[index]
        if self.after is not None:
            changes["after"] = place[self.after[index]]
            if len(self.arrival_s):
                orphan = np.isnan(self.arrival_s[index]) & (place[self.after[index]] < 0)
                changes["arrival_s"] = np.where(orphan, 0.0, self.arrival_s[index])
        return replace(self, **changes)  # type: ignore[arg-type]

    def with_arrivals(self, times_s: Float64Array) -> Workload:
        """The same requests arriving at these times; requests that follow another keep doing so."""
        if self.after is None:
            return replace(self, arrival_s=np.asarray(times_s, dtype=np.float64))
        times = np.full(len(self), np.nan)
        first = self.after < 0
        times[first] = np.asarray(times_s, dtype=np.float64)[: int(first.sum())]
        return replace(self, arrival_s=times)

    @property
    def num_arrivals(self) -> int:
        """Requests that arrive by themselves (do not follow another)."""
        return len(self) if self.after is None else int((self.after < 0).sum())

    @property
    def longest_sequence(self) -> int:
        """Tokens of the longest sequence that is asked for, prompt and output."""
        return int((self.input_tokens.astype(int) + self.output_tokens).max())

    @property
    def mean_lengths(self) -> tuple[int, int]:
        """Mean prompt and output length, to the token."""
        return round(float(self.input_tokens.mean())), round(float(self.output_tokens.mean()))

    @cached_property
    def content_hash(self) -> str:
        """Hash of everything a target could notice: prompts, lengths, arrivals, sessions, adapters, priorities, limits; not the name."""
        digest = hashlib.sha256(b"trtllm workload 1")
        for chunk in self.prompts.chunks():
            digest.update(chunk)
        for name in ("input_tokens", "output_tokens", "arrival_s", *OPTIONAL):
            column = self.column(name) if name in OPTIONAL else getattr(self, name)
            kind = "<f8" if column.dtype.kind == "f" else "<i8"
            digest.update(name.encode() + len(column).to_bytes(8, "little"))
            digest.update(np.ascontiguousarray(column).astype(kind).tobytes())
        return digest.hexdigest()[:16]


OPTIONAL: dict[str, tuple[float, type]] = {
    "priority": (0, np.int32),
    "lora_id": (NO_LORA, np.int32),
    "session": (-1, np.int64),
    "turn": (0, np.int32),
    "after": (-1, np.int64),
    "think_s": (0.0, np.float64),
    "slo_ms": (float("nan"), np.float64),
}
"""Optional columns with their neutral value and type."""


@dataclass(frozen=True)
class _Selected:
    """Some prompts of others, by number."""

    base: Prompts
    rows: Int64Array

    def __len__(self) -> int:
        return len(self.rows)

    def tokens(self, index: int) -> Int32Array | None:
        return self.base.tokens(int(self.rows[index]))

    def text(self, index: int) -> str | None:
        return self.base.text(int(self.rows[index]))

    def chunks(self) -> Iterator[bytes]:
        if all(self.base.tokens(int(row)) is None for row in self.rows[:1]):
            yield b"text"
            for row in self.rows:
                raw = (self.base.text(int(row)) or "").encode()
                yield len(raw).to_bytes(8, "little") + raw
            return
        yield b"ids"
        lengths = [len(tokens) for row in self.rows if (tokens := self.base.tokens(int(row))) is not None]
        yield np.asarray(lengths, dtype="<i8").tobytes()
        for row in self.rows:
            tokens = self.base.tokens(int(row))
            if tokens is not None:
                yield tokens.astype("<i4").tobytes()
