"""Times int8 products beside fp8's at llama-3.1-8b's shapes, chained in a CUDA graph over weights that exceed L2, and checks every result.

PYTHONPATH=.:kernels:engines:workloads:results:dashboards python3 time_int8.py [--tokens 1,8] [--shape qkv,o] [--no-variants]
"""

import argparse
import json
import os
import sys
import time

import torch

from trtllm_kernels.compile.pool import compile_many
from trtllm_kernels.dialect.expr import evaluate
from trtllm_kernels.dialect.specs import DTYPES
from trtllm_kernels.dialect.types import TensorSpec
from trtllm_kernels.launch.driver import BoundProgram
from trtllm_kernels.lowering import lower
from trtllm_kernels.references.quantize import finish

SHAPES = {"qkv": (6144, 4096), "o": (4096, 4096), "gate_up": (28672, 4096), "down": (4096, 14336)}
CEILING_BYTES, CEILING_OPS = 4.31e12, 1265e12
WEIGHTS_BYTES = 400 << 20
ARCH = "sm_90"


def spec(dtype, *shape):
    return TensorSpec(shape, dtype)


def products(shape, kind):
    """(op, inputs by argument, outputs) with symbolic tokens."""
    n, k = SHAPES[shape]
    dtype = "int8" if kind == "int8" else "fp8"
    rows = kind in ("int8", "fp8 rows")
    xs, ws = (spec("fp32", "T", 1), spec("fp32", n, 1)) if rows else (spec("fp32", 1), spec("fp32", 1))
    if shape == "gate_up" and kind != "fp8 rows":
        out = spec("bf16", "T", n // 2) if kind == "int8" else spec("fp8", "T", n // 2)
        return "gate_up_silu", [spec(dtype, "T", k), spec(dtype, n, k), xs, ws, None if rows else spec("fp32", 1)], [out]
    residual = spec("bf16", "T", n) if shape in ("o", "down") and kind != "fp8 rows" else None
    return "linear", [spec(dtype, "T", k), spec(dtype, n, k), None, xs, ws, residual], [spec("bf16", "T", n)]


def rows(op, kind):
    """Row ops: (op, inputs, outputs, attrs)."""
    codes = "int8" if kind == "int8" else "fp8"
    h = spec("bf16", "T", 4096)
    i = spec("bf16", "T", 14336)
    scales = spec("fp32", "T", 1)
    if op == "quantize 4096":
        return "quantize_rows", [h], [spec(codes, "T", 4096), scales], {"dtype": codes}
    if op == "quantize 14336":
        return "quantize_rows", [i], [spec(codes, "T", 14336), scales], {"dtype": codes}
    if op == "silu_mul + quantize":
        return "silu_mul_packed_quantize_rows", [spec("bf16", "T", 28672)], [spec(codes, "T", 14336), scales], {"dtype": codes}
    if op == "norm + quantize":
        return "rms_norm_quantize_rows", [h, spec("bf16", 4096)], [spec(codes, "T", 4096), scales], {"eps": 1e-5, "dtype": codes}
    if op == "norm":
        return "rms_norm", [h, spec("bf16", 4096), spec("fp32", 1)], [spec("fp8", "T", 4096)], {"eps": 1e-5}
    raise KeyError(op)


def drawn(one, tokens, generator):
    shape = [tokens if d == "T" else d for d in one.shape]
    if one.dtype == "int8":
        return (torch.randn(shape, device="cuda", dtype=torch.float16, generator=generator) * 36).round().clamp(-127, 127).to(torch.int8)
    if one.dtype == "fp32":
        return torch.rand(shape, device="cuda", generator=generator) * 0.001 + 0.0005
    values = torch.randn(shape, device="cuda", dtype=torch.bfloat16, generator=generator)
    return finish(values.float() * 60, torch.bfloat16, torch.ones(1, device="cuda")) if one.dtype == "fp8" else values


def memory_of(lowered, tokens):
    return {
        n: torch.empty([max(1, evaluate(d, {"T": tokens})) for d in s.shape], dtype=DTYPES[s.dtype], device="cuda")
        for n, s in lowered.workspaces.items()
    }


class Case:
    def __init__(self, label, shape, op, inputs, outputs, attrs, tactic, names):
        self.label, self.shape, self.op, self.inputs, self.outputs, self.attrs = label, shape, op, inputs, outputs, attrs
        self.lowered = lower(
            op, inputs, outputs, attrs, ARCH, tactic=tactic, input_names=names, output_names=[f"y{i}" for i in range(len(outputs))]
        )
        self.names = names


def case_of_product(shape, kind, tactic=None, label=""):
    op, inputs, outputs = products(shape, kind)
    names = list(
        ("x", "weight", "x_scale", "weight_scale", "out_scale")
        if op == "gate_up_silu"
        else ("x", "weight", "bias", "x_scale", "weight_scale", "residual")
    )
    return Case(label or kind, shape, op, inputs, outputs, {}, tactic, names[: len(inputs)])


def run(case, tokens, cubins, base, room):
    """(microseconds a call, error)."""
    generator = torch.Generator("cuda").manual_seed(0)
    memory = {name: drawn(one, tokens + room, generator) for name, one in zip(case.names, case.inputs) if one is not None}
    memory |= {
        f"y{i}": torch.empty([tokens + room if d == "T" else d for d in one.shape], dtype=DTYPES[one.dtype], device="cuda")
        for i, one in enumerate(case.outputs)
    }
    memory |= memory_of(case.lowered, tokens)
    copies = 1
    if "weight" in case.names and case.op != "rms_norm_quantize_rows" and case.op != "rms_norm":
        copies = max(2, -(-WEIGHTS_BYTES // memory["weight"].nbytes))
        memory |= {f"weight{i}": memory["weight"].view(torch.uint8).clone().view(memory["weight"].dtype) for i in range(1, copies)}
    resolvers = [{**memory, "weight": memory[f"weight{i}" if i else "weight"]} if copies > 1 else memory for i in range(copies)]
    zero = {"T": tokens, "R": 0, "D": 0, "S": 0, "C": 0}
    alone = BoundProgram([case.lowered], memory.__getitem__, cubins)
    alone.set_symbols(**zero)
    for i in range(len(case.outputs)):
        memory[f"y{i}"].view(torch.uint8).fill_(0xFF)
    alone.run()
    torch.cuda.synchronize()
    error = check(case, memory, tokens) if tokens <= 2048 else ""
    calls = copies * max(1, 24 // copies) if copies > 1 else 24
    chained, lows = {}, []
    for c in range(calls):
        suffix = f"#{c % copies}"
        chained |= {f"weight{suffix}": resolvers[c % copies].get("weight")}
        lows.append(renamed(case.lowered, "weight", f"weight{suffix}") if copies > 1 else case.lowered)
    program = BoundProgram(lows, {**memory, **{k: v for k, v in chained.items() if v is not None}}.__getitem__, cubins)
    program.set_symbols(**zero)
    program.run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        program.run()
    graph.replay()
    torch.cuda.synchronize()
    times = []
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    spent = 0.0
    while len(times) < 5 or (spent < 25 and len(times) < 60):
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e3 / calls)
        spent += begin.elapsed_time(end)
    times.sort()
    return times[len(times) // 2], error


def renamed(lowered, name, to):
    from dataclasses import replace

    def arg(one):
        return replace(one, value=to) if one.value == name and one.kind in ("tensor", "tma") else one

    return replace(lowered, launches=tuple(replace(l, args=tuple(map(arg, l.args))) for l in lowered.launches))


def check(case, memory, tokens):
    y = memory["y0"][:tokens]
    if case.op in ("linear", "gate_up_silu") and case.inputs[0].dtype == "int8":
        sums = memory["x"][:tokens].double() @ memory["weight"].double().T
        want = sums.float() * (memory["weight_scale"].T * memory["x_scale"][:tokens])
        if case.op == "gate_up_silu":
            want = torch.nn.functional.silu(want[:, 0::2]) * want[:, 1::2]
        elif "residual" in memory:
            want = want + memory["residual"][:tokens].float()
        off = (y.float() - want).abs() / (want.abs() * 2**-8 + 1e-6)
        worst = off.max().item() if not y.isnan().any() else float("nan")
        del sums, want, off
        return "" if worst <= 1.05 else f"WRONG by {worst:.3g} units of bf16"
    if case.op.endswith("quantize_rows") and case.outputs[0].dtype == "int8":
        x = memory[case.names[0]][:tokens].float()
        if case.op.startswith("rms"):
            x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * memory["weight"].float()
        if case.op.startswith("silu"):
            gate, up = x.chunk(2, 1)
            x = torch.nn.functional.silu(gate) * up
        scale = x.abs().amax(1, keepdim=True) / 127
        steps = ((x / scale).round() - y.float()).abs()
        bad = (memory["y1"][:tokens] / scale - 1).abs().max().item()
        return (
            ""
            if steps.max() <= 1 and (steps > 0).float().mean() < 0.002 and bad < 1e-5
            else f"WRONG: {steps.max().item()} steps, {(steps > 0).float().mean().item():.3g}, scale {bad:.2g}"
        )
    return ""


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", default="1,8,16,64,128,512,2048,8192")
    parser.add_argument("--shape", default=",".join(SHAPES))
    parser.add_argument("--no-variants", action="store_true")
    parser.add_argument("--compile-only", action="store_true")
    options = parser.parse_args()
    tokens, shapes = [int(t) for t in options.tokens.split(",")], options.shape.split(",")
    begun = time.time()
    cases = {}
    for shape in shapes:
        cases[shape, "int8"] = case_of_product(shape, "int8")
        cases[shape, "fp8"] = case_of_product(shape, "fp8")
        cases[shape, "rows"] = case_of_product(shape, "fp8 rows")
        if not options.no_variants:
            cases[shape, "no gemv"] = case_of_product(shape, "int8", {"gemv": 0})
            for width in (64, 128, 256):
                every = {f"width_{size}": width for size in (256, 512, 1024, 2048)}
                cases[shape, f"w{width}"] = case_of_product(shape, "int8", every)
                if width > 64:
                    cases[shape, f"tri{width}"] = case_of_product(shape, "int8", every | {"triton": 1})
    row_cases = {}
    for op in ("norm", "norm + quantize", "quantize 4096", "quantize 14336", "silu_mul + quantize"):
        for kind in ("int8", "fp8"):
            if op == "norm" and kind == "int8":
                continue
            name, inputs, outputs, attrs = rows(op, kind)
            arguments = {
                "rms_norm": ["x", "weight", "out_scale"],
                "rms_norm_quantize_rows": ["x", "weight"],
                "silu_mul_packed_quantize_rows": ["gate_up"],
            }.get(name, ["x"])
            row_cases[op, kind] = Case(kind, op, name, inputs, outputs, attrs, None, arguments)
    kernels = {k.key: k for c in (*cases.values(), *row_cases.values()) for k in c.lowered.kernels}
    found = compile_many(kernels.values(), ARCH)
    failed = {kernels[key].function: reason for key, reason in found.items() if isinstance(reason, str)}
    spilling = [kernels[key].function for key, c in found.items() if not isinstance(c, str) and c.info.spill_bytes]
    print(f"{len(kernels)} kernels compiled in {time.time() - begun:.0f} s; failed: {failed}; spilling: {spilling}", flush=True)
    if options.compile_only or failed:
        return 1 if failed else 0
    cubins = dict(found)
    print(torch.cuda.get_device_name(), torch.version.cuda)
    results, lines, wrong = [], [], []
    for shape in shapes:
        n, k = SHAPES[shape]
        for t in tokens:
            many, row = t > 128, {}
            kinds = ["int8", "fp8"] + (["rows"] if many else [])
            if not options.no_variants:
                kinds += ["no gemv"] if t == 1 else ["w64", "w128", "w256", "tri128", "tri256"] if many else []
            for kind in kinds:
                if kind == "w64" and t > 1024:
                    continue
                try:
                    us, error = run(cases[shape, kind], t, cubins, None, 256)
                except Exception as problem:
                    us, error = float("nan"), f"{type(problem).__name__}: {problem}"
                    if "CUDA error" in str(problem) or "ILLEGAL" in str(problem):
                        print(shape, t, kind, error)
                        raise
                if error:
                    wrong.append(f"{shape} {t} {kind}: {error}")
                row[kind] = us
                results.append({"shape": shape, "tokens": t, "kind": kind, "us": us, "error": error})
                torch.cuda.empty_cache()
            us = row["int8"]
            moved = n * k + t * k + 2 * t * (n // 2 if shape == "gate_up" else n) * (2 if shape in ("o", "down") else 1)
            ops = 2.0 * t * n * k
            floor = max(moved / CEILING_BYTES, ops / CEILING_OPS) * 1e6
            rate = f"{moved / us / 1e6:5.2f} TB/s" if moved / CEILING_BYTES > ops / CEILING_OPS else f"{ops / us / 1e6:5.0f} TOPS"
            more = " ".join(f"{kind} {value:.1f}" for kind, value in row.items() if kind not in ("int8", "fp8"))
            lines.append(f"{shape:8}{t:6}{us:9.2f}{rate:>12}{floor / us:6.0%}{row['fp8']:9.2f}{us / row['fp8']:6.2f}  {more}")
            print(lines[-1], flush=True)
    more = []
    for op in dict.fromkeys(name for name, _ in row_cases):
        text = f"{op:22}"
        for t in (1, 8, 64, 512, 2048, 8192):
            both = {}
            for kind in ("int8", "fp8"):
                if (op, kind) in row_cases:
                    both[kind], error = run(row_cases[op, kind], t, cubins, None, 256)
                    results.append({"shape": op, "tokens": t, "kind": kind, "us": both[kind], "error": error})
                    if error:
                        wrong.append(f"{op} {t} {kind}: {error}")
            text += f"  {t}: " + "/".join(f"{v:.2f}" for v in both.values())
        more.append(text)
    if out := os.environ.get("OUT"):
        with open(os.path.join(out, "int8.json"), "w") as file:
            json.dump(results, file, indent=1)
    print("\nrow ops, us of int8/fp8 by tokens (warm)")
    print("\n".join(more))
    print("\nshape   tokens  int8 us        rate share   fp8 us ratio  others, us")
    print("\n".join(lines))
    print(f"\n{len(wrong)} wrong" + "".join(f"\n  {one}" for one in wrong[:20]))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
