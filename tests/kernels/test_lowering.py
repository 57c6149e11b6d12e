"""Lowerings as data: grids cover what they must, names and schemas agree, and what cannot be lowered is refused by one sentence."""

import json
from dataclasses import asdict, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

import trtllm_kernels.references
from trtllm_kernels.compile.catalogue import MODELS, ops_of
from trtllm_kernels.dialect.dtypes import least_capability
from trtllm_kernels.dialect.expr import evaluate
from trtllm_kernels.dialect.model_shape import ModelShape
from trtllm_kernels.dialect.ops import OP_SPECS
from trtllm_kernels.dialect.types import Lowered, TensorSpec, rounded_keys
from trtllm_kernels.errors import KernelError
from trtllm_kernels.lowering import LOWERINGS, lower, search_space
from trtllm_kernels.lowering.call import OpCall, capability
from trtllm_kernels.tactics import GPU_OF_ARCH
from trtllm_results.gpus import SHEETS


def attention(model: ModelShape, max_seq_len: int = 4096, **tactic: int) -> Lowered:
    shape = next(o for o in ops_of(model, "bf16", max_seq_len=max_seq_len) if o.op == "paged_attention")
    return lower(shape.op, shape.inputs, shape.outputs, shape.attrs, "sm_90", tactic=tactic)


def test_every_op_but_dense_attention_lowers() -> None:
    assert LOWERINGS.keys() | {"attention"} == OP_SPECS.keys() == trtllm_kernels.references.OPS.keys()


def test_what_works_in_place_is_said_of_arguments_and_nothing_else_is_lowered_so() -> None:
    in_place = {"linear": "residual", "rope_kv_write": "qkv", "rope_kv_write_quantize": "qkv", "send": "x"}
    assert {name: spec.in_place for name, spec in OP_SPECS.items() if spec.in_place} == in_place
    x, w = TensorSpec(("T", 48), "bf16"), TensorSpec((48,), "bf16")
    with pytest.raises(KernelError, match="op rms_norm has no launches that work in place; those that have: send, linear, rope_kv_write"):
        lower("rms_norm", [x, w], [x], {"eps": 1e-5}, "sm_90", in_place=True)


def test_catalogue_covers_the_dialect() -> None:
    covered = {op.op for op in ops_of(MODELS["llama-3.1-8b"], "fp8")}
    assert covered | {"attention"} == set(trtllm_kernels.references.OPS)


@pytest.mark.parametrize("precision", ["bf16", "fp8"])
@pytest.mark.parametrize("model", MODELS)
def test_launches_are_json_and_match_their_kernels(model: str, precision: str) -> None:
    for op in ops_of(MODELS[model], precision):
        lowered = lower(op.op, op.inputs, op.outputs, op.attrs, "sm_90", output_names=[f"{op.op}.{i}" for i in range(len(op.outputs))])
        json.dumps(asdict(lowered))
        kernels = {spec.key: spec for spec in lowered.kernels}
        names = {*OP_SPECS[op.op].tensors, *(f"{op.op}.{i}" for i in range(len(op.outputs))), *lowered.workspaces}
        for launch in lowered.launches:
            assert launch.library or len(launch.args) == len(kernels[launch.kernel].signature)
            assert {arg.value for arg in launch.args if arg.kind in ("tensor", "tma")} <= names
        assert all(name.startswith(f"{op.op}.0:") for name in lowered.workspaces)


