"""The ops of `trtllm-bench kernels` on a GPU: each, as launched in an engine, is what its reference makes of the same inputs."""

from __future__ import annotations

import pytest
import torch

from trtllm_bench.machine import arch_of, gpus
from trtllm_bench.micro.bench import Bench
from trtllm_bench.micro.cases import prefill_case
from trtllm_bench.micro.peers import peer_of
from trtllm_bench.micro.results import is_right
from trtllm_bench.micro.run import KernelSelection, cases_of

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]


NORMS = {"llama-3.1-8b": {"rms_norm"}, "gptj-6b": set()}
"""Those that products of one token take; none takes a LayerNorm."""


@pytest.mark.parametrize(("model", "precision"), [("llama-3.1-8b", "fp8"), ("llama-3.1-8b", "bf16"), ("gptj-6b", "fp8")])
def test_every_op_of_a_step_is_right(model: str, precision: str) -> None:
    """Of steps whose attention rotates (one sequence, whose products may take the norm before them, more, many) and of prompts, whose ops
    all run themselves."""
    selection = KernelSelection(model, precision, (1, 64, 256), 200)
    bench = Bench(model, precision, arch_of(gpus()[0]), cases_of(selection))
    wrong, hopper = [], torch.cuda.get_device_capability()[0] == 9
    for case in cases_of(selection):
        included = set()
        for bound in bench.ops(case):
            if bound.idle:
                continue
            included |= {part.op.op for part in bound.includes}
            error = bound.error()
            if not is_right(error, bound.coarsest):
                wrong.append(f"{case.label} of {case.shape.tokens}: {bound.op.op} differs by {error:.2%}")
        expected = {"rope_kv_write"} | (NORMS[model] if case.shape.tokens == 1 else set()) if case.label == "decode" and hopper else set()
        assert included == expected, f"{case.label} of {case.shape.tokens}"
    assert not wrong


@pytest.mark.parametrize("precision", ["bf16", "fp8", "fp8_rowwise", "int8_sq"])
def test_products_of_codes_have_peers(precision: str) -> None:
    """Whose results are those of the same operands, codes with a scale for each row as codes alone."""
    if precision.startswith("fp8") and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("fp8 needs sm_89")
    case = prefill_case(64)
    bench = Bench("tiny-llama", precision, arch_of(gpus()[0]), [case])
    config = bench.plan.config
    products = [bound for bound in bench.ops(case) if bound.cost.kind == "gemm" and not bound.idle]
    for bound in products:
        peer = peer_of(bound, case.shape, config.num_heads, config.num_kv_heads, config.head_dim)
        assert peer is not None, bound.op.op
        given = bound.arguments()
        expected = given["x"].float() @ given["weight"].float().T
        for scale in (given.get("x_scale"), given.get("weight_scale")):
            expected *= scale if scale is not None and scale.numel() == 1 else 1.0
        torch.testing.assert_close(peer.call().float(), expected, rtol=1e-2, atol=1e-2 * float(expected.abs().max()))
    assert len(products) >= 4
