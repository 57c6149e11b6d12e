"""What `inspect` says of an engine: the data, and a report that fits 80 columns."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from trtllm_engines.compiler.plan import Profile
from trtllm_engines.engine.build import build
from trtllm_engines.engine.inspect import describe, render
from trtllm_engines.errors import EngineError


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("engines") / "engine"
    profile = Profile(max_batch_size=4, max_num_tokens=64, max_seq_len=64)
    return build("tiny-llama", "bf16", out=out, profile=profile, arches=("sm_90",), mark_outputs=["model.norm"])


def test_description_counts_what_the_plan_holds(engine: Path) -> None:
    found = describe(engine)
    json.dumps(found)
    assert found["model"]["parameters"] == 918_656
    assert found["weights"]["bytes"] == 2 * 918_656
    assert found["memory"]["kv_bytes_per_token"] == 2 * 4 * 2 * 32 * 2  # keys and values, layers, heads, head_dim, bf16
    assert found["memory"]["activation_arena_bytes"] < found["memory"]["sum_of_values_bytes"]
    linears = {row["name"]: row["count"] for row in found["ops"] if row["op"].startswith("linear")}
    assert linears == {
        "model.layers.*.self_attn.qkv_proj": 4,
        "model.layers.*.self_attn.o_proj": 4,
        "model.layers.*.mlp.down_proj": 4,
        "lm_head": 1,
    }
    assert found["outputs"] == ["logits", "model.norm"]
    kernels = {row["kernel"].rsplit("-", 1)[0]: row for row in found["kernels"]}
    assert kernels["rms_norm"]["ops"] == 9
    assert all(row["registers"] > 0 for row in found["kernels"])


def test_scales_are_no_parameters(tmp_path: Path) -> None:
    found = describe(build("tiny-llama", "fp8", out=tmp_path / "e", profile=Profile(4, 64, 64)))
    assert found["model"]["parameters"] == 918_656
    assert found["memory"]["kv_bytes_per_token"] == 2 * 4 * 2 * 32
    wide = 918_656 - 4 * (128 * 256 + 128 * 128 + 3 * 128 * 384)
    assert found["weights"]["bytes"] == 918_656 + wide + 4 * 4 * (4 + 4 + 2)


def test_report_fits_80_columns_and_names_everything(engine: Path) -> None:
    text = io.StringIO()
    Console(file=text, width=80).print(render(describe(engine, verify=True)))
    report = text.getvalue()
    assert max(len(line) for line in report.splitlines()) <= 80
    report = " ".join(report.split())
    for part in (
        "tiny-llama",
        "0.9 M parameters",
        "every byte verified",
        "paged_attention",
        "rms_norm",
        "registers",
        "trtllm-bench build",
    ):
        assert part in report


def test_a_kernel_the_plan_names_must_be_there(engine: Path) -> None:
    checksums = json.loads((engine / "checksums.json").read_text())
    name = next(n for n in checksums if n.endswith(".json") and n.startswith("kernels/"))
    del checksums[name]
    (engine / "checksums.json").write_text(json.dumps(checksums))
    (engine / name).unlink()
    with pytest.raises(EngineError, match=r"checksums\.json does not list kernels/.*\.json, which the engine reads"):
        describe(engine)
