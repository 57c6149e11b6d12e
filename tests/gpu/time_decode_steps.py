"""Times whole decode steps of a model by variants of tactics, over the same weights in one process: CUDA graphs replayed back to back.

    PYTHONPATH=... python tests/gpu/time_decode_steps.py --precision fp8 --batch-size 1,8,16,32 \\
        --variant decode_cuda_to=0 --variant "" --variant decode_rotates=0

A variant is tunables of paged attention, separated by commas; an empty one is the defaults. With `--ops` they are of other ops, over what
is recorded of these. Sequences have `--keys` keys and up to 8 more.
`mJ`: energy of a step by NVML. `apart`: how far logits of the first step in which all decode, after equal prompts, are from the first
variant's, relative to their norm.
"""

import argparse
import os
import sys
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pynvml
import torch

from trtllm_engines.checkpoints.dummy import DummyWeights
from trtllm_engines.checkpoints.write import assemble
from trtllm_engines.compiler.compile import compile_model
from trtllm_engines.compiler.fingerprint import detect_target
from trtllm_engines.compiler.plan import Profile
from trtllm_engines.models.presets import resolve_model
from trtllm_engines.runtime.cuda import CudaRunner
from trtllm_engines.runtime.engine_loop import EngineLoop
from trtllm_engines.runtime.sampling_params import SamplingParams
from trtllm_engines.runtime.scheduler import SchedulerConfig
from trtllm_kernels import tactics
from trtllm_kernels.compile.aot import compile_all

PROFILE = Profile(max_batch_size=256, max_num_tokens=8192, max_seq_len=384, page_size=32)


def measure(graph: torch.cuda.CUDAGraph, gpu: object, rounds: int = 15, replays: int = 10) -> tuple[float, float, float]:
    """(median us of a replay, range of all rounds, mJ of a replay)"""
    graph.replay()
    times = []
    torch.cuda.synchronize()
    before = pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu)
    for _ in range(rounds):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        for _ in range(replays):
            graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / replays * 1e3)
    joules = (pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu) - before) / (rounds * replays)
    return sorted(times)[rounds // 2], max(times) - min(times), joules


def step_of(runner: CudaRunner, profile: Profile, batch: int, keys: int, vocab: int) -> tuple[torch.cuda.CUDAGraph, torch.Tensor]:
    """The graph of a step in which `batch` sequences decode, left so that replays change nothing, and that step's logits."""
    config = SchedulerConfig(profile.max_batch_size, profile.max_num_tokens, profile.max_seq_len, profile.page_size, runner.num_pages)
    loop = EngineLoop(runner, config, vocab_size=vocab, overlap=False)
    for i in range(batch):
        loop.add_request(np.random.default_rng(i).integers(0, vocab, keys + i % 9), SamplingParams(max_tokens=100, ignore_eos=True))
    while not (graphs := [graph for (sequences, _), graph in runner._graphs.items() if sequences == batch]):
        loop.step()
    logits = runner._values["logits"][:batch].float().clone()
    inputs = runner.state.inputs
    inputs.tensors["sample_slots"].fill_(inputs.padding_slot)
    return graphs[0], logits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="llama-3.1-8b")
    parser.add_argument("--precision", default="fp8")
    parser.add_argument("--keys", type=int, default=240)
    parser.add_argument("--batch-size", default="1,8,16,32,64")
    parser.add_argument("--layers", type=int, default=0, help="of the model, where not all")
    parser.add_argument("--max-seq-len", type=int, default=0, help="that engines have room for, where more than the sequences have")
    parser.add_argument("--ops", default="paged_attention", help="whose tunables variants are, such as linear,gate_up_silu,linear_sample")
    parser.add_argument("--variant", action="append", default=[])
    asked = parser.parse_args()
    batches = [int(text) for text in asked.batch_size.split(",")]
    arch, source, config = detect_target().arch, DummyWeights(0), resolve_model(asked.model).config
    config = replace(config, num_layers=asked.layers or config.num_layers)
    most = max(PROFILE.max_batch_size, *batches)
    longest = (asked.keys + 144) // 32 * 32
    profile = replace(PROFILE, max_batch_size=most, max_seq_len=max(longest, asked.max_seq_len))
    pages = most * (longest // 32) + 1
    pynvml.nvmlInit()
    gpu = pynvml.nvmlDeviceGetHandleByIndex(int(os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]))
    recorded, cubins, tensors = tactics.recorded, {}, {}
    first: dict[int, tuple[float, torch.Tensor]] = {}
    for text in asked.variant or [""]:
        tactic = {name: int(value) for name, value in (pair.split("=") for pair in text.split(",") if pair)}

        def chosen(arch: str, op: str, *rest: Any, own: dict[str, int] = tactic) -> dict[str, int] | None:
            known = recorded(arch, op, *rest)
            if op not in asked.ops.split(","):
                return known
            return own if op == "paged_attention" else {**(known or {}), **own}

        tactics.recorded = chosen
        name = torch.cuda.get_device_name()
        compiled = compile_model(config, asked.precision, profile, arches=(arch,), weights_source=source.description, gpu=name)
        tactics.recorded = recorded
        kernels = {kernel.key: kernel for op in compiled.plan.ops for kernel in op.tactics[arch].kernels}
        cubins |= compile_all([kernel for key, kernel in kernels.items() if key not in cubins], arch)
        if not tensors:
            device = torch.device("cuda")
            tensors = {name: assemble(compiled.plan, name, source, device) for name in compiled.plan.weights}
            tensors |= {name: tensor.to(device) for name, tensor in compiled.constants.items()}
        for batch in batches:
            runner = CudaRunner(compiled.plan, arch, tensors, cubins.__getitem__, num_pages=pages)
            graph, logits = step_of(runner, profile, batch, asked.keys, config.vocab_size)
            us, spread, millijoules = measure(graph, gpu)
            base, wanted = first.setdefault(batch, (us, logits))
            apart = float((logits - wanted).norm() / wanted.norm())
            print(
                f"{asked.precision} {batch:4d} {text or 'defaults':24s} {us:8.1f} us +-{spread:5.1f} {base / us:.3f}x "
                f"{millijoules:8.1f} mJ apart {apart:.4f}",
                flush=True,
            )
            del graph, runner
    print(torch.cuda.get_device_name(), f"{time.process_time():.0f} s of CPU time")


if __name__ == "__main__":
    sys.exit(main())
