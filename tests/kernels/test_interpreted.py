"""Every Triton kernel, run by the CPU interpreter through its own launches, against the dialect's reference."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

_FAMILIES = ("embedding", "gather_rows", "rms_norm", "layer_norm", "add_rms_norm", "add_layer_norm", "silu_mul", "silu_mul_packed", "gelu",
             "add", "split", "prepare_step", "rope", "rope_kv_write", "paged_attention")  # fmt: skip


@pytest.fixture(scope="module")
def results() -> list[dict]:
    script = Path(__file__).with_name("interpreted.py")
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    return [json.loads(line) for line in run.stdout.splitlines()]


@pytest.mark.parametrize("op", _FAMILIES)
def test_kernel_equals_reference(results: list[dict], op: str) -> None:
    mine = [r for r in results if r["case"].startswith(f"{op}-")]
    assert len(mine) >= 2
    assert not [r for r in mine if r["failure"]]
