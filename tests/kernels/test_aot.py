"""Every kernel compiles ahead of time, on a machine without a GPU, for three architectures, and needs no more than they have."""

import json
import re
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from machine_code import opcodes

from trtllm_kernels import tactics
from trtllm_kernels.compile import aot, nvrtc, workers
from trtllm_kernels.compile.catalogue import MODELS, kernels_of, ops_of
from trtllm_kernels.compile.cubin import Cubin
from trtllm_kernels.dialect.types import KernelSpec
from trtllm_kernels.errors import KernelError
from trtllm_kernels.lowering import lower
from trtllm_kernels.lowering.registry import has_kernels
from trtllm_kernels.lowering.skinny_gemm import IN_TRITON, PADDED

_SHARED_LIMIT = {"sm_80": 163 * 1024, "sm_89": 99 * 1024, "sm_90": 227 * 1024}


_SPILL_BYTES = {"context_attention": 16}
"""All a kernel may spill: 0, but for head 256 over fp8 pages of 64 on sm_90, at the limit of 255 registers."""
_FEW = {"skinny_gemm", "skinny_linear", "skinny_parts", "skinny_sum", "skinny_gate_up_silu", "skinny_linear_gelu"}
_ONLY_HOPPER = {"gate_up_silu", "linear_gelu", "uncached_prefill_attention", "rope_kv_write_quantize", "rank_candidates", *_FEW} - {
    "skinny_sum"
}


def skinny_kernels(precision: str) -> list[KernelSpec]:
    """Each once a padded size at the 8B's shapes, in both languages, whole and divided."""

    def tiles(sizes: tuple[int, ...] = PADDED, **values: int) -> dict[str, int]:
        return {f"skinny{padded}_{name}": value for padded in sizes for name, value in values.items()}

    by_triton, whole, divided = tiles(IN_TRITON, blocks=0, splits=1), tiles(blocks=2, parts=1), tiles(blocks=1, parts=2)
    chosen = {}
    for op in (op for op in ops_of(MODELS["llama-3.1-8b"], precision) if op.op.startswith(("linear", "gate_up"))):
        for tactic in (by_triton, whole, divided, *([tiles(IN_TRITON, blocks=0, splits=4)] if op.op == "linear" else [])):
            for spec in lower(op.op, op.inputs, op.outputs, op.attrs, "sm_90", tactic=tactic).kernels:
                if spec.function.startswith("skinny_"):
                    kind = (spec.constexprs.get(name) for name in ("TOKENS", "SCALED_ROWS", "SAMPLED", "ACT", "SPLITS"))
                    chosen.setdefault((spec.function, *kind), spec)
    return list(chosen.values())


def gemv_kernels(model: str, precision: str) -> list[KernelSpec]:
    """Of one token, where sm_90 does not leave it to the skinny GEMM."""
    ops = (op for op in ops_of(MODELS[model], precision) if op.op in ("linear", "linear_sample", "gate_up_silu"))
    kernels = (spec for op in ops for spec in lower(op.op, op.inputs, op.outputs, op.attrs, "sm_90", tactic={"gemv": 1}).kernels)
    return list({spec.key: spec for spec in kernels if spec.function.startswith("gemv")}.values())


def attention_kernels(model: str, precision: str, page_size: int = 32, **tactic: int) -> list[KernelSpec]:
    ops = (o for o in ops_of(replace(MODELS[model], page_size=page_size), precision) if o.op == "paged_attention")
    return [s for o in ops for s in lower(o.op, o.inputs, o.outputs, o.attrs, "sm_90", tactic=tactic).kernels]


def prompt_kernels(model: str, precision: str, page_size: int = 32, **tactic: int) -> list[KernelSpec]:
    """Of prompts, in both languages or by what the tactic says; but for that of prompts beside decode attention."""
    specs = attention_kernels(model, precision, page_size, **tactic)
    return [s for s in specs if s.function in ("uncached_prefill_attention", "context_attention") and not s.constexprs.get("PROGRAMS")]


