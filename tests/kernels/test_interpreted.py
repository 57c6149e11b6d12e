"""Every Triton kernel, run by the CPU interpreter through its own launches, against the dialect's reference."""

import pytest
from scripts import Scripts

_FAMILIES = """embedding gather_rows rms_norm layer_norm add_rms_norm add_layer_norm silu_mul silu_mul_packed gelu add split quantize
rms_norm_quantize_rows layer_norm_quantize_rows add_rms_norm_quantize_rows add_layer_norm_quantize_rows silu_mul_packed_quantize_rows
gelu_quantize_rows linear gate_up_silu linear_gelu prepare_step rope rope_kv_write rope_kv_write_quantize paged_attention all_reduce
all_reduce_add all_reduce_add_rms_norm send receive sharded_linear_sample"""


@pytest.mark.parametrize("op", _FAMILIES.split())
def test_kernel_equals_reference(interpreted: Scripts, op: str) -> None:
    of_op = [row for row in interpreted["interpreted.py"].until(op) if row["case"].startswith(f"{op}-")]
    assert len(of_op) >= 2
    assert not [row for row in of_op if row["failure"]]


@pytest.mark.parametrize("model", ["llama-fp32", "gptj-fp32", "llama-fp8", "llama-fp8_rowwise", "llama-int8_sq"])
def test_a_whole_engine_equals_its_references(interpreted: Scripts, model: str) -> None:
    """The launches of a plan over its planned arena: prefill, then a mixed step, then a decode step."""
    steps = [row for row in interpreted["interpreted_engine.py"].until(model) if row["case"].rpartition("-")[0] == model]
    assert [step["case"] for step in steps] == [f"{model}-{step}" for step in ("context", "mixed", "decode")]
    for step in steps:
        assert step["same_rows"], step
        if "fp32" in step["case"]:
            assert step["worst"] < 1e-5 * max(1.0, step["scale"]), step
            assert step["cache_worst"] < 1e-4, step
            assert step["same_tokens"], step
        else:  # a rounding that flips moves an activation by up to 6%, and the layers after it amplify that
            assert step["cosine"] > 0.98, step


def test_ranks_of_four_hosts_give_what_one_gives(interpreted: Scripts) -> None:
    """All that passes between them does so by NCCL: sums, words of sampling, and rows from stage to stage."""
    (step,) = interpreted["interpreted_engine.py"].until("hosts")[-1:]
    assert step["worst"] < 1e-5
    assert step["same_tokens"]
