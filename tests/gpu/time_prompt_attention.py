"""Times attention of prompts, whole and continued, in 16 bits and in fp8.

    PYTHONPATH=... python tests/gpu/time_prompt_attention.py --tokens 2048,8192,4x2048 --past 0,6144

`alone`: the median of launches that begin with a cold L2 cache, the kernels in turns. `sustained`: `--seconds` of one after another, where
the power cap rules, with the energy of a launch by NVML. Queries and keys are normal, and so are values around 0.5.
"""

import argparse
import time
from itertools import accumulate
from statistics import median

import pynvml
import torch

from trtllm_kernels.compile.aot import compile_all
from trtllm_kernels.compile.catalogue import MODELS
from trtllm_kernels.dialect.model_shape import ModelShape
from trtllm_kernels.dialect.types import KEY_BLOCK, Lowered, TensorSpec, value_columns
from trtllm_kernels.launch.driver import BoundProgram
from trtllm_kernels.lowering import describe
from trtllm_kernels.lowering.call import Builder, Operand
from trtllm_kernels.lowering.prefill import cuda_context_launch, cuda_launch, fp8_context_launch, fp8_launch
from trtllm_kernels.references.rope import columns_of_values

PAGE, K_SCALE, V_SCALE, TURNS = 32, 2.0**-5, 2.0**-6, 9
FP8 = torch.float8_e4m3fn


def lowered(model: ModelShape, named: dict[str, torch.Tensor], past: int, fp8: bool) -> Lowered:
    ints, one = TensorSpec(("R",), "int32"), TensorSpec((1,), "fp32")
    table = TensorSpec(tuple(named["block_table"].shape), "int32")
    inputs = [
        TensorSpec(("T", named["qkv"].shape[1]), "bf16"),
        TensorSpec(tuple(named["kv_cache"].shape), "fp8"),
        table,
        ints,
        ints,
        ints,
        one,
        one,
    ]
    attrs = {"layer": 0, "num_heads": model.heads, "num_kv_heads": model.kv_heads, "scale": model.head_dim**-0.5}
    call = describe("paged_attention", inputs, [TensorSpec(("T", model.heads * model.head_dim), "bf16")], attrs, "sm_90", tactic={})
    builder = Builder(call)
    queries, keys, values = (Operand(name, TensorSpec(tuple(named[name].shape), "fp8")) for name in ("queries", "keys", "values"))
    cache = call["kv_cache"].slice(0)
    if past:
        fp8_context_launch(builder, queries, cache, "C") if fp8 else cuda_context_launch(builder, cache, "C")
    else:
        fp8_launch(builder, queries, keys, values, "R") if fp8 else cuda_launch(builder, "R")
    return builder.finish()