def decode_kernels() -> list[KernelSpec]:
    """Of decode attention: those in Triton, which sm_90 has where the kernels in CUDA C++ do not fit, and the persistent kernels."""
    by_triton = attention_kernels("llama-3.1-8b", "fp8", decode_cuda_to=0, decode_many_to=0)
    split = [s for s in by_triton if s.function == "reduce_splits" or s.constexprs.get("SPLIT")]
    whole = next(s for s in by_triton if s.function == "decode_attention" and not s.constexprs["CONCURRENT"] and not s.constexprs["SPLIT"])
    many = {"decode_cuda_to": 0, "decode_many_to": 128}
    shapes = (("llama-3.1-8b", "fp8"), ("gptj-6b", "fp8"), ("llama-3.1-8b", "bf16"))
    persistent = (s for shape in shapes for s in attention_kernels(*shape, **many) if s.function == "decode_attention_many")
    return [*split, whole, *(s for s in persistent if "i8" not in s.signature["Cache"])]


def int8_kernels(arch: str) -> list[KernelSpec]:
    """Those that no other precision has: each once, those in Triton that a shape chooses too (`test_int8.py` has more)."""
    models = [MODELS["llama-3.1-8b"], *([replace(MODELS["smollm2-135m"], hidden=584)] if arch == "sm_90" else [])]
    chosen: dict[str, KernelSpec] = {}
    for op in (op for model in models for op in ops_of(model, "int8")):
        if op.op == "linear" or (arch == "sm_80" and op.op.endswith("quantize_rows")):
            for spec in op.kernels(arch):
                if not spec.function.startswith(("skinny", "gemv")):
                    chosen.setdefault(spec.function, spec)
    return list(chosen.values())


def still_kernels(precision: str, arch: str) -> list[KernelSpec]:
    """What writes the cache where no dimension rotates."""
    still = ops_of(replace(MODELS["llama-3.1-8b"], rotary_dim=0), precision)
    writes = [op for op in still if op.op.startswith("rope_kv_write") and has_kernels(op.op, arch)]
    return [spec for op in writes for spec in op.kernels(arch) if "i8" not in spec.signature["Cache"]]


@cache
def representative(arch: str) -> list[KernelSpec]:
    """Each kernel once at the 8B's shapes in bf16 and, where there is fp8, in fp8; the attention family at the other head sizes too."""
    chosen = {}
    for precision in ("bf16",) if arch == "sm_80" else ("bf16", "fp8"):
        for spec in kernels_of("llama-3.1-8b", precision, arch).values():
            quantized = any(spec.constexprs.get(name) for name in ("SCALED", "SCALED_CACHE", "QUANTIZE"))
            kind = tuple(spec.constexprs.get(name) for name in ("SPLIT", "CONCURRENT", "PROGRAMS", "SAMPLED"))
            kind += (spec.is_cuda,)
            chosen.setdefault((spec.function, kind, quantized), spec)
        chosen |= {spec.key: spec for spec in still_kernels(precision, arch)}
        if arch == "sm_90":
            chosen |= {spec.key: spec for spec in (*skinny_kernels(precision), *gemv_kernels("llama-3.1-8b", precision))}
            chosen |= {spec.key: spec for spec in prompt_kernels("llama-3.1-8b", precision, uncached_prefill_cuda=0, context_cuda=0)}
    if arch == "sm_90":
        chosen |= {spec.key: spec for spec in decode_kernels()}
    chosen |= {spec.key: spec for spec in int8_kernels(arch)}
    others = [("gptj-6b", "bf16"), ("smollm2-135m", "fp16"), ("qwen3-8b", "bf16"), *([] if arch == "sm_80" else [("gptj-6b", "fp8")])]
    family = ("rope_kv_write", "context_attention", "uncached_prefill_attention", "decode_attention")
    for name, precision in others:
        rest = kernels_of(name, precision, arch, page_size=64).values()
        chosen |= {s.key: s for s in rest if s.function in family and not s.constexprs.get("SPLIT") and s.constexprs.get("SPLITS", 2) == 2}
    return list({s.key: s for s in chosen.values()}.values())


