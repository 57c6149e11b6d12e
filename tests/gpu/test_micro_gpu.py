"""The ops of `trtllm-bench kernels` on a GPU: each, as launched in an engine, is what its reference makes of the same inputs."""

from __future__ import annotations

import pytest
import torch

from trtllm_bench.machine import arch_of, gpus
from trtllm_bench.micro.bench import Bench
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