@given(
    decodes=st.integers(0, 5000),
    kv_heads=st.sampled_from([1, 2, 3, 8, 32]),
    group=st.sampled_from([1, 4]),
    max_seq_len=st.integers(32, 140_000),
)
def test_decode_runs_once_and_its_scratch_is_large_enough(decodes: int, kv_heads: int, group: int, max_seq_len: int) -> None:
    lowered = attention(ModelShape(heads=kv_heads * group, kv_heads=kv_heads), max_seq_len)
    symbols = {"T": decodes, "R": decodes, "D": decodes, "S": decodes, "C": 0, "L": rounded_keys(max_seq_len) if decodes else 0}
    grids = [tuple(evaluate(dim, symbols) for dim in launch.grid) for launch in lowered.launches]
    running = [i for i, grid in enumerate(grids[:-1]) if min(grid) > 0]
    assert min(grids[-1]) <= 0
    assert running in ([], [0], [1, 2])
    assert bool(running) == (decodes > 0)
    if running == [1, 2]:
        splits = grids[1][2]
        assert splits > 1
        assert grids[2][0] == decodes * kv_heads * group
        for workspace in lowered.workspaces.values():
            assert evaluate(workspace.shape[0], symbols) >= decodes * kv_heads * group * splits
    for workspace in lowered.workspaces.values():
        sizes = [evaluate(workspace.shape[0], {"D": d}) for d in range(0, decodes + 1, max(1, decodes // 7))]
        assert sizes == sorted(sizes)


@given(st.integers(0, 40), st.lists(st.integers(1, 300), max_size=20), st.sampled_from([1, 3, 4, 7]))
def test_context_tiles_cover_every_query_once(decodes: int, query_lens: list[int], group: int) -> None:
    lowered = attention(ModelShape(heads=2 * group, kv_heads=2))
    starts = [0]
    for n in [*([1] * decodes), *query_lens]:
        starts.append(starts[-1] + n)
    tokens, sequences = starts[-1], len(starts) - 1
    grid = [evaluate(dim, {"T": tokens, "R": sequences, "D": decodes, "C": 1}) for dim in lowered.launches[-1].grid]
    block_q = 128 // group
    seen: list[tuple[int, int]] = []
    for tile in range(max(0, grid[0])):
        owner = max(s for s in range(decodes, sequences) if (starts[s] - decodes) // block_q + s - decodes <= tile)
        first = (tile - ((starts[owner] - decodes) // block_q + owner - decodes)) * block_q
        seen += [(owner, q) for q in range(first, min(first + block_q, starts[owner + 1] - starts[owner]))]
    assert sorted(seen) == [(decodes + i, q) for i, n in enumerate(query_lens) for q in range(n)]


@given(st.integers(0, 40), st.lists(st.tuples(st.integers(1, 300), st.sampled_from([0, 1, 500])), max_size=8))
def test_context_kernels_run_only_where_a_step_has_work_for_them(decodes: int, chunks: list[tuple[int, int]]) -> None:
    """`chunks` are (tokens, tokens before them): prompts begun in this step are one kernel's, continued ones the other's."""
    tokens, sequences = decodes + sum(query for query, _ in chunks), decodes + len(chunks)
    begun, continued = sum(past == 0 for _, past in chunks), sum(past > 0 for _, past in chunks)
    symbols = {"T": tokens, "R": sequences, "D": decodes, "S": sequences, "C": continued, "L": 0}

    def running(lowered: Lowered) -> set[str]:
        names = {launch.kernel.rpartition("-")[0] for launch in lowered.launches if min(evaluate(d, symbols) for d in launch.grid) > 0}
        return {name for name in names if name.startswith(("uncached_prefill_", "context_"))}

    expected = {*(["uncached_prefill_attention"] if begun else []), *(["context_attention"] if continued else [])}
    assert running(attention(ModelShape(head_dim=64))) == expected
    assert running(attention_on("sm_80")) == ({"context_attention"} if chunks else set())


def prompts_in_cuda(lowered: Lowered) -> bool:
    """Whether `uncached_prefill_attention` of prompts alone is the one in CUDA C++."""
    (alone,) = (k for k in lowered.kernels if k.function == "uncached_prefill_attention" and not k.constexprs.get("PROGRAMS"))
    return alone.is_cuda


def chunks_in_cuda(lowered: Lowered) -> bool:
    (kernel,) = (k for k in lowered.kernels if k.function == "context_attention")
    return kernel.is_cuda


def test_continued_prompts_go_to_cuda_where_it_has_a_kernel() -> None:
    def fits(precision: str = "bf16", arch: str = "sm_90", tactic: dict[str, int] | None = None, **shape: int) -> bool:
        op = next(o for o in ops_of(ModelShape(**shape), precision) if o.op == "paged_attention")
        return chunks_in_cuda(lower(op.op, op.inputs, op.outputs, op.attrs, arch, tactic=tactic or {}))

    for precision in ("bf16", "fp16", "fp8"):
        assert all(fits(precision, head_dim=d, page_size=page) for d in (64, 128) for page in (16, 32, 64, 128))
        assert not fits(precision, head_dim=256)
        assert not fits(precision, head_dim=128, tactic={"context_cuda": 0})
    assert not fits(arch="sm_89", head_dim=128)
    shape = next(o for o in ops_of(ModelShape(head_dim=128), "fp8") if o.op == "paged_attention")
    choice = next(c for c in search_space(shape.op, shape.inputs, shape.outputs, shape.attrs, "sm_90") if c.name == "context chunks")
    assert {"context_cuda": 0, "context_block_m": 128, "context_block_n": 64, "context_warps": 8, "context_stages": 2} in choice.candidates
    assert not any(fits("fp8", head_dim=128, tactic=dict(tactic)) for tactic in choice.candidates)


def test_prompts_go_to_cuda_where_it_has_a_kernel_and_tuning_may_choose_triton() -> None:
    assert all(prompts_in_cuda(attention(ModelShape(head_dim=d))) for d in (64, 128))
    assert not prompts_in_cuda(attention(ModelShape(head_dim=256)))
    assert not prompts_in_cuda(attention(ModelShape(head_dim=256), uncached_prefill_cuda=1))
    assert not prompts_in_cuda(attention(ModelShape(head_dim=128), uncached_prefill_cuda=0))
    shape = next(o for o in ops_of(ModelShape(head_dim=128), "bf16") if o.op == "paged_attention")
    choice = next(c for c in search_space(shape.op, shape.inputs, shape.outputs, shape.attrs, "sm_90") if c.name == "uncached prefill")
    assert len(choice.candidates) > 1
    assert not any(prompts_in_cuda(attention(ModelShape(head_dim=128), **tactic)) for tactic in choice.candidates)


@given(st.integers(0, 600), st.lists(st.integers(1, 3000), max_size=9))
def test_prompts_in_cuda_have_a_block_for_each_tile_and_one_an_sm_at_most(decodes: int, prompts: list[int]) -> None:
    lowered = attention(ModelShape(heads=4, kv_heads=2, head_dim=128), concurrent_tokens=0)
    (launch,) = (launch for launch in lowered.launches if launch.kernel.startswith("uncached_prefill_attention"))
    tokens, sequences = decodes + sum(prompts), decodes + len(prompts)
    symbols = {"T": tokens, "R": sequences, "D": decodes, "S": sequences, "C": 0, "L": 0}
    blocks, *rest = (evaluate(dim, symbols) for dim in launch.grid)
    assert rest == [1, 1]
    assert min(132, sum(-(-n // 128) for n in prompts) * 4) <= blocks <= 132


@given(st.integers(0, 600), st.lists(st.tuples(st.integers(1, 3000), st.booleans()), max_size=4), st.integers(1, 4096))
def test_decoding_runs_beside_prompts_where_it_takes_longer(decodes: int, prompts: list[tuple[int, bool]], longest: int) -> None:
    """Each part of a step runs once: the pair in the pair's place and nowhere else. `prompts` are (tokens, whether continued)."""
    lowered = attention(ModelShape(heads=32, kv_heads=8, head_dim=128), 4096)
    tokens, sequences = decodes + sum(n for n, _ in prompts), decodes + len(prompts)
    continued = sum(past for _, past in prompts)
    symbols = {"T": tokens, "R": sequences, "D": decodes, "S": sequences, "C": continued, "L": rounded_keys(longest)}
    running = [launch for launch in lowered.launches if min(evaluate(dim, symbols) for dim in launch.grid) > 0]
    names = [launch.kernel.rpartition("-")[0] for launch in running]
    assert names.count("uncached_prefill_attention") == (len(prompts) > continued)
    assert sum(name.startswith("decode_attention") and name != "decode_attention_merge" for name in names) == (decodes > 0)
    pair = [i for i, launch in enumerate(running) if launch.concurrent]
    assert bool(pair) == (len(prompts) > continued and decodes >= 66 and 32 * decodes >= tokens - decodes)
    if pair:
        assert pair == [len(running) - 1]
        assert names[-2:] == ["uncached_prefill_attention", "decode_attention"]
        grid = tuple(evaluate(dim, symbols) for dim in running[-2].grid)
        assert grid[0] <= 132
        assert grid[1:] == (1, 1)
        assert tuple(evaluate(dim, symbols) for dim in running[-1].grid) == (8, decodes, 1)


def test_refusals_name_the_matter() -> None:
    x, w = TensorSpec(("T", 48), "bf16"), TensorSpec((48,), "bf16")
    with pytest.raises(KernelError, match="no GPU lowering"):
        lower("attention", [x], [x], {}, "sm_90")
    with pytest.raises(KernelError, match="unknown architecture 'sm_75'"):
        attention_on("sm_75")
    with pytest.raises(KernelError, match="must be a number at build time"):
        lower("rms_norm", [x, TensorSpec(("T",), "bf16")], [x], {"eps": 1e-5}, "sm_90")
    with pytest.raises(KernelError, match="'eps' must be a number"):
        lower("rms_norm", [x, w], [x], {}, "sm_90")
    with pytest.raises(KernelError, match="needs its argument 'weight'"):
        lower("rms_norm", [x, None], [x], {"eps": 1e-5}, "sm_90")
    with pytest.raises(KernelError, match="tactic of rms_norm sets \\['wraps'\\]"):
        lower("rms_norm", [x, w], [x], {"eps": 1e-5}, "sm_90", tactic={"wraps": 4})
    with pytest.raises(KernelError, match="head dimension must be a power of two"):
        attention(ModelShape(head_dim=80))
    with pytest.raises(KernelError, match="cannot be grouped"):
        attention(ModelShape(heads=5, kv_heads=2))


def attention_on(arch: str) -> Lowered:
    shape = next(o for o in ops_of(ModelShape(), "bf16") if o.op == "paged_attention")
    return lower(shape.op, shape.inputs, shape.outputs, shape.attrs, arch)


def test_linear_is_a_library_call_with_rows_in_its_grid() -> None:
    x, w, y = TensorSpec(("S", 48), "bf16"), TensorSpec((96, 48), "bf16"), TensorSpec(("S", 96), "bf16")
    (launch,) = lower("linear", [x, w, None], [y], {}, "sm_90", input_names=["a", "b", ""], output_names=["c"]).launches
    assert (launch.library, launch.grid, [arg.value for arg in launch.args]) == ("matmul", ("S", 96, 48), ["a", "b", "c"])


def test_a_tactic_chooses_cublaslts_algorithm_by_the_number_of_tokens() -> None:
    x, weight, y = TensorSpec(("T", 576), "bf16"), TensorSpec((512, 576), "bf16"), TensorSpec(("T", 512), "bf16")
    plain = lower("linear", [x, weight], [y], {}, "sm_90").launches[-1]
    launch = lower("linear", [x, weight], [y], {}, "sm_90", tactic={"lt_64": 2, "lt_512": 3, "cublaslt": 131000}).launches[-1]
    assert launch.args[: len(plain.args)] == plain.args
    rank, asked, version = launch.args[len(plain.args) :]
    assert {arg.kind for arg in (rank, asked, version)} == {"i32"}
    assert version.value == 131000
    sizes = [{**dict.fromkeys("RDSC", 1), "T": t} for t in (1, 64, 65, 256, 257, 512, 513)]
    found = {size["T"]: tuple(evaluate(arg.value, size) for arg in (rank, asked)) for size in sizes}
    assert found == {1: (2, 64), 64: (2, 64), 65: (0, 0), 256: (0, 0), 257: (3, 512), 512: (3, 512), 513: (0, 0)}
    fixed = lower("linear", [replace(x, shape=(300, 576)), weight], [replace(y, shape=(300, 512))], {}, "sm_90", tactic={"lt_512": 3})
    assert [evaluate(arg.value, {}) for arg in fixed.launches[-1].args[-3:]] == [3, 512, 0]


@pytest.mark.parametrize(("arch", "gpu"), GPU_OF_ARCH.items())
def test_grids_are_for_the_sms_of_the_architectures_gpu(arch: str, gpu: str) -> None:
    """The kernels and the data sheets, which know nothing of each other, say the same of a GPU."""
    assert (arch, OpCall("add", {}, (), {}, arch, {}).sm_count) == (SHEETS[gpu].arch, SHEETS[gpu].sms)
    assert (least_capability("fp8") <= capability(arch)) == ("fp8" in SHEETS[gpu].flops_per_s)