def drawn(model: ModelShape, lengths: list[int], past: int) -> dict[str, torch.Tensor]:
    """Inputs of both kernels. A prompt's `past` tokens and its own are in the cache."""
    tokens, width, kv_width = sum(lengths), model.heads * model.head_dim, model.kv_heads * model.head_dim

    def normal(*shape: int, mean: float = 0.0, scale: float = 1.0) -> torch.Tensor:
        return ((torch.randn(shape, device="cuda") + mean) / scale).clamp_(-448, 448).to(FP8)

    starts = [0, *accumulate(lengths)]
    queries, keys, values = (
        normal(tokens, width),
        normal(tokens + KEY_BLOCK, kv_width, scale=K_SCALE),
        normal(tokens, kv_width, mean=0.5, scale=V_SCALE),
    )
    transposed = torch.zeros(kv_width, value_columns(tokens, len(lengths)), dtype=torch.uint8, device="cuda")
    transposed[:, columns_of_values(torch.tensor(starts)).cuda()] = values.view(torch.uint8).T
    qkv = torch.cat((queries.float(), keys[:tokens].float() * K_SCALE, values.float() * V_SCALE), 1).bfloat16()
    counts = [-(-(length + past) // PAGE) for length in lengths]
    cache = torch.stack(
        [normal(sum(counts), model.kv_heads, PAGE, model.head_dim, mean=m, scale=s) for m, s in ((0.0, K_SCALE), (0.5, V_SCALE))], 1
    )
    table = torch.zeros(len(lengths), max(counts), dtype=torch.int32)
    order = torch.randperm(sum(counts)).int().split(counts)
    for row, pages in zip(table, order, strict=True):
        row[: len(pages)] = pages
    host = {
        "block_table": table,
        "seq_slots": torch.arange(len(lengths)).int(),
        "query_start": torch.tensor(starts).int(),
        "kv_lens": torch.tensor([length + past for length in lengths]).int(),
        "k_scale": torch.tensor([K_SCALE]),
        "v_scale": torch.tensor([V_SCALE]),
    }
    codes = {"queries": queries, "keys": keys, "values": transposed.view(FP8), "qkv": qkv, "kv_cache": cache[None].contiguous()}
    return {**codes, **{name: tensor.cuda() for name, tensor in host.items()}}


def alone_us(program: BoundProgram, flush: torch.Tensor) -> float:
    flush.zero_()
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    program.run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) * 1e3


def sustained(program: BoundProgram, us: float, seconds: float) -> tuple[float, float]:
    """(us, mJ) of a launch, between two changes of the counter of energy, which is asked once in a tenth of a second: that takes long."""
    gpu = pynvml.nvmlDeviceGetHandleByIndex(torch.cuda.current_device())
    seen: list[tuple[float, float, int]] = []
    launches, burst, began = 0, max(1, int(1e5 / us)), time.perf_counter()
    while time.perf_counter() - began < seconds or len(seen) < 3:
        for _ in range(burst):
            program.run()
        torch.cuda.synchronize()
        launches += burst
        millijoules = pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu)
        if not seen or millijoules != seen[-1][1]:
            seen.append((time.perf_counter(), millijoules, launches))
    (first, before, done), (last, after, all_of_them) = seen[1], seen[-1]
    return (last - first) * 1e6 / (all_of_them - done), (after - before) / (all_of_them - done)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="llama-3.1-8b", choices=MODELS)
    parser.add_argument("--tokens", default="2048,8192,20000,4x2048", help="new tokens of a prompt, or NUMBERxTOKENS")
    parser.add_argument("--past", default="0", help="tokens in the cache")
    parser.add_argument("--seconds", type=float, default=0.5)
    asked = parser.parse_args()
    pynvml.nvmlInit()
    model, flush = MODELS[asked.model], torch.zeros(256 << 20, dtype=torch.uint8, device="cuda")
    print(f"{'prompts':>10} {'past':>6} {'operands':>8} {'alone us':>9} {'TFLOP/s':>8} {'sustained us':>13} {'TFLOP/s':>8} {'mJ':>9}")
    for past in (int(text) for text in asked.past.split(",")):
        for text in asked.tokens.split(","):
            number, _, length = text.rpartition("x")
            lengths = [int(length)] * int(number or 1)
            named, programs = drawn(model, lengths, past), {}
            for operands in ("16-bit", "fp8"):
                one = lowered(model, named, past, operands == "fp8")
                out = torch.empty(sum(lengths), model.heads * model.head_dim, dtype=torch.bfloat16, device="cuda")
                programs[operands] = BoundProgram([one], {**named, "out0": out}.__getitem__, compile_all(one.kernels, "sm_90"))
                programs[operands].set_symbols(T=sum(lengths), R=len(lengths), D=0, S=len(lengths), C=len(lengths) if past else 0)
            turns = [{operands: alone_us(program, flush) for operands, program in programs.items()} for _ in range(TURNS)]
            flop = 4.0 * model.heads * model.head_dim * sum(n * past + n * (n + 1) / 2 for n in lengths)
            for operands, program in programs.items():
                us = median(turn[operands] for turn in turns)
                kept_us, millijoules = sustained(program, us, asked.seconds)
                figures = f"{us:9.1f} {flop / us / 1e6:8.0f} {kept_us:13.1f} {flop / kept_us / 1e6:8.0f} {millijoules:9.2f}"
                print(f"{text:>10} {past:>6} {operands:>8} {figures}", flush=True)


if __name__ == "__main__":
    main()
