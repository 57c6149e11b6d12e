"""Every Triton kernel, run by the CPU interpreter through its own launches, against the dialect's reference."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

_FAMILIES = """embedding gather_rows rms_norm layer_norm add_rms_norm add_layer_norm silu_mul silu_mul_packed gelu add split quantize
linear gate_up_silu linear_gelu prepare_step rope rope_kv_write paged_attention"""


Script = subprocess.Popen[str]


def rows(script: Script) -> list[dict]:
    out, err = script.communicate()
    assert script.returncode == 0, err[-3000:]
    return [json.loads(line) for line in out.splitlines()]


@pytest.fixture(scope="module")
def scripts() -> Iterator[list[Script]]:
    """Both started at once: the interpreter is one thread of Python."""
    names = ("interpreted.py", "interpreted_engine.py")
    commands = [[sys.executable, Path(__file__).with_name(name)] for name in names]
    started = [subprocess.Popen(c, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for c in commands]
    yield started
    for script in started:
        script.kill()
        script.wait()


@pytest.fixture(scope="module")
def results(scripts: list[Script]) -> list[dict]:
    return rows(scripts[0])


@pytest.mark.parametrize("op", _FAMILIES.split())
def test_kernel_equals_reference(results: list[dict], op: str) -> None:
    mine = [r for r in results if r["case"].startswith(f"{op}-")]
    assert len(mine) >= 2
    assert not [r for r in mine if r["failure"]]


def test_whole_engines_equal_their_references(scripts: list[Script]) -> None:
    """The launches of a plan over its planned arena: prefill, then a mixed step, then a decode step."""
    steps = rows(scripts[1])
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
