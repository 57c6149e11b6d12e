"""Every Triton kernel, run by the CPU interpreter through its own launches, against the dialect's reference."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

_FAMILIES = ("embedding", "gather_rows", "rms_norm", "layer_norm", "add_rms_norm", "add_layer_norm", "silu_mul", "silu_mul_packed", "gelu",
             "add", "split", "prepare_step", "rope", "rope_kv_write", "paged_attention")  # fmt: skip


def run_interpreted(script: str) -> list[dict]:
    run = subprocess.run([sys.executable, Path(__file__).with_name(script)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    return [json.loads(line) for line in run.stdout.splitlines()]


@pytest.fixture(scope="module")
def results() -> list[dict]:
    return run_interpreted("interpreted.py")


@pytest.mark.parametrize("op", _FAMILIES)
def test_kernel_equals_reference(results: list[dict], op: str) -> None:
    mine = [r for r in results if r["case"].startswith(f"{op}-")]
    assert len(mine) >= 2
    assert not [r for r in mine if r["failure"]]


def test_whole_engines_equal_their_references() -> None:
    """The launches of a plan over its planned arena: prefill, then a mixed step, then a decode step."""
    steps = run_interpreted("interpreted_engine.py")
    assert [s["case"] for s in steps] == [f"{model}-{step}" for model in ("llama", "gptj") for step in ("context", "mixed", "decode")]
    for step in steps:
        assert step["worst"] < 1e-5 * max(1.0, step["scale"]), step
        assert step["same_cache"], step
