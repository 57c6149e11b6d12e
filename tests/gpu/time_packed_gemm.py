# ruff: noqa: E402
"""`python3 tests/gpu/time_packed_gemm.py [--sweep] [--schemes int4,w4a8] [--tokens 1,8]`: products with packed weights, chained.

Calls of one product follow each other in a CUDA graph, overlapping as in an engine, each with a weight of its own, so that none is in L2.
Beside them bf16 and fp8 as engines run them, and cuBLASLt's; -large is the kernel of many tokens from 33 on, -widened the library with a
weight made wide. With --sweep, the fastest of a product's tiles at each number of tokens.
Each case is printed as it is measured, and the table last: microseconds, and the share of 4.31 TB/s that weight and scales are read at.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "kernels"), str(ROOT / "tests" / "kernels")]

import torch
from packed_samples import CODES_STD, Packed, copied, lowered_for, result_like

from trtllm_kernels.compile.pool import compile_many
from trtllm_kernels.dialect.expr import evaluate
from trtllm_kernels.dialect.ops import OP_SPECS
from trtllm_kernels.dialect.specs import DTYPES, as_stored, spec_of
from trtllm_kernels.dialect.types import SYMBOLS, Lowered
from trtllm_kernels.launch.driver import BoundProgram
from trtllm_kernels.lowering import search_space
from trtllm_kernels.lowering.packed_gemm import PACKED_TO
from trtllm_kernels.lowering.packed_large import LARGE_SIZES, LARGE_TO
from trtllm_kernels.lowering.packed_tiles import PADDED

SHAPES = {
    "qkv": ("linear", 6144, 4096),
    "o": ("linear", 4096, 4096),
    "gate_up": ("gate_up_silu", 28672, 4096),
    "down": ("linear", 4096, 14336),
}
TOKENS = (1, 8, 16, 64, 128, 512, 2048)
FEW = 32
"""Tokens from which `packed_gemm_large.cu` is an alternative to `packed_gemm.cu`."""
PEAK = 4.31e12
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
L2_BYTES = 256 << 20
CALLS = 48
SCHEMES: Mapping[str, Packed | str] = {
    "int4": Packed("int4", scale="bf16"),
    "int4-32": Packed("int4", group=32, scale="bf16"),
    "int4z": Packed("int4", scale="bf16", zero=True),
    "int4-large": Packed("int4", scale="bf16"),
    "int4-widened": Packed("int4", scale="bf16"),
    "w4a8": Packed("int4", "fp8", scale="bf16"),
    "w4a8-large": Packed("int4", "fp8", scale="bf16"),
    "int8": Packed("int8", group=0, weight_scale=2),
    "nvfp4": Packed("fp4", "bf16", 16, "fp8", weight_scale=1),
    "mxfp4": Packed("fp4", "bf16", 32, "uint8"),
    "nf4": Packed("nf4", "bf16", 64, "fp32"),
    "fp8": "fp8",
    "bf16": "bf16",
    "bf16-lt": "bf16",
    "fp8-lt": "fp8",
}


def drawn(op: str, scheme: Packed | str, rows: int, columns: int, tokens: int) -> dict[str, torch.Tensor]:
    """Arguments on the GPU. Any bytes are codes."""
    inputs = scheme if isinstance(scheme, str) else scheme.inputs
    x = torch.randn(tokens, columns, device=DEVICE)
    named = {"x": x.to(DTYPES[inputs])}
    unit = columns**-0.5
    if isinstance(scheme, str):
        named["weight"] = (torch.randn(rows, columns, device=DEVICE) * (1.0 if scheme == "fp8" else unit)).to(DTYPES[scheme])
        if scheme == "fp8":
            named["weight_scale"] = torch.tensor([unit], device=DEVICE)
    else:
        unit /= CODES_STD[scheme.dtype]
        bits = 8 if scheme.dtype == "int8" else 4
        storage = torch.randint(0, 256, (rows, columns * bits // 8), dtype=torch.uint8, device=DEVICE)
        named["weight"] = storage.view(torch.int8) if bits == 8 else as_stored(storage, scheme.dtype)
        if scheme.group:
            shape = (columns // scheme.group, rows)
            if scheme.scale == "uint8":
                named["group_scale"] = torch.randint(118, 121, shape, dtype=torch.uint8, device=DEVICE)
            else:
                scales = torch.rand(shape, device=DEVICE) * 0.6 + 0.7
                named["group_scale"] = (scales * (16 if scheme.scale == "fp8" else unit)).to(DTYPES[scheme.scale])
            if scheme.zero:
                named["weight_zero"] = torch.randint(0, 16, shape, device=DEVICE).bfloat16()
        if scheme.weight_scale:
            scale = unit / 16 if scheme.scale == "fp8" and scheme.group else unit
            named["weight_scale"] = torch.full((1,) if scheme.weight_scale == 1 else (rows, 1), scale, device=DEVICE)
    if inputs == "fp8":
        named["x_scale"] = torch.ones(1, device=DEVICE)
    if op == "linear" and rows == 4096:
        named["residual"] = torch.randn(tokens, rows, device=DEVICE).bfloat16()
    if op == "gate_up_silu" and inputs == "fp8":
        named["out_scale"] = torch.tensor([0.05], device=DEVICE)
    return {name: named[name] for name in OP_SPECS[op].tensors if name in named}


@dataclass
class Case:
    shape: str
    scheme: str
    tokens: int
    named: dict[str, torch.Tensor]
    y: torch.Tensor
    lowered: Lowered
    note: str = ""
    us: float = float("nan")

    @property
    def read(self) -> int:
        return sum(self.named[name].nbytes for name in ("weight", "group_scale", "weight_zero") if name in self.named)


def tactics(scheme: str, op: str, named: dict[str, torch.Tensor], y: torch.Tensor, tokens: int, sweep: str) -> list[dict[str, int]]:
    if scheme.endswith("-lt"):
        return [{"skinny_to": 0, "gemv": 0}]
    large = {PACKED_TO: FEW} if FEW < tokens <= PADDED[-1] else {}
    if scheme.endswith("-large"):
        return [large] if tokens > FEW else []
    if scheme.endswith("-widened"):
        return [{LARGE_TO: 0}] if tokens > PADDED[-1] else []
    if not sweep or isinstance(SCHEMES[scheme], str):
        return [{}]
    specs = [spec_of(named[name]) if name in named else None for name in OP_SPECS[op].tensors]
    padded = next((size for size in PADDED if tokens <= size), 0)
    size = next((size for size in LARGE_SIZES if tokens <= size), LARGE_SIZES[-1])
    choices = {one.name: one.candidates for one in search_space(op, specs, [spec_of(y)], {}, "sm_90")}
    few = [dict(candidate) for candidate in choices.get(f"packed {padded}", ())]
    many = [{**large, **candidate} for candidate in choices.get(f"large {size}", ()) if tokens > FEW]
    return [{}, *(few if "few" in sweep else []), *(many if "many" in sweep else [])]


def cases(shapes: list[str], schemes: list[str], tokens: list[int], sweep: str) -> list[Case]:
    found = []
    for shape, scheme in product(shapes, schemes):
        op, rows, columns = SHAPES[shape]
        whole = drawn(op, SCHEMES[scheme], rows, columns, max(*tokens, 128))
        for count in tokens:
            named = {name: value[:count] if name in ("x", "residual") else value for name, value in whole.items()}
            y = result_like(op, named)
            for tactic in tactics(scheme, op, named, y, count, sweep):
                note = " ".join(f"{name.partition('_')[2] or name}{value}" for name, value in tactic.items()) if sweep else ""
                named_whole = {**named, "x": whole["x"]} | ({"residual": whole["residual"]} if "residual" in whole else {})
                found.append(
                    Case(shape, scheme, count, named_whole, result_like(op, named_whole), lowered_for(op, named_whole, y, tactic), note)
                )
    return found


def measure(case: Case, cubins: Mapping[str, Any], copies: list[dict[str, torch.Tensor]]) -> float:
    """Microseconds a call."""
    symbols = {**dict.fromkeys(SYMBOLS, 0), "T": case.tokens}
    tensors = {**case.named, "out0": case.y}
    for name, spec in case.lowered.workspaces.items():
        tensors[name] = torch.empty([max(1, evaluate(dim, symbols)) for dim in spec.shape], dtype=DTYPES[spec.dtype], device=DEVICE)
    own = {}
    each = []
    for i, copy in enumerate(copies):
        own |= {f"{name} {i}": value for name, value in copy.items()}
        launches = tuple(
            replace(one, args=tuple(replace(arg, value=f"{arg.value} {i}") if arg.value in copy else arg for arg in one.args))
            for one in case.lowered.launches
        )
        each.append(replace(case.lowered, launches=launches))
    rounds = max(1, CALLS // len(copies))
    program = BoundProgram(each * rounds, {**tensors, **own}.__getitem__, cubins)
    program.set_symbols(**symbols)
    program.run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        program.run()
    graph.replay()
    times = []
    for _ in range(5):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(1e3 * begin.elapsed_time(end) / (2 * rounds * len(copies)))
    return sorted(times)[2]


def copies_of(case: Case) -> list[dict[str, torch.Tensor]]:
    names = [name for name in ("weight", "group_scale", "weight_zero") if name in case.named]
    count = max(2, min(CALLS, -(-L2_BYTES // case.read)))

    return [{name: copied(case.named[name], DEVICE) for name in names} for _ in range(count)]


def share(case: Case) -> float:
    """Per cent of the memory's rate."""
    return 100 * case.read / (case.us * 1e-6) / PEAK


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sweep", nargs="?", const="few,many", default="", help="few, many or both: kernels whose tiles are tried")
    parser.add_argument("--schemes", default=",".join(SCHEMES))
    parser.add_argument("--shapes", default=",".join(SHAPES))
    parser.add_argument("--tokens", default=",".join(map(str, TOKENS)))
    parser.add_argument("--lower-only", action="store_true", help="stop before anything is compiled")
    options = parser.parse_args()
    schemes, shapes = options.schemes.split(","), options.shapes.split(",")
    tokens = [int(one) for one in options.tokens.split(",")]
    began = time.time()
    print(torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU", flush=True)
    found = cases(shapes, schemes, tokens, options.sweep)
    if options.lower_only:
        print(f"{len(found)} cases, {len({spec.key for case in found for spec in case.lowered.kernels if runs(case, spec.key)})} kernels")
        return
    cubins = compile_many([spec for case in found for spec in case.lowered.kernels if runs(case, spec.key)], "sm_90")
    print(f"{len(cubins)} kernels compiled in {time.time() - began:.0f} s", flush=True)
    kept: dict[tuple[str, str], list[dict[str, torch.Tensor]]] = {}
    for case in found:
        reasons = [cubins[one.kernel] for one in case.lowered.launches if one.kernel in cubins and isinstance(cubins[one.kernel], str)]
        if reasons:
            print(case.shape, case.scheme, case.tokens, case.note, reasons[0])
            continue
        here = (case.shape, case.scheme)
        if here not in kept:
            kept = {here: copies_of(case)}
        only = {key: one for key, one in cubins.items() if not isinstance(one, str)}
        small = Lowered(
            tuple(one for one in case.lowered.launches if not one.kernel or runs(case, one.kernel)), (), case.lowered.workspaces
        )
        case.lowered = small
        try:
            case.us = measure(case, only, kept[here])
        except Exception as error:  # one tile that cannot launch leaves the others
            print(case.shape, case.scheme, case.tokens, case.note, type(error).__name__, str(error)[:200])
            if "illegal" in str(error) or "CUDA error" in str(error):
                raise
        print(f"{case.shape:8} {case.scheme:12} {case.tokens:5} {case.us:8.2f} {share(case):4.0f}% {case.note}", flush=True)
    best: dict[tuple[str, str, int], Case] = {}
    for case in found:
        at = (case.shape, case.scheme, case.tokens)
        if case.us == case.us and (at not in best or case.us < best[at].us):
            best[at] = case
    print(f"{'':8} {'':12}" + "".join(f"{count:>15}" for count in tokens))
    for shape, scheme in product(shapes, schemes):
        cells = []
        for count in tokens:
            one = best.get((shape, scheme, count))
            cells.append(f"{'-':>15}" if one is None else f"{one.us:9.2f} {share(one):4.0f}%")
        print(f"{shape:8} {scheme:12}" + "".join(cells))
    if options.sweep:
        for at, case in best.items():
            print(*at, f"{case.us:.2f}", case.note or "default")


def runs(case: Case, key: str) -> bool:
    """Whether a kernel is launched in this case's step."""
    return any(
        one.kernel == key and min(evaluate(dim, {**dict.fromkeys(SYMBOLS, 0), "T": case.tokens}) for dim in one.grid) > 0
        for one in case.lowered.launches
    )


if __name__ == "__main__":
    main()
