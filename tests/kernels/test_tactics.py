"""Recorded tactics: what a key tells apart, how a file is merged, and that everything a search space holds can be lowered."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from trtllm_kernels import tactics
from trtllm_kernels.compile import pool as aot_pool
from trtllm_kernels.compile.catalogue import MODELS, OpShape, ops_of
from trtllm_kernels.compile.cubin import Cubin
from trtllm_kernels.dialect.types import TensorSpec
from trtllm_kernels.errors import KernelError
from trtllm_kernels.lowering import lower, search_space
from trtllm_kernels.lowering.registry import has_kernels
from trtllm_kernels.lowering.space import TOKENS

FEW = ["skinny 8", "skinny 16", "skinny 32", "skinny 64", "skinny 96", "skinny 128", "skinny to"]
FEW_IN_TRITON = ["skinny 16", "skinny 32", "skinny 64", "skinny to"]


def key(shape: OpShape) -> str:
    return tactics.key(shape.op, shape.inputs, shape.outputs, shape.attrs)


def one(op: str, precision: str = "bf16", model: str = "llama-3.1-8b") -> OpShape:
    return next(shape for shape in ops_of(MODELS[model], precision) if shape.op == op)


def test_a_key_tells_apart_what_decides_and_nothing_else() -> None:
    attention = one("paged_attention")
    assert key(attention) == "paged_attention bf16[:,6144] bf16[:,8,32,128] -> bf16[:,4096] num_heads=32 num_kv_heads=8"
    cache = attention.inputs[1]
    assert cache is not None
    for changed in (replace(cache, dtype="fp8"), replace(cache, shape=(*cache.shape[:4], 64, 128))):
        other = replace(attention, inputs=(attention.inputs[0], changed, *attention.inputs[2:]))
        assert key(other) != key(attention)
    same = replace(cache, shape=(2, 999, *cache.shape[2:]))
    step = (TensorSpec((3, 7), "int32"), *attention.inputs[3:])
    assert key(replace(attention, inputs=(attention.inputs[0], same, *step), attrs={**attention.attrs, "layer": 5})) == key(attention)

    linear = [key(shape) for shape in ops_of(MODELS["llama-3.1-8b"], "fp8") if shape.op == "linear"]
    assert len(set(linear)) == len(linear) == 6
    narrow, wide = (TensorSpec(("T", n), "bf16") for n in (4096, 6144))
    x, weights = TensorSpec(("T", 4096), "bf16"), [TensorSpec((n, 4096), "bf16") for n in (4096, 6144)]
    assert tactics.key("linear", [x, weights[0]], [narrow], {}) != tactics.key("linear", [x, weights[1]], [wide], {})
    rows = replace(x, shape=(17, 4096))
    assert tactics.key("linear", [rows, weights[0]], [narrow], {}) == tactics.key("linear", [x, weights[0]], [narrow], {})


@pytest.mark.parametrize("arch", ["sm_80", "sm_89", "sm_90"])
@pytest.mark.parametrize("model", MODELS)
def test_every_candidate_lowers(model: str, arch: str) -> None:
    ops = ops_of(MODELS[model], "bf16" if arch == "sm_80" else "fp8")
    for shape in (shape for shape in ops if has_kernels(shape.op, arch)):
        for choice in search_space(shape.op, shape.inputs, shape.outputs, shape.attrs, arch):
            assert choice.candidates
            assert all(candidate.keys() == choice.candidates[0].keys() for candidate in choice.candidates) or choice.name == "one token"
            for candidate in choice.candidates:
                assert lower(shape.op, shape.inputs, shape.outputs, shape.attrs, arch, tactic=candidate).launches


def test_choices_of_an_op_share_no_tunable_and_thresholds_only_where_tiles_fit() -> None:
    for model in MODELS.values():
        for shape in ops_of(model, "fp8"):
            seen: set[str] = set()
            for choice in search_space(shape.op, shape.inputs, shape.outputs, shape.attrs, "sm_90"):
                assert not seen & choice.tunables
                seen |= choice.tunables
    names = {c.name for c in search_space(*_fields(one("gate_up_silu")), "sm_90")}
    assert names == {*FEW, "tiles", "halves", "fused from"}
    assert {c.name for c in search_space(*_fields(one("gate_up_silu")), "sm_89")} == {"one token"}
    odd = one("linear_gelu", model="smollm2-135m")
    assert odd.inputs[1] is not None
    odd = replace(odd, inputs=(odd.inputs[0], replace(odd.inputs[1], shape=(1500, 576)), *odd.inputs[2:]))
    assert [c.name for c in search_space(*_fields(odd), "sm_90")] == FEW_IN_TRITON, "no whole 16 rows: by Triton as well"
    assert search_space(*_fields(odd), "sm_89") == ()
    thresholds = {c.name: c.tokens for c in search_space(*_fields(one("gate_up_silu")), "sm_90") if c.tokens}
    assert thresholds == {"skinny to": (8, 16, 32, 64, 96, 128), "fused from": TOKENS}


def test_of_few_tokens_it_is_our_tile_that_is_chosen_of_more_the_librarys_algorithm() -> None:
    for op, arch, ours, sizes in (
        ("linear", "sm_90", FEW, 6),
        ("linear_sample", "sm_90", FEW[:-1], 6),
        ("linear", "sm_89", ["one token"], 8),
    ):
        found = [c.name for c in search_space(*_fields(one(op, "fp8")), arch)]
        assert found[:-sizes] == ours
        assert all(name.startswith("algorithm") for name in found[-sizes:])


def _fields(shape: OpShape) -> tuple:  # type: ignore[type-arg]
    return shape.op, shape.inputs, shape.outputs, shape.attrs


def test_without_gemv_one_token_goes_to_the_library() -> None:
    shape = one("linear")
    assert [launch.library for launch in lower(*_fields(shape), "sm_90", tactic={"gemv": 0, "skinny_to": 0}).launches] == ["matmul"]
    launches = lower(*_fields(one("gate_up_silu")), "sm_90", tactic={"gemv": 0, "skinny_to": 0}).launches
    assert not any("gemv" in launch.kernel for launch in launches)
    with pytest.raises(KernelError, match=r"tactic of linear_gelu sets \['gemv'\], which it does not have"):
        lower(*_fields(one("linear_gelu", model="gptj-6b")), "sm_90", tactic={"gemv": 0})


def test_candidates_compute_what_the_op_means() -> None:
    script = Path(__file__).with_name("interpreted_tactics.py")
    run = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    found = [json.loads(line) for line in run.stdout.splitlines()]
    assert run.returncode == 0, run.stderr[-2000:]
    assert [one for one in found if one["failure"]] == []
    ops = {one["case"].split()[0] for one in found}
    assert ops >= {"paged_attention", "linear", "gate_up_silu", "rope_kv_write"}
    assert len(found) > 20


def test_merging_keeps_what_was_not_measured(tmp_path: Path) -> None:
    path = tmp_path / "new" / "h100.json"
    tactics.merge(path, "H100", "sm_90", {"a": {"warps": 2, "block": 64}, "b": {"warps": 4}}, {"a": {"warps", "block"}, "b": {"warps"}})
    assert tactics.read(path) == {"a": {"block": 64, "warps": 2}, "b": {"warps": 4}}
    tactics.merge(path, "H100", "sm_90", {"c": {"x": 1}}, {"a": {"warps"}, "b": {"warps"}, "c": {"x", "y"}})
    assert tactics.read(path) == {"a": {"block": 64}, "c": {"x": 1}}
    assert json.loads(path.read_text())["gpu"] == "H100"
    assert [entry.name for entry in path.parent.iterdir()] == ["h100.json"]
    before = path.read_text()
    with pytest.raises(KernelError, match=r"was measured on H100 and this is H200; choose another file with --out"):
        tactics.merge(path, "H200", "sm_90", {}, {"a": {"block"}})
    assert path.read_text() == before
    path.write_text("{")
    with pytest.raises(KernelError, match="not readable"):
        tactics.merge(path, "H100", "sm_90", {}, {})


def test_kernels_compile_in_processes_and_a_failure_is_a_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRTLLM_BENCH_CACHE", str(tmp_path))
    spec = one("gelu", model="smollm2-135m").kernels("sm_90")[0]
    bad = replace(spec, constexprs={**spec.constexprs, "BLOCK": 500})
    assert aot_pool.compile_many([spec], "sm_90", seconds=0) == {spec.key: "no time was left to compile it"}
    seen: list[tuple[int, int]] = []
    found = aot_pool.compile_many([spec, bad, spec], "sm_90", workers=1, progress=lambda done, total: seen.append((done, total)))
    assert isinstance(found[spec.key], Cubin)
    assert "does not compile" in str(found[bad.key])
    assert seen == [(1, 2), (2, 2)]
    monkeypatch.setattr(aot_pool, "ProcessPoolExecutor", lambda *args, **rest: pytest.fail("a process was started"))
    assert aot_pool.compile_many([spec], "sm_90", progress=lambda done, total: seen.append((done, total))) == {spec.key: found[spec.key]}
    assert seen[-1] == (1, 1)