def all_kernels() -> set[str]:
    """Functions under `triton_kernels` that launches name: those with no underscore that no other kernel calls."""
    sources = [path.read_text() for path in aot.SOURCES.glob("*.py")]
    defined = {name for text in sources for name in re.findall(r"^@triton\.jit\ndef ([a-z]\w*)", text, re.MULTILINE)}
    return {name for name in defined if not any(re.search(rf"import .*\b{name}\b", text) for text in sources)}


@pytest.mark.parametrize("arch", _SHARED_LIMIT)
def test_every_kernel_is_among_those_compiled(arch: str) -> None:
    packed = {"widen", "widen_weight", "packed_few"}  # on Hopper of shapes that its own kernels do not take: test_packed_triton.py
    absent = {"sm_80": {"quantize", "widen", *_ONLY_HOPPER}, "sm_89": _ONLY_HOPPER, "sm_90": packed}[arch]
    assert {s.function for s in representative(arch) if not s.is_cuda} == all_kernels() - absent


_PARTS = {"sm_80": 2, "sm_89": 2, "sm_90": 8}
"""A test compiles one part of an architecture's kernels, so that none takes long."""


@pytest.mark.parametrize(("arch", "part"), [(arch, part) for arch, parts in _PARTS.items() for part in range(parts)])
def test_kernels_compile_without_spills_within_limits(arch: str, part: int) -> None:
    for spec in representative(arch)[part :: _PARTS[arch]]:
        info = aot.compile_kernel(spec, arch).info
        assert info.spill_bytes <= _SPILL_BYTES.get(spec.function, 0), (spec.function, spec.constexprs, info)
        assert info.shared_bytes <= _SHARED_LIMIT[arch], (spec.function, spec.constexprs, info)
        assert 0 < info.registers <= 255
        assert spec.constexprs.get("PDL", spec.is_cuda) == (arch == "sm_90")
        assert info.waits == (arch == "sm_90" and not spec.constexprs.get("CONCURRENT"))
        assert info.registers * info.num_warps * 32 <= 65536


@pytest.mark.parametrize(("cache", "pages"), [("fp8", 1), ("int8", 2)])
def test_page_numbers_a_step_ahead_leave_every_stage_to_keys_and_values(cache: str, pages: int) -> None:
    """Of four stages three are then in flight, in shared memory; without, one at most."""
    op = next(o for o in ops_of(MODELS["llama-3.1-8b"], "fp8") if o.op == "paged_attention" and o.inputs[1] and o.inputs[1].dtype == cache)
    tile = 2 * 32 * 128
    for ahead in (0, 1) if pages == 1 else (1,):
        tactic = {"decode_cuda_to": 0, "decode_many_to": 0, "decode_stages": 4, "decode_pages": pages, "decode_ahead": ahead}
        kernels = lower(op.op, op.inputs, op.outputs, op.attrs, "sm_90", tactic=tactic).kernels
        spec = next(one for one in kernels if one.function == "decode_attention" and one.constexprs.get("AHEAD") == ahead)
        info = aot.compile_kernel(spec, "sm_90").info
        assert info.spill_bytes == 0
        assert info.shared_bytes // (pages * tile) == (3 if ahead else 1)


def _gelu(arch: str = "sm_90") -> KernelSpec:
    shape = next(o for o in ops_of(replace(MODELS["smollm2-135m"], intermediate=512), "bf16") if o.op == "gelu")
    return shape.kernels(arch)[0]


def test_loads_are_128_bits_wide() -> None:
    assert "LDG.E.128" in opcodes([_gelu()])[0]


def wide_loads(code: list[str]) -> list[int]:
    """Where 128 bits are loaded, into whichever part of the caches."""
    return [index for index, op in enumerate(code) if re.fullmatch(r"LDG\.E(\.E[FL])?\.128(\.CONSTANT)?", op)]


