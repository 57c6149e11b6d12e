"""Runs what tuning may choose in Triton's CPU interpreter against the references; one JSON line an op and candidate. See interpreted.py.

Of tiles; thresholds only choose between launches that interpreted.py runs. Warps and stages mean nothing to an interpreter, so of those
that differ in nothing else one is run.
"""

import json
import sys

import torch
from interpreted import BY_TRITON, FUSED, GPTJ, GQA, MANY, MIXED, ONE, as_list, difference, make_interpreter_exact, run

from samples import BatchShape, fp8_sample, int8_cache_sample, sample
from trtllm_kernels import lowering
from trtllm_kernels.dialect.model_shape import ModelShape
from trtllm_kernels.dialect.specs import spec_of
from trtllm_kernels.dialect.types import Lowered
from trtllm_kernels.launch.torch_ops import lower_call
from trtllm_kernels.lowering import search_space
from trtllm_kernels.references import OPS

GROUP = ModelShape(heads=2, kv_heads=1, head_dim=64, rotary_dim=64)
SHORT = BatchShape(query_lens=(1, 1), kv_lens=(70, 9), max_pages=3)
"""For decode attention over caches of codes: of fp8 with, of int8 without a split."""
SOME = BatchShape(query_lens=(1, 5, 70), kv_lens=(40, 70, 70), max_pages=3)
CASES = [
    ("silu_mul_packed", ModelShape(intermediate=2048), ONE, "bf16"),
    ("gather_rows", GPTJ, MIXED, "bf16"),
    ("prepare_step", GQA, MIXED, "bf16"),
    ("rope_kv_write", GQA, ONE, "fp8"),
    ("paged_attention", GROUP, SOME, "bf16"),
    ("paged_attention", GROUP, SHORT, "fp8"),
    ("paged_attention", GROUP, SHORT, "int8 cache"),
    ("linear", ModelShape(hidden=2048, intermediate=64), ONE, "fp8"),
    ("gate_up_silu", FUSED, MANY, "fp8"),
    ("linear_gelu", FUSED, MANY, "bf16"),
]


def shown(lowered: Lowered) -> str:
    """What an interpreter can see of launches."""
    kernels = [(k.function, sorted(k.constexprs.items())) for k in lowered.kernels]
    return repr((kernels, [(launch.library, launch.grid, [(a.kind, a.value, a.box) for a in launch.args]) for launch in lowered.launches]))


def main() -> None:
    make_interpreter_exact()
    lowering.call.OpCall.sm_count = 3  # so few programs that a small product has whole tiles for all and some left over
    for op_name, model, batch, dtype in CASES:
        op = OPS[op_name]
        make = {"fp8": fp8_sample, "int8 cache": int8_cache_sample}.get(dtype)
        named = make(op_name, model, batch) if make else sample(op_name, model, batch, dtype)
        outputs = as_list(op.fake(*(named[a.name] for a in op.overload._schema.arguments)))
        specs = [None if named[name] is None else spec_of(named[name]) for name in op.tensors]
        attrs = {name: named[name] for name in op.attrs}
        reference_arguments = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in named.items()}
        expected = as_list(op.reference(**reference_arguments)) + list(op.written_in(reference_arguments).values())
        seen = set()
        for choice in search_space(op_name, specs, [spec_of(y) for y in outputs], attrs, "sm_90"):
            for candidate in () if choice.tokens else choice.candidates:
                if batch is SHORT and not candidate.get("decode_ahead"):
                    continue
                tactic = {**BY_TRITON.get(op_name, {}), **candidate, **({"split_target": 1} if dtype == "int8 cache" else {})}
                if op_name == "paged_attention":  # tuning leaves few sequences to CUDA C++
                    tactic |= BY_TRITON[op_name]
                lowering.tactics.recorded = lambda *_, tactic=tactic: tactic
                lowered = lower_call(op, named, outputs, "sm_90")
                view = shown(lowered)
                if view in seen or any(kernel.is_cuda for kernel in lowered.kernels):
                    continue
                seen.add(view)
                fresh = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in named.items()}
                actual = run(op_name, fresh, "sm_90") + list(op.written_in(fresh).values())
                wrong = "; ".join(filter(None, (difference(op_name, dtype, a, b) for a, b in zip(actual, expected, strict=True))))
                print(json.dumps({"case": f"{op_name} {dtype} {candidate}", "failure": wrong}), flush=True)


if __name__ == "__main__":
    sys.exit(main())
