"""Whole plans in Triton's CPU interpreter: every launch the compiler chose, over the arena it planned, against the references.

Prints one JSON line a model and step. Started by test_interpreted.py. The arena starts as NaN, so a value read before it is written, or
after its memory was given to another, shows in the logits.
"""

import json
import math
from dataclasses import replace

import interpreted
import torch

from trtllm_engines.checkpoints.dummy import DummyWeights
from trtllm_engines.checkpoints.write import assemble
from trtllm_engines.compiler.compile import Compiled, compile_model
from trtllm_engines.compiler.plan import ONE_GPU, RING_SLOTS, ParallelLayout, Plan, Profile
from trtllm_engines.models.config import ModelConfig, RopeConfig
from trtllm_kernels.dialect.expr import evaluate
from trtllm_kernels.dialect.specs import DTYPES
from trtllm_kernels.dialect.types import Lowered, rounded_keys
from trtllm_kernels.references import OPS
from trtllm_kernels.references.sampling import EMPTY

ARCH = "sm_90"
PROFILE = Profile(max_batch_size=4, max_num_tokens=48, max_seq_len=160, page_size=16)
LLAMA = ModelConfig(
    name="small-llama",
    architecture="LlamaForCausalLM",
    hidden_size=48,
    num_layers=2,
    num_heads=6,
    num_kv_heads=2,
    head_dim=16,
    intermediate_size=64,
    vocab_size=97,
    max_position_embeddings=160,
    norm_eps=1e-5,
    rope=RopeConfig(theta=10000.0, rotary_dim=16),
)
MODELS = {
    "llama": LLAMA,
    "gptj": replace(
        LLAMA,
        architecture="GPTJForCausalLM",
        num_heads=3,
        num_kv_heads=3,
        mlp_bias=True,
        rope=RopeConfig(10000.0, rotary_dim=8, interleaved=True),
    ),
}
PARTS = 12
"""How many parts of sequences are to fill the GPU: a few of each sequence, some of them empty. An H100's 528 make dozens of each, whose
programs have nothing to do and take most of the time."""
STEPS = {"context": ((17, 2, 1), (17, 2, 1), 0), "mixed": ((1, 1, 10), (18, 3, 11), 2), "decode": ((1, 1, 1), (19, 4, 12), 3)}
"""(query_lens, kv_lens, decodes) of three sequences, one step after another."""


def step_inputs(plan: Plan, name: str) -> tuple[dict[str, torch.Tensor], dict[str, int]]:
    query_lens, kv_lens, decodes = STEPS[name]
    tokens = sum(query_lens)
    torch.manual_seed(tokens)
    context = torch.randint(0, 97, (tokens,)).int()
    context[:decodes] = -1
    starts = torch.tensor([0, *query_lens]).cumsum(0).int()
    inputs = {
        "context_tokens": context,
        "seq_slots": torch.tensor([2, 0, 3], dtype=torch.int32),
        "query_start": starts,
        "kv_lens": torch.tensor(kv_lens, dtype=torch.int32),
        "logit_rows": (starts[1:] - 1).contiguous(),
        "sampling_words": torch.tensor([[0, 0, 0, 0], [1 << 30, 5, 6, 7], [0, 0, 0, 0]], dtype=torch.int32),
        "sample_slots": torch.tensor([2, 0, 3], dtype=torch.int32),
        "ring_slot": torch.tensor([1], dtype=torch.int32),
        "last_tokens": torch.arange(PROFILE.max_batch_size + 1, dtype=torch.int32) + 11,
        "block_table": torch.randperm(50, generator=torch.Generator().manual_seed(0)).int().view(5, 10),
    }
    continued = sum(kv > query for query, kv in zip(query_lens[decodes:], kv_lens[decodes:], strict=True))
    return inputs, {"T": tokens, "R": 3, "D": decodes, "S": 3, "C": continued, "L": rounded_keys(max(kv_lens[:decodes], default=0))}


