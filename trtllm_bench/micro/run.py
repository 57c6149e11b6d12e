"""The benchmark of a model's kernels: cases from M, each op measured cold, warm and, a product, chained, checked, and set
beside its peer and its ceiling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trtllm_bench.errors import BenchError
from trtllm_bench.micro.bench import Bench
from trtllm_bench.micro.bound_op import BoundOp
from trtllm_bench.micro.cases import KernelCase, chunk_case, decode_case, prefill_case
from trtllm_bench.micro.peers import peer_of
from trtllm_bench.micro.results import Measured, is_right
from trtllm_bench.micro.timing import StoppingRule, Timer, measure
from trtllm_bench.roofline.counts import OpCost
from trtllm_bench.roofline.hardware import Hardware

PREFILL_FROM = 16
"""Tokens from which a prompt of M tokens is measured beside M decoding sequences."""
ANEW_IN_PREFILL = ("attention",)
"""Kinds of op that differ between decoding sequences and a prompt at one M; products and rows do not."""


@dataclass(frozen=True)
class KernelSelection:
    model: str
    precision: str
    m: tuple[int, ...]
    kv_len: int
    name: str = ""
    """Only ops whose name or role contains this."""
    past: int = 0
    """Tokens of a prompt that are in the cache before those of the step; 0: none, the prompt is whole."""


def cases_of(selection: KernelSelection) -> list[KernelCase]:
    def prompt(m: int) -> list[KernelCase]:
        return [] if m < PREFILL_FROM else [chunk_case(m, selection.past)] if selection.past else [prefill_case(m)]

    return [case for m in selection.m for case in (decode_case(m, selection.kv_len), *prompt(m))]


def run(
    selection: KernelSelection,
    bench: Bench,
    timer: Timer,
    rule: StoppingRule,
    hardware: Hardware | None,
    tell: Callable[[Measured], None] = lambda one: None,
    peers: bool = True,
) -> list[Measured]:
    """Raises `BenchError` when no op has the name asked for."""
    measured: list[Measured] = []
    for case in cases_of(selection):
        for bound in bench.ops(case):
            if not _chosen(bound, case, selection.name):
                continue
            one = _measured(bound, case, bench, timer, rule, hardware, peers)
            measured.append(one)
            tell(one)
    if not measured:
        names = sorted({op.op for op in bench.plan.ops})
        raise BenchError(f"no op of {selection.model} is named '{selection.name}'; it has {', '.join(names)}")
    return measured


def _chosen(bound: BoundOp, case: KernelCase, name: str) -> bool:
    if bound.idle:
        return False
    if case.label != "decode" and bound.cost.kind not in ANEW_IN_PREFILL:
        return False
    return name in bound.op.op or name in bound.cost.role


def _measured(
    bound: BoundOp,
    case: KernelCase,
    bench: Bench,
    timer: Timer,
    rule: StoppingRule,
    hardware: Hardware | None,
    peers: bool,
) -> Measured:
    error = bound.error()
    taken_over = bound.memory[bound.op.reuses].clone() if bound.op.reuses else None
    cold, warm = measure(timer, bound.run, "cold", rule), measure(timer, bound.run, "warm", rule)
    chain = bench.chain(bound)
    chained = None if chain is None else measure(timer, chain.run, "chained", rule).per(chain.calls)
    if taken_over is not None:  # run thousands of times in place, it is not what the next op is given in an engine
        bound.memory[bound.op.reuses].copy_(taken_over)
    config = bench.plan.config
    peer = peer_of(bound, case.shape, config.num_heads, config.num_kv_heads, config.head_dim) if peers else None
    return Measured(
        op=bound.op.op,
        role=bound.cost.role,
        case=case.label,
        m=case.shape.tokens,
        kv_len=int(case.shape.kv_lens.max()),
        bytes=bound.cost.bytes,
        flop=bound.cost.flop,
        cold=cold,
        warm=warm,
        chained=chained,
        error=error,
        right=is_right(error, bound.coarsest),
        peer="" if peer is None else peer.name,
        peer_us=None if peer is None else measure(timer, peer.call, "cold", rule).mean_us,
        roof_us=roof_us(bound.cost, hardware),
    )


def roof_us(cost: OpCost, hardware: Hardware | None) -> float | None:
    """Microseconds at the ceilings."""
    return None if hardware is None else max(hardware.ceiling_us(cost))


def parse_m(text: str) -> tuple[int, ...]:
    """`1,64,1024`. Raises `BenchError`."""
    parts: Sequence[str] = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise BenchError(f"--m is '{text}'; give numbers of tokens above 0, such as 1,64,1024")
    return tuple(dict.fromkeys(int(part) for part in parts))
