# ruff: noqa: E402
"""`python3 tests/gpu/time_skinny_gemm.py [--models 8b,70b/2] [--tokens 1,8,64]`: tiles of skinny GEMMs, by layers of decode steps.

A layer is norm, QKV, O, norm, gate_up and down, without attention; layers have weights of their own, beyond L2, and follow each other in a
CUDA graph, overlapping as in an engine. Products of fp8 have their default tiles, and one of them at a time another: what a layer gains by
it is printed, best first. 70b/2 is one of two ranks, without reductions. lm_head is the 8B's in bf16, with norm and sampling.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "kernels")]

import torch

from trtllm_kernels.compile.pool import compile_many
from trtllm_kernels.dialect.expr import evaluate
from trtllm_kernels.dialect.ops import OP_SPECS
from trtllm_kernels.dialect.specs import DTYPES
from trtllm_kernels.dialect.types import EMPTY_WORD, SYMBOLS, Lowered, TensorSpec
from trtllm_kernels.launch.driver import BoundProgram
from trtllm_kernels.lowering import lower, search_space
from trtllm_kernels.lowering.skinny_gemm import PADDED

MODELS = {"8b": (4096, 4096, 6144, 14336), "70b/2": (8192, 4096, 5120, 14336)}
"""(hidden, input of O, output of QKV, intermediate)."""
TOKENS = (1, 8, 16, 32, 64, 128)
LAYERS, VOCABULARY, ROWS = 4, 128256, 136
LAYER = ("norm", "qkv", "o", "norm", "gate_up", "down")
ONE = TensorSpec((1,), "fp32")
Tactic = Mapping[str, int]


def call_of(model: str, name: str) -> tuple[str, dict[str, TensorSpec], list[TensorSpec], dict[str, float]]:
    """(op, inputs, results, attributes) of a layer's part; "lm_head" is the 8B's."""
    hidden, attended, qkv, inner = MODELS[model]
    if name == "norm":
        named = {"x": TensorSpec(("T", hidden), "bf16"), "weight": TensorSpec((hidden,), "bf16"), "out_scale": ONE}
        return "rms_norm", named, [TensorSpec(("T", hidden), "fp8")], {"eps": 1e-5}
    if name == "lm_head":
        named = {"x": TensorSpec(("T", hidden), "bf16"), "weight": TensorSpec((VOCABULARY, hidden), "bf16")}
        named |= {"sampling_words": TensorSpec(("T", 4), "int32"), "sample_slots": TensorSpec(("T",), "int32")}
        named |= {"ring_slot": TensorSpec((1,), "int32"), "argmax_scratch": TensorSpec((ROWS,), "int64")}
        named |= {"last_tokens": TensorSpec((ROWS,), "int32"), "token_ring": TensorSpec((1, ROWS), "int32")}
        return "linear_sample", named, [TensorSpec(("T", VOCABULARY), "bf16"), TensorSpec(("T",), "int32")], {}
    rows, columns = {"qkv": (qkv, hidden), "o": (hidden, attended), "gate_up": (2 * inner, hidden), "down": (hidden, inner)}[name]
    named = {"x": TensorSpec(("T", columns), "fp8"), "weight": TensorSpec((rows, columns), "fp8"), "x_scale": ONE, "weight_scale": ONE}
    if name == "gate_up":
        return "gate_up_silu", {**named, "out_scale": ONE}, [TensorSpec(("T", inner), "fp8")], {}
    y = TensorSpec(("T", rows), "bf16")
    return "linear", named if name == "qkv" else {**named, "residual": y}, [y], {}


def lowered_for(model: str, name: str, tokens: int, tactic: Tactic) -> Lowered:
    """What a step of so many tokens launches."""
    op, named, results, attributes = call_of(model, name)
    whole = lower(op, [named.get(key) for key in OP_SPECS[op].tensors], results, attributes, "sm_90", tactic=tactic)
    symbols = {**dict.fromkeys(SYMBOLS, 0), "T": tokens}
    launches = tuple(one for one in whole.launches if min(evaluate(dim, symbols) for dim in one.grid) > 0)
    return Lowered(launches, tuple(spec for spec in whole.kernels if spec.key in {one.kernel for one in launches}), whole.workspaces)


def tactics(model: str, name: str, tokens: int) -> dict[str, Tactic]:
    """By label, the default first; those that launch the same are there once."""
    if name == "norm":
        return {"default": {}}
    op, named, results, attributes = call_of(model, name)
    padded = next(size for size in PADDED if tokens <= size)
    space = search_space(op, [named.get(key) for key in OP_SPECS[op].tensors], results, attributes, "sm_90")
    found: dict[str, Tactic] = {"default": {}}
    for choice in space:
        if choice.name == f"skinny {padded}":
            for candidate in choice.candidates:
                tile = {"gemv": 0} if tokens == 1 else {}
                fields = ("blocks", "parts", "height")
                label = " ".join(f"{candidate[f'skinny{padded}_{field}']} {field}" for field in fields)
                found.setdefault(label if candidate[f"skinny{padded}_blocks"] else "Triton", {**tile, **candidate})
    if tokens == 1:
        found["GEMV"] = {"gemv": 1}
    if op == "linear_sample":
        found |= {"library": {"skinny_to": 0, "gemv": 0}}
    return found


def memory(model: str, names: Sequence[str], layers: int) -> dict[str, torch.Tensor]:
    """Tensors of parts by "part argument layer"; activations, scales and results are shared by layers."""
    tensors: dict[str, torch.Tensor] = {}
    for name in {*names}:
        _, named, results, _ = call_of(model, name)
        for key, spec in {**named, **{f"out{i}": spec for i, spec in enumerate(results)}}.items():
            shape = [ROWS if dim == "T" else int(dim) for dim in spec.shape]
            for layer in range(layers if key == "weight" else 1):
                if spec.dtype in ("int32", "int64"):
                    value = torch.full(shape, EMPTY_WORD if key == "argmax_scratch" else 0, dtype=DTYPES[spec.dtype], device="cuda")
                elif key.endswith("scale"):
                    value = torch.full(shape, 0.02, device="cuda")
                else:
                    value = torch.randn(shape, device="cuda", dtype=torch.bfloat16).to(DTYPES[spec.dtype])
                tensors[f"{name} {key} {layer}"] = value
    return tensors


def placed(lowered: Lowered, name: str, layer: int) -> Lowered:
    def place(key: str) -> str:
        return f"{name} {key} {layer if key == 'weight' else 0}"

    def arguments(launch):
        return tuple(replace(arg, value=place(str(arg.value))) if arg.kind in ("tma", "tensor") else arg for arg in launch.args)

    return replace(lowered, launches=tuple(replace(one, args=arguments(one)) for one in lowered.launches))


def time_layers(parts: Sequence[tuple[str, Lowered]], tensors: Mapping[str, torch.Tensor], cubins, tokens: int, layers: int) -> float:
    """Microseconds a layer."""
    program = BoundProgram([placed(part, name, layer) for layer in range(layers) for name, part in parts], tensors.__getitem__, cubins)
    program.set_symbols(**{**dict.fromkeys(SYMBOLS, 0), "T": tokens})
    program.run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        program.run()
    graph.replay()
    times = []
    for _ in range(7):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(1e3 * begin.elapsed_time(end) / 2 / layers)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default=",".join((*MODELS, "lm_head")))
    parser.add_argument("--tokens", default=",".join(map(str, TOKENS)))
    options = parser.parse_args()
    tokens_of = [int(one) for one in options.tokens.split(",")]
    courses = {key: ("8b", ("norm", "lm_head")) if key == "lm_head" else (key, LAYER) for key in options.models.split(",")}
    plans = {
        (key, tokens, name): {label: lowered_for(model, name, tokens, tactic) for label, tactic in tactics(model, name, tokens).items()}
        for key, (model, names) in courses.items()
        for tokens in tokens_of
        for name in {*names}
    }
    specs = {spec.key: spec for plan in plans.values() for lowered in plan.values() for spec in lowered.kernels}
    print(f"{torch.cuda.get_device_name()}: {len(specs)} kernels", flush=True)
    cubins = {key: one for key, one in compile_many(specs.values(), "sm_90").items() if not isinstance(one, str)}
    for key, (model, names) in courses.items():
        layers = 2 if key == "lm_head" else LAYERS
        tensors = memory(model, names, layers)
        for tokens in tokens_of:
            usual = {name: plans[key, tokens, name]["default"] for name in names}

            def layer_us(chosen, usual=usual, names=names, tensors=tensors, tokens=tokens, layers=layers) -> float:
                return time_layers([(name, {**usual, **chosen}[name]) for name in names], tensors, cubins, tokens, layers)

            base = layer_us({})
            print(f"{key} {tokens}: {base:.1f} us a layer")
            for name in dict.fromkeys(names):
                others = {
                    label: one for label, one in plans[key, tokens, name].items() if {spec.key for spec in one.kernels} <= cubins.keys()
                }
                gains = sorted(((base - layer_us({name: one}), label) for label, one in others.items() if label != "default"), reverse=True)
                if gains:
                    print(f"  {name:8} " + "; ".join(f"{gain:+.2f} {label}" for gain, label in gains[:5]), flush=True)
        del tensors


if __name__ == "__main__":
    main()