def sampling_state(last_tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    rows = PROFILE.max_batch_size
    ring = torch.full((RING_SLOTS, rows), -1, dtype=torch.int32)
    return {"last_tokens": last_tokens.clone(), "token_ring": ring, "argmax_scratch": torch.full((rows,), EMPTY)}


def by_references(plan: Plan, memory: dict[str, torch.Tensor]) -> torch.Tensor:
    values = dict(memory)
    for op in plan.ops:
        arguments = {argument: values[name] if name else None for argument, name in zip(OPS[op.op].tensors, op.inputs, strict=True)}
        result = OPS[op.op].reference(**arguments, **op.attrs)
        values.update(zip(op.outputs, result if isinstance(result, tuple | list) else [result], strict=True))
    return values["logits"]


def arena_views(plan: Plan) -> dict[str, torch.Tensor]:
    arena = torch.full((plan.arena_bytes,), 255, dtype=torch.uint8)
    most = {"T": PROFILE.max_num_tokens, "R": PROFILE.max_batch_size, "D": PROFILE.max_batch_size, "S": PROFILE.max_batch_size}
    specs = dict(plan.values)
    for op in plan.ops:
        specs.update(op.tactics[ARCH].workspaces)
    views = {}
    for name, buffer in plan.buffers.items():
        shape = [evaluate(dim, most) for dim in specs[name].shape]
        kind = DTYPES[specs[name].dtype]
        views[name] = arena[buffer.offset : buffer.offset + math.prod(shape) * kind.itemsize].view(kind).view(shape)
    return views


def main() -> None:
    for model, precision in (("llama", "fp32"), ("gptj", "fp32"), ("llama", "fp8"), ("llama", "fp8_rowwise"), ("llama", "int8_sq")):
        config = MODELS[model]
        compiled = compile_model(config, precision, PROFILE, arches=(ARCH,), weights_source={"kind": "dummy", "seed": 0})
        plan = compiled.plan
        weights = {name: assemble(plan, name, DummyWeights(), torch.device("cpu")) for name in plan.weights}
        cache_shape = (config.num_layers, 50, 2, config.num_kv_heads, 16, config.head_dim)
        cache = torch.full(cache_shape, torch.nan, dtype=DTYPES[plan.kv_dtype])
        caches = (cache, cache.clone())
        views = arena_views(plan)
        for step in STEPS:
            inputs, symbols = step_inputs(plan, step)
            memory = {**weights, **compiled.constants, **inputs}
            states = [sampling_state(inputs["last_tokens"]) for _ in caches]
            expected = by_references(plan, {**memory, **states[0], "kv_cache": caches[0]})
            tensors = {**memory, **states[1], "kv_cache": caches[1], **views}
            for op in plan.ops:
                interpreted.run_launches(op.tactics[ARCH], tensors, symbols, {*weights, *compiled.constants})
            logits = views["logits"][:3]
            worst = float((logits - expected).abs().max())
            cosine = float(torch.nn.functional.cosine_similarity(logits.float(), expected.float()).min())
            ours, theirs = (cache.float() for cache in caches)
            found = {
                "worst": worst,
                "scale": float(expected.std()),
                "cosine": cosine,
                "cache_worst": float((ours - theirs).abs().nan_to_num(0.0).max()),
            }
            found |= {"same_rows": bool(torch.equal(ours.isnan(), theirs.isnan()))}
            found |= {"same_tokens": all(torch.equal(states[0][name], states[1][name]) for name in states[0])}
            print(json.dumps({"case": f"{model}-{precision}-{step}", **found}), flush=True)
        print(json.dumps({"done": f"{model}-{precision}"}), flush=True)
    print(json.dumps({"case": "hosts", **of_four_hosts()}), flush=True)
    print(json.dumps({"done": "hosts"}), flush=True)


def of_four_hosts() -> dict[str, object]:
    """Prompts by two stages of two ranks, each on a host of its own, against one rank's references. NCCL's part is played here."""
    config, layout = replace(LLAMA, vocab_size=96), ParallelLayout(2, 2, 4)
    one = compiled_for(config, ONE_GPU, 0)
    inputs, symbols = step_inputs(one.plan, "context")
    inputs["context_tokens"] %= config.vocab_size
    state = sampling_state(inputs["last_tokens"])
    expected = by_references(one.plan, {**memory_of(one, 0), **inputs, **state, "kv_cache": cache_of(one.plan)})
    sent: list[torch.Tensor] = []
    for stage in range(layout.pp):
        compiled = compiled_for(config, layout, stage)
        stored = {*compiled.plan.weights, *compiled.constants}
        places = [{"group": torch.tensor([rank, 1], dtype=torch.int32), "pipe": torch.zeros(2, dtype=torch.int32)} for rank in range(2)]
        ranks = [
            {**memory_of(compiled, rank), **inputs, **sampling_state(inputs["last_tokens"]), **place, **arena_views(compiled.plan)}
            | {"kv_cache": cache_of(compiled.plan)}
            for rank, place in enumerate(places)
        ]
        for lowered in (op.tactics[ARCH] for op in compiled.plan.ops):
            for launch in lowered.launches:
                if launch.library.startswith("nccl"):
                    rows = evaluate(launch.grid[0], symbols)
                    first, last = ([rank[launch.args[at].value][:rows] for rank in ranks] for at in (0, -2))
                    sent = exchanged(launch.library, first, last, sent)
                    continue
                for rank in ranks:
                    interpreted.run_launches(Lowered((launch,), lowered.kernels), rank, symbols, stored)
    logits = torch.cat([rank["logits"][:3] for rank in ranks], dim=1)
    same = all(torch.equal(rank[name], state[name]) for rank in ranks for name in state)
    return {"worst": float((logits - expected).abs().max()), "same_tokens": same}


def exchanged(routine: str, first: list[torch.Tensor], last: list[torch.Tensor], sent: list[torch.Tensor]) -> list[torch.Tensor]:
    """Does to the ranks' tensors what `nccl.NcclCall` does; what is on its way to the next stage afterwards."""
    match routine:
        case "nccl_sum":
            results = [torch.stack(first).sum(0)] * len(first)
        case "nccl_largest":
            results = [torch.stack(first).max(0).values] * len(first)
        case "nccl_send":
            return [rows.clone() for rows in first]
        case "nccl_receive":
            results = sent
    for rows, result in zip(last, results, strict=True):
        rows.copy_(result)
    return []


def compiled_for(config: ModelConfig, layout: ParallelLayout, stage: int) -> Compiled:
    source = {"kind": "dummy", "seed": 0}
    return compile_model(config, "fp32", PROFILE, arches=(ARCH,), weights_source=source, layout=layout, stage=stage)


def memory_of(compiled: Compiled, rank: int) -> dict[str, torch.Tensor]:
    plan = compiled.plan
    return {**compiled.constants, **{name: assemble(plan, name, DummyWeights(), torch.device("cpu"), rank) for name in plan.weights}}


def cache_of(plan: Plan) -> torch.Tensor:
    return torch.full((plan.stage.num_layers, 50, 2, plan.kv_heads, 16, plan.config.head_dim), torch.nan, dtype=DTYPES[plan.kv_dtype])


if __name__ == "__main__":
    interpreted.make_interpreter_exact()
    interpreted.BY_TRITON["paged_attention"]["split_target"] = PARTS
    main()
