"""Times rotation, cache write and decode attention of a model's shape, by variants of tactics.

    PYTHONPATH=... python tests/gpu/time_decode_attention.py --sequences 64,128,256 --keys 200-300 \\
        --variant decode_cuda_to=0,decode_many_to=0 --variant ""

A variant is tunables of paged attention, separated by commas; an empty one is the defaults. Layers are chained in a CUDA graph, each with
pages of its own up to 8 GB, so that the L2 cache is cold. The page table has room for the longest sequence. `mJ`: energy of a layer by
NVML, from `--seconds` of runs, whose time is `warm`, between two of the counter's changes.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pynvml
import torch

from trtllm_engines.compiler.fingerprint import detect_target
from trtllm_kernels.compile.aot import compile_all
from trtllm_kernels.compile.catalogue import MODELS, ops_of
from trtllm_kernels.dialect.expr import evaluate
from trtllm_kernels.dialect.model_shape import ModelShape
from trtllm_kernels.dialect.ops import OP_SPECS
from trtllm_kernels.dialect.types import Launch, Lowered, TensorSpec, rounded_keys
from trtllm_kernels.launch.driver import BoundProgram
from trtllm_kernels.lowering import describe, rotate_in_attention
from trtllm_kernels.lowering.registry import LOWERINGS

PAGE, MOST_BYTES, MOST_LAYERS = 32, 8 << 30, 16


def layers_of(model: ModelShape, precision: str, tactic: dict[str, int], width: int, arch: str) -> list[Lowered]:
    """rope_kv_write and paged_attention of each layer. `width`: of the page table."""
    shapes = {one.op: one for one in [*ops_of(model, precision)][::-1]}
    lowered = []
    for layer in range(MOST_LAYERS):
        calls = []
        for op in ("rope_kv_write", "paged_attention"):
            one, rope = shapes[op], op == "rope_kv_write"
            names = [*OP_SPECS[op].tensors][: len(one.inputs)]
            specs = [
                TensorSpec((257, width), "int32") if name == "block_table" else spec for name, spec in zip(names, one.inputs, strict=True)
            ]
            own = [f"{name}{layer}" if name in ("block_table", "kv_slots") else name for name in names]
            own = ["rotated" if name == "qkv" and not rope else name for name in own]
            result = ["rotated" if rope else "out0"]
            calls.append(
                describe(
                    op,
                    specs,
                    one.outputs,
                    one.attrs,
                    arch,
                    tactic={} if rope else tactic,
                    input_names=own,
                    output_names=result,
                    in_place=rope,
                )
            )
        apart = (LOWERINGS[call.op].lower(call) for call in calls)
        lowered += rotate_in_attention(*calls) or apart
    return lowered


def cache_of(model: ModelShape, precision: str, pages: int) -> torch.Tensor:
    shape = (1, pages, 2, model.kv_heads, PAGE, model.head_dim)
    if precision != "fp8":
        return torch.empty(shape, dtype=torch.bfloat16, device="cuda").normal_()
    codes = torch.empty(shape, dtype=torch.uint8, device="cuda").random_(0, 256)
    return codes.bitwise_and_(0xB7).view(torch.float8_e4m3fn)  # no NaN, and no large values


def inputs(model: ModelShape, lengths: torch.Tensor, width: int, cache: torch.Tensor) -> tuple[dict[str, torch.Tensor], int]:
    """(tensors by name, layers that have pages of their own)"""
    n, counts, pages = len(lengths), (lengths + PAGE - 1) // PAGE, cache.shape[1]
    need = int(counts.sum())
    layers, order = max(1, min(MOST_LAYERS, (pages - 1) // need)), torch.randperm(pages - 1) + 1
    qkv = torch.randn(n, (model.heads + 2 * model.kv_heads) * model.head_dim).bfloat16()
    out = torch.zeros(n, model.heads * model.head_dim, dtype=torch.bfloat16)
    named = {
        "kv_cache": cache,
        "seq_slots": torch.arange(n).int(),
        "query_start": torch.arange(n + 1).int(),
        "kv_lens": lengths.int(),
        "positions": (lengths - 1).int(),
        "k_scale": torch.tensor([2.0**-7]),
        "v_scale": torch.tensor([2.0**-6]),
        "out_scale": torch.tensor([0.02]),
        "cos_sin": torch.randn(int(lengths.max()), model.rotary_dim),
        "qkv": qkv,
        "rotated": qkv.clone(),
        "out0": out if cache.dtype == torch.bfloat16 else out.to(torch.float8_e4m3fn),
    }
    for layer in range(layers):
        table = torch.zeros(n, width, dtype=torch.int32)
        table[torch.arange(width) < counts[:, None]] = order[layer * need : (layer + 1) * need].int()
        last = table[torch.arange(n), (lengths - 1) // PAGE]
        named |= {f"block_table{layer}": table, f"kv_slots{layer}": last * PAGE + ((lengths - 1) % PAGE).int()}
    return {name: tensor.cuda() for name, tensor in named.items()}, layers


def replayed(graph: torch.cuda.CUDAGraph, replays: int) -> float:
    """us of a replay"""
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    for _ in range(replays):
        graph.replay()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / replays * 1e3


def sustained(gpu: object, run: Callable[[], float], seconds: float) -> tuple[float, float]:
    """(mean of what `run` returns, watts), from the counter's first change to its last one in that time."""
    results: list[float] = []
    seen: list[tuple[float, int]] = []
    began = time.perf_counter()
    while time.perf_counter() - began < seconds or len(seen) < 3:
        joules = pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu)
        if not seen or joules != seen[-1][1]:
            seen.append((time.perf_counter(), joules))
        results.append(run())
    (first, before), (last, after) = seen[1], seen[-1]
    return sum(results) / len(results), (after - before) / 1e3 / (last - first)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="llama-3.1-8b", choices=MODELS)
    parser.add_argument("--heads", default="", help="query and KV heads in the model's place, such as 64/8")
    parser.add_argument("--precision", default="fp8", choices=("fp8", "bf16"))
    parser.add_argument("--sequences", default="64,128,256,512,2048")
    parser.add_argument("--keys", default="200-300")
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--variant", action="append", default=[])
    asked = parser.parse_args()
    sizes, (least, most) = [int(text) for text in asked.sequences.split(",")], (int(text) for text in asked.keys.split("-"))
    width, arch, model = -(-most // PAGE), detect_target().arch, MODELS[asked.model]
    if asked.heads:
        heads, kv_heads = (int(text) for text in asked.heads.split("/"))
        model = replace(model, hidden=heads * model.head_dim, heads=heads, kv_heads=kv_heads)
    pynvml.nvmlInit()
    gpu = pynvml.nvmlDeviceGetHandleByIndex(int(os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]))
    variants = {}
    for text in asked.variant or [""]:
        tactic = {name: int(value) for name, value in (pair.split("=") for pair in text.split(",") if pair)}
        variants[text or "defaults"] = layers_of(model, asked.precision, tactic, width, arch)

    def runs(launch: Launch, n: int) -> bool:
        return min(evaluate(dim, {**dict.fromkeys("TRDS", n), "C": 0, "L": rounded_keys(most)}) for dim in launch.grid) > 0

    needed = {launch.kernel for own in variants.values() for one in own for launch in one.launches if any(runs(launch, n) for n in sizes)}
    cubins = compile_all(
        {spec.key: spec for own in variants.values() for one in own for spec in one.kernels if spec.key in needed}.values(), arch
    )
    of_key = 1 if asked.precision == "fp8" else 2
    of_page = 2 * model.kv_heads * PAGE * model.head_dim * of_key
    pages = max(MOST_BYTES // of_page, max(sizes) * (least + most + 2 * PAGE) // (2 * PAGE))
    cache = cache_of(model, asked.precision, pages)
    for n in sizes:
        lengths = torch.randint(least, most + 1, (n,), generator=torch.Generator().manual_seed(n))
        tensors, layers = inputs(model, lengths, width, cache)
        read = int(lengths.sum()) * of_page // PAGE
        for name, lowered in variants.items():
            own = [replace(one, launches=tuple(launch for launch in one.launches if runs(launch, n))) for one in lowered[: 2 * layers]]
            # attention that rotates reads the projection itself
            result = {} if own[0].launches else {"rotated": tensors["qkv"]}
            memory, symbols = {**tensors, **result}, {**dict.fromkeys("TRDS", n), "C": 0, "L": rounded_keys(most)}
            for one in own:
                for workspace, spec in one.workspaces.items():
                    shape = [max(1, evaluate(dim, symbols)) for dim in spec.shape]
                    memory[workspace] = torch.empty(shape, device="cuda")
            program = BoundProgram(own, memory.__getitem__, cubins)
            program.set_symbols(**symbols)
            program.run()
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                program.run()
            replayed(graph, 1)
            us = min(replayed(graph, max(1, 160 // layers)) for _ in range(4))
            warm_us, watts = sustained(gpu, partial(replayed, graph, max(1, int(4000 / us))), asked.seconds)
            cold_us, warm_us = us / layers, warm_us / layers
            cold = f"{cold_us:8.2f} us {read / cold_us / 1e6:6.3f} TB/s"
            warmed = f"{warm_us:8.2f} us {watts * warm_us / 1e3:8.3f} mJ {watts:4.0f} W"
            print(f"{n:5d} x {asked.keys} {name:40s} {cold}  warm {warmed}", flush=True)
    print(torch.cuda.get_device_name())


if __name__ == "__main__":
    sys.exit(main())
