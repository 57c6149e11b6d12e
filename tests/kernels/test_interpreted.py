"""Every Triton kernel, run by the CPU interpreter through its own launches, against the dialect's reference."""

import pytest
from scripts import Scripts

_FAMILIES = """embedding gather_rows rms_norm layer_norm add_rms_norm add_layer_norm silu_mul silu_mul_packed gelu add split quantize
linear gate_up_silu linear_gelu prepare_step rope rope_kv_write paged_attention"""


@pytest.fixture(scope="module")
def results(interpreted: Scripts) -> list[dict]:
    return interpreted["interpreted.py"].rows()


@pytest.mark.parametrize("op", _FAMILIES.split())
def test_kernel_equals_reference(results: list[dict], op: str) -> None:
    mine = [r for r in results if r["case"].startswith(f"{op}-")]
    assert len(mine) >= 2
    assert not [r for r in mine if r["failure"]]


def test_whole_engines_equal_their_references(interpreted: Scripts) -> None:
    """The launches of a plan over its planned arena: prefill, then a mixed step, then a decode step."""
    steps = interpreted["interpreted_engine.py"].rows()
    models = ("llama-fp32", "gptj-fp32", "llama-fp8", "llama-fp8_rowwise")
    assert [s["case"] for s in steps] == [f"{model}-{step}" for model in models for step in ("context", "mixed", "decode")]
    for step in steps:
        assert step["same_rows"], step
        if "fp32" in step["case"]:
            assert step["worst"] < 1e-5 * max(1.0, step["scale"]), step
            assert step["cache_worst"] < 1e-4, step
            assert step["same_tokens"], step
        else:  # a rounding that flips moves an activation by up to 6%, and the layers after it amplify that
            assert step["cosine"] > 0.98, step