_CONSTANT_LOADS = {
    "gemv": 4,
    "gemv_gate_up_silu": 4,
    "rms_norm": 2,
    "add_rms_norm": 2,
    "layer_norm": 4,
    "add_layer_norm": 4,
}
"""128-bit loads of a kernel before it waits, at least, at the 8B's shapes: two tiles of 32 bytes a thread; norm weights of 32."""
_WARPS_DIFFER = ("skinny_gemm", "row_scaled_gemm", "packed_gemm", "packed_gemm_pipelined", "packed_gemm_large", "decode_attention")
_WARPS_DIFFER += ("decode_attention_many", "decode_attention_even", "decode_attention_merge")
_LET_NEXT_START, _WAIT = "PREEXIT", "ACQBULK"
"""What griddepcontrol.launch_dependents and griddepcontrol.wait are in machine code."""


def test_hopper_kernels_let_the_next_start_then_load_constants_then_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the default tiles. Before the wait nothing branches (in CUDA C++ one thread makes barriers and asks for a descriptor), so
    the order of the text is that of every thread; what is loaded there, interpreted_pdl.py sees. Those in CUDA C++ whose warps go
    different ways are left out: test_skinny_gemm.py, test_decode_attention.py."""
    monkeypatch.setattr(tactics, "folder", lambda: tmp_path)
    waiting = [spec for spec in kernels_of("llama-3.1-8b", "fp8", "sm_90").values() if not spec.constexprs.get("CONCURRENT")]
    few = [*skinny_kernels("fp8"), *gemv_kernels("llama-3.1-8b", "fp8")]
    of_each = {(spec.function, spec.is_cuda): spec for spec in [*waiting, *few]}
    specs = [spec for (function, is_cuda), spec in of_each.items() if not (is_cuda and function in _WARPS_DIFFER)]
    for spec, code in zip(specs, opcodes(specs), strict=True):
        assert (code.count(_LET_NEXT_START), code.count(_WAIT)) == (1, 1), spec
        before, after = code[: code.index(_WAIT)], code[code.index(_WAIT) :]
        memory = [op for op in before if op == _LET_NEXT_START or re.match(r"LD|ST|UTMA|UBLK|RED|ATOM|BRA|CALL|EXIT|RET|BSSY", op)]
        memory = [op for op in memory if not re.match(r"LDC|LDS|STS", op)]  # a block's own
        if any("tensordesc" in kind for kind in spec.signature.values()) and spec.is_cuda:  # whose text the assembler arranges, too
            assert [op for op in memory if re.match(r"BSSY|BRA|UTMA", op)] == ["BSSY", "BRA", "UTMACCTL.PF"]
            memory = sorted((op for op in memory if not re.match(r"BSSY|BRA|UTMA", op)), key=_LET_NEXT_START.__ne__)
        assert memory[0] == _LET_NEXT_START, (spec, memory)
        assert all(op.startswith("LDG.E") for op in memory[1:]), (spec, memory)
        assert len(wide_loads(memory)) >= _CONSTANT_LOADS.get(spec.function, 0), (spec, memory)
        assert any(re.match(r"LDG|UTMALDG", op) for op in after), spec
        assert any(re.match(r"STG|UTMASTG|RED|ATOMG", op) for op in after), spec


@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_products_of_one_token_all_fit_the_chip(precision: str) -> None:
    """Of the 8B's shapes: 32 warps an SM, 16 where each SM has one program, 24 where rows are long and their loop is written out. Weights
    leave L2 first."""
    specs = gemv_kernels("llama-3.1-8b", precision)
    assert len(specs) >= 4
    for spec, code in zip(specs, opcodes(specs), strict=True):
        info = aot.compile_kernel(spec, "sm_90").info
        assert info.spill_bytes == 0
        long = spec.constexprs["K"] > 2 * spec.constexprs["COLS"]
        programs = 1 if spec.constexprs["ROWS"] == 32 else (24 if long else 32) // info.num_warps
        assert info.registers * 32 * info.num_warps * programs <= 65536, (spec, info)
        assert "LDG.E.EF.128" in code


def _in_cuda() -> list[KernelSpec]:
    """Whole prompts and continued ones: both head sizes, both element types and codes, with and without quantization; any group."""
    drawn = (("llama-3.1-8b", "bf16"), ("llama-2-7b", "fp16"), ("qwen3-8b", "fp8"), ("smollm2-135m", "fp16"), ("smollm2-135m", "fp8"))
    specs = [spec for model, precision in drawn for spec in prompt_kernels(model, precision) if spec.is_cuda]
    return list({spec.key: spec for spec in specs}.values())


def test_prompts_in_cuda_use_the_chip_as_planned() -> None:
    """The registers are those of a launch, before warpgroups exchange them. Products run many at a time: only groups of them are waited
    for, and the assembler has nothing to say of wgmma, of which it says where it had to put them one after another."""
    specs = _in_cuda()
    assert sorted(spec.function for spec in specs) == ["context_attention"] * 5 + ["uncached_prefill_attention"] * 5
    assert {(spec.constexprs["CODES"], spec.constexprs["D"]) for spec in specs if "CODES" in spec.constexprs} == {
        (False, 64), (False, 128), (True, 64), (True, 128)
    }  # fmt: skip
    for spec, code in zip(specs, opcodes(specs), strict=True):
        info, codes = aot.compile_kernel(spec, "sm_90").info, spec.constexprs.get("CODES", False)
        assert (info.registers, info.spill_bytes, info.num_warps, info.waits) == (168, 0, 12, True)
        tiles = (6 * 2 + 2 * codes) * 128 * spec.constexprs["D"]
        assert tiles < info.shared_bytes <= tiles + 1024
        products = [op for op in code if op.startswith("HGMMA.64x")]
        assert len(products) == spec.constexprs["D"] // 16 * 2 + 16
        assert sum(op.startswith("WARPGROUP.DEPBAR") for op in code) == 4
        assert sum(op.startswith("USETMAXREG") for op in code) == 2
        assert any(op.startswith("UBLKCP") for op in code) == codes
        _, _, said = nvrtc.compile_source(spec, "sm_90")
        assert "wgmma" not in said
        assert "setmaxnreg" not in said


def test_cuda_kernels_are_cached_apart_and_are_part_of_the_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRTLLM_BENCH_CACHE", str(tmp_path))
    spec = _in_cuda()[0]
    first = aot.compile_kernel(spec, "sm_90")
    assert first.info.entry.encode() in first.code
    assert (aot.cubin_folder("sm_90", cuda=True) / f"{spec.key}.cubin").is_file()
    assert aot.cubin_folder("sm_90", cuda=True) != aot.cubin_folder("sm_90")
    monkeypatch.setattr(nvrtc, "compile_source", lambda *_: pytest.fail("compiled again"))
    assert aot.compile_kernel(spec, "sm_90") == first
    assert {
        "uncached_prefill_attention.cu",
        "context_attention.cu",
        "attention.cuh",
        "hopper.cuh",
        "tiles.cuh",
        "uncached_prefill_attention.py",
    } <= aot.source_hashes().keys()


def test_cuda_errors_are_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = _in_cuda()[0]
    with pytest.raises(KernelError, match=r"does not compile for sm_90 .*SHARED_BYTES is what a launch asks for") as caught:
        aot.compile_kernel(replace(spec, constexprs={**spec.constexprs, "SHARED_BYTES": 1024}), "sm_90", cache=False)
    assert "\n" not in str(caught.value)
    with pytest.raises(KernelError, match="cannot be found"):
        aot.compile_kernel(replace(spec, function="nothing"), "sm_90", cache=False)
    with pytest.raises(KernelError, match="a row must be 128 bytes of fp8e4nv, i8, fp16, bf16"):
        nvrtc.tensor_descriptions(replace(spec, signature={"QKV": "tensordesc<fp32[128,32]>"}))
    bindings = nvrtc._bindings()

    def without_library() -> None:
        raise RuntimeError("no libnvrtc.so")

    with monkeypatch.context() as missing:
        missing.setattr(bindings, "nvrtcVersion", without_library)
        with pytest.raises(KernelError, match="python3 -m pip install nvidia-cuda-nvrtc"):
            aot.compile_kernel(spec, "sm_90", cache=False)
    monkeypatch.setitem(sys.modules, "cuda.bindings.nvrtc", None)
    monkeypatch.delattr("cuda.bindings.nvrtc", raising=False)
    with pytest.raises(KernelError, match="python3 -m pip install cuda-python"):
        aot.compile_kernel(spec, "sm_90", cache=False)


def test_cache_serves_what_was_compiled_and_mends_what_was_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRTLLM_BENCH_CACHE", str(tmp_path))
    spec = _gelu()
    first = aot.compile_kernel(spec, "sm_90")
    monkeypatch.setattr(aot, "_compile", lambda *_: pytest.fail("compiled again"))
    assert aot.compile_all([spec, spec], "sm_90") == {spec.key: first}
    monkeypatch.undo()
    monkeypatch.setenv("TRTLLM_BENCH_CACHE", str(tmp_path))
    (aot.cubin_folder("sm_90") / f"{spec.key}.json").write_text("{")
    assert aot.compile_kernel(spec, "sm_90") == first
    assert Cubin.load(aot.cubin_folder("sm_90"), spec.key) == first
    with pytest.raises(KernelError, match="cannot be read from"):
        Cubin.load(tmp_path, spec.key)


def test_what_the_cache_lacks_is_compiled_by_processes_beside_this_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRTLLM_BENCH_CACHE", str(tmp_path))
    spec = _gelu()
    wider = replace(spec, num_warps=2 * spec.num_warps)
    told: list[tuple[int, int]] = []
    with monkeypatch.context() as here:
        here.setattr(workers, "worker_count", lambda kernels: 1 if kernels == 2 else pytest.fail(f"{kernels} kernels"))
        here.setattr(aot, "_compile", lambda *_: pytest.fail("compiled here"))
        found = aot.compile_all([spec, wider, spec], "sm_90", lambda done, total: told.append((done, total)))
        assert {key: one.info.num_warps for key, one in found.items()} == {spec.key: spec.num_warps, wider.key: wider.num_warps}
    assert told == sorted(told)
    assert told[-1] == (2, 2)
    bad = replace(spec, constexprs={**spec.constexprs, "NONE": 1})
    monkeypatch.setattr(workers, "worker_count", lambda kernels: 1)
    with pytest.raises(KernelError, match="the specification gives"):
        aot.compile_all([bad], "sm_90")


def test_processes_are_started_where_many_kernels_meet_many_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    for cores, kernels, expected in ((2, 100, 0), (32, 7, 0), (32, 8, 4), (16, 54, 16), (32, 54, 27)):
        monkeypatch.setattr(workers.os, "sched_getaffinity", lambda _, cores=cores: range(cores))
        assert workers.worker_count(kernels) == expected


def test_key_changes_with_everything_that_changes_the_code() -> None:
    spec = _gelu()
    variants = [
        spec,
        replace(spec, num_warps=8),
        replace(spec, num_stages=5),
        replace(spec, aligned=()),
        replace(spec, signature={**spec.signature, "X": "*fp16"}),
        replace(spec, constexprs={**spec.constexprs, "BLOCK": 256}),
    ]
    assert len({s.key for s in variants}) == len(variants)


def test_compile_errors_are_one_sentence() -> None:
    spec = _gelu()
    with pytest.raises(KernelError, match="cannot be imported"):
        aot.compile_kernel(replace(spec, function="nothing"), "sm_90", cache=False)
    with pytest.raises(KernelError, match="takes"):
        aot.compile_kernel(replace(spec, constexprs={}), "sm_90", cache=False)
    with pytest.raises(KernelError, match="unknown architecture"):
        aot.compile_kernel(spec, "sm_7", cache=False)
    with pytest.raises(KernelError, match="does not compile") as caught:
        aot.compile_kernel(replace(spec, constexprs={**spec.constexprs, "BLOCK": 500}), "sm_90", cache=False)
    assert "\n" not in str(caught.value)


def test_driver_and_lowering_need_no_triton() -> None:
    code = (
        "import sys\n"
        "class Hidden:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] == 'triton': raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Hidden())\n"
        "import trtllm_kernels.launch.driver, trtllm_kernels.references, trtllm_kernels.lowering, trtllm_kernels.compile.cubin\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_lowering_needs_no_torch() -> None:
    code = (
        "import sys, trtllm_kernels.lowering, trtllm_kernels.compile.cubin, trtllm_kernels.dialect.expr; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_build_for_a_gpu_takes_its_tactics_and_falls_back_to_its_architectures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = next(o for o in ops_of(MODELS["llama-3.1-8b"], "bf16") if o.op == "paged_attention")
    key = tactics.key(shape.op, shape.inputs, shape.outputs, shape.attrs)
    monkeypatch.setattr(tactics, "folder", lambda: tmp_path)

    def write(name: str, warps: int) -> None:
        (tmp_path / f"{name}.json").write_text(
            json.dumps({"gpu": name, "arch": "sm_90", "tactics": {key: {"concurrent_decode_warps": warps}}})
        )

    def warps_on(gpu: str, arch: str = "sm_90") -> int:
        kernels = lower(shape.op, shape.inputs, shape.outputs, shape.attrs, arch, gpu=gpu).kernels
        return next(spec.num_warps for spec in kernels if spec.function == "decode_attention" and not spec.is_cuda)

    default = warps_on("", "sm_80")
    write("h100", default * 2)
    assert (warps_on("NVIDIA H200"), tactics.in_use("sm_90", "NVIDIA H200"), tactics.in_use("sm_80", "NVIDIA H200")) == (
        default * 2,
        "h100",
        "",
    )
    write("h200", default * 4)
    assert [warps_on(gpu) for gpu in ("NVIDIA H200", "h200", "NVIDIA H100 80GB HBM3", "")] == [default * 4] * 2 + [default * 2] * 2
    assert (warps_on("h200", "sm_80"), tactics.in_use("sm_90", "h200")) == (default, "h200")
    names = {"NVIDIA A100-SXM4-80GB": "a100", "NVIDIA L40S": "l40s", "NVIDIA GeForce RTX 4090": "4090", "NVIDIA GH200 480GB": "gh200"}
    assert {name: tactics.short_name(name) for name in names} == names
    tactics._load.cache_clear()


def test_recorded_tactic_overrides_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = next(o for o in ops_of(MODELS["llama-3.1-8b"], "bf16") if o.op == "paged_attention")
    key = tactics.key(shape.op, shape.inputs, shape.outputs, shape.attrs)
    monkeypatch.setattr(tactics, "folder", lambda: tmp_path)

    def warps(kernels: Iterable[KernelSpec]) -> int:
        return next(spec.num_warps for spec in kernels if spec.function == "decode_attention" and not spec.is_cuda)

    default = warps(shape.kernels("sm_90"))
    (tmp_path / "h100.json").write_text(json.dumps({"gpu": "test", "tactics": {key: {"concurrent_decode_warps": default * 2}}}))
    assert warps(shape.kernels("sm_90")) == default * 2
    assert warps(lower(shape.op, shape.inputs, shape.outputs, shape.attrs, "sm_90", tactic={}).kernels) == default
    tactics._load.cache_clear()
    (tmp_path / "h100.json").write_text("[]")
    with pytest.raises(KernelError, match=r"h100\.json is not readable"):
        shape.kernels("sm_90")
    tactics._load.cache_clear()
