"""Decode attention in CUDA C++: results by emulation."""

import pytest
import torch
from emulated import emulate_decode
from rotated_samples import rotated_sample

from samples import OUT_SCALE, BatchShape, code_steps, fp8_sample, int8_cache_sample, sample
from trtllm_kernels.compile.catalogue import MODELS, ops_of
from trtllm_kernels.dialect.expr import evaluate
from trtllm_kernels.dialect.model_shape import ModelShape
from trtllm_kernels.dialect.ops import OP_SPECS
from trtllm_kernels.dialect.specs import spec_of
from trtllm_kernels.dialect.types import TensorSpec, rounded_keys
from trtllm_kernels.launch.torch_ops import as_list
from trtllm_kernels.lowering import describe, lower, rotate_in_attention
from trtllm_kernels.references import OPS

GQA = ModelShape(heads=6, kv_heads=2, head_dim=128, rotary_dim=128, page_size=32)
MANY = {"decode_cuda_to": 0, "decode_many_to": 2048, "decode_short": 4096}
EVEN = {"decode_cuda_to": 0, "decode_short": 0}
CASES = {
    # a cluster of eight blocks, most of them with no page; pages go around
    "fp8": (GQA, (1, 33, 600), "fp8", {"decode_longer_one_warps": 1, "decode_longer_few_warps": 1}),
    # more pages than a warp looks up at once
    "fp8 unsplit": (GQA, (65, 1100), "fp8", {"decode_longer_one_splits": 1, "decode_longer_one_warps": 1}),
    "bf16": (
        ModelShape(heads=2, kv_heads=1, head_dim=128, rotary_dim=128, page_size=16),
        (17, 200),
        "bf16",
        {"decode_one_splits": 2, "decode_one_warps": 2},
    ),
    "int8": (
        ModelShape(heads=3, kv_heads=3, head_dim=64, rotary_dim=64, page_size=64),
        (64, 300),
        "int8",
        {"decode_one_splits": 4, "decode_one_warps": 1},
    ),
    "fp16": (
        ModelShape(heads=8, kv_heads=1, head_dim=64, rotary_dim=64, page_size=64),
        (64, 90),
        "fp16",
        {"decode_one_splits": 1, "decode_one_warps": 2},
    ),
    "head 256": (
        ModelShape(heads=1, kv_heads=1, head_dim=256, rotary_dim=64, page_size=32),
        (31, 140),
        "fp8",
        {"decode_one_splits": 2, "decode_one_warps": 2},
    ),
    "fp8, eight heads, 64 warps": (
        ModelShape(heads=8, kv_heads=1, head_dim=128, rotary_dim=128, page_size=32),
        (2100, 5),
        "fp8",
        {"decode_longer_one_splits": 8, "decode_longer_one_warps": 8, "decode_longer_one_stages": 2},
    ),
    # two blocks, so that warps take several items, whose pages follow each other in a ring; pages by more look-ups than one
    "many fp8": (GQA, (1, 33, 600, 32, 1100, 5), "fp8", MANY | {"decode_many_warps": 2, "decode_many_stages": 3}),
    "many bf16": (
        ModelShape(heads=8, kv_heads=1, head_dim=128, rotary_dim=128, page_size=16),
        (17, 1, 100, 16, 48),
        "bf16",
        MANY | {"decode_many_warps": 1, "decode_many_stages": 4},
    ),
    "many int8": (
        ModelShape(heads=3, kv_heads=3, head_dim=128, rotary_dim=128, page_size=64),
        (64, 210, 7),
        "int8",
        MANY | {"decode_many_warps": 2, "decode_many_stages": 2},
    ),
    "many head 256": (
        ModelShape(heads=1, kv_heads=1, head_dim=256, rotary_dim=64, page_size=32),
        (31, 140, 65),
        "fp8",
        MANY | {"decode_many_warps": 1, "decode_many_stages": 3},
    ),
    # a page of int8 codes in four parts, and more of them than page numbers looked up at once
    "many int8 in parts": (
        ModelShape(heads=3, kv_heads=1, head_dim=128, rotary_dim=128, page_size=64),
        (2100, 63, 64, 65, 1),
        "int8",
        MANY | {"decode_many_keys": 16, "decode_many_warps": 2, "decode_many_stages": 3},
    ),
    # a sequence of several blocks, and several of a warp
    "even fp8": (GQA, (1, 1500, 33, 2, 5, 600, 32, 64, 5, 7), "fp8", EVEN | {"decode_even_warps": 2, "decode_even_stages": 3}),
    "even bf16": (
        ModelShape(heads=8, kv_heads=1, head_dim=128, rotary_dim=128, page_size=16),
        (17, 1, 100, 16, 48),
        "bf16",
        EVEN | {"decode_even_warps": 4, "decode_even_stages": 2},
    ),
    "even int8 in parts": (
        ModelShape(heads=3, kv_heads=1, head_dim=128, rotary_dim=128, page_size=64),
        (2100, 63, 64, 65, 1),
        "int8",
        EVEN | {"decode_even_keys": 16, "decode_even_warps": 2, "decode_even_stages": 3},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_results_are_the_references(name: str) -> None:
    model, lengths, precision, tactic = CASES[name]
    batch = BatchShape(query_lens=(1,) * len(lengths), kv_lens=lengths, max_pages=max(lengths) // model.page_size + 1)
    if precision == "int8":
        named = int8_cache_sample("paged_attention", model, batch)
    else:
        named = fp8_sample("paged_attention", model, batch) if precision == "fp8" else sample("paged_attention", model, batch, precision)
    (expected,) = as_list(OPS["paged_attention"].reference(**named))
    y = torch.empty_like(expected)
    y.view(torch.uint8).fill_(0xFF)
    op = OPS["paged_attention"]
    inputs = [None if named[tensor] is None else spec_of(named[tensor]) for tensor in op.tensors]
    lowered = lower(op.name, inputs, [spec_of(y)], {attr: named[attr] for attr in op.attrs}, "sm_90", tactic=tactic)
    emulate_decode(lowered, named, y, len(lengths), blocks={"m": 2, "e": 5}.get(name[0]))
    if precision == "fp8":
        steps = code_steps(y, expected)
        assert float((steps > 0).float().mean()) < 0.05
        assert float((y.float() - expected.float())[steps > 1].abs().sum()) * OUT_SCALE < 2**-7
    else:
        torch.testing.assert_close(y, expected, rtol=2e-2, atol=4e-3)


HALVES = ModelShape(heads=6, kv_heads=2, head_dim=128, rotary_dim=128, page_size=32)
NEIGHBOURS = ModelShape(heads=2, kv_heads=2, head_dim=256, rotary_dim=64, interleaved=True, page_size=32)
ROTATED = {
    "fp8": (HALVES, "fp8", (1, 32, 65, 800)),
    "int8": (HALVES, "int8", (33, 300)),
    "bf16": (HALVES, "bf16", (16, 70)),
    "fp8 of neighbours": (NEIGHBOURS, "fp8", (1, 16, 17, 100)),
}


FORMS = {
    "few": ({f"decode_{size}_{name}": 2 for size in ("one", "longer_one") for name in ("splits", "warps")}, None),
    "many": (MANY | {"decode_many_warps": 2}, 1),
    "even": (EVEN | {"decode_even_warps": 2}, 3),
}


@pytest.mark.parametrize(
    ("name", "form"), [*((name, form) for name in ROTATED for form in ("few", "many")), ("fp8", "even"), ("fp8 of neighbours", "even")]
)
def test_rotated_queries_and_cached_rows_are_those_of_the_op_before(name: str, form: str) -> None:
    (model, precision, lengths), (tactic, blocks) = ROTATED[name], FORMS[form]
    case = rotated_sample(model, lengths, precision, tactic)
    y = torch.empty_like(case.expected)
    y.view(torch.uint8).fill_(0xFF)
    emulate_decode(case.attention, case.named, y, len(lengths), blocks=blocks)
    case.check_written(case.named)
    if precision == "fp8":
        assert float((code_steps(y, case.expected) > 0).float().mean()) < 0.05
    else:
        torch.testing.assert_close(y, case.expected, rtol=2e-2, atol=4e-3)


@pytest.mark.parametrize(
    ("precision", "pages", "keys", "more"),
    [
        ("bf16", 12, 384, "decode_attention_many"),
        ("bf16", 128, 1024, "decode_attention_many"),
        ("bf16", 128, 1025, "decode_attention_even"),
        ("bf16", 512, 4096, "decode_attention_even"),
        ("bf16", 512, 4097, "decode_attention_even"),
        ("fp8", 12, 384, "decode_attention_many"),
        ("fp8", 128, 1024, "decode_attention_many"),
        ("fp8", 128, 1025, "decode_attention_even"),
        ("fp8", 512, 4096, "decode_attention_even"),
        ("fp8", 512, 4097, "decode_attention_even"),
        ("fp8", 1024, 16385, "decode_attention_even"),
    ],
)
def test_a_step_decodes_by_one_kernel_and_rotates_each_token_once(precision: str, pages: int, keys: int, more: str) -> None:
    """Few sequences by the kernel that divides them; very few where the step's longest sequence (`keys`) is very long. More by a persistent
    one: that with equal shares, which another kernel merges, where the longest is long. These rotate. Those beside many prompts decode by
    Triton's kernel after `rope_kv_write`."""
    calls, table = {}, TensorSpec((257, pages), "int32")
    for one in [*ops_of(MODELS["llama-3.1-8b"], precision)][::-1]:
        names = [*OP_SPECS[one.op].tensors][: len(one.inputs)]
        rope = one.op == "rope_kv_write"
        if rope or one.op == "paged_attention":
            calls[one.op] = describe(
                one.op,
                [table if name == "block_table" else spec for name, spec in zip(names, one.inputs, strict=True)],
                one.outputs,
                one.attrs,
                "sm_90",
                tactic={},
                input_names=["rotated" if name == "qkv" and not rope else name for name in names],
                output_names=["rotated" if rope else "out0"],
                in_place=rope,
            )
    both = rotate_in_attention(calls["rope_kv_write"], calls["paged_attention"])
    assert both is not None
    function = {spec.key: spec.function for spec in both[1].kernels if spec.is_cuda}
    for decodes in (0, 1, 2, 3, 8, 9, 33, 34, 66, 67, 132, 133, 2048):
        for prompts in (0, 1, 20):
            symbols = {"T": decodes + 40 * prompts, "R": decodes + prompts, "D": decodes, "S": decodes + prompts, "C": 0}
            symbols["L"] = rounded_keys(keys) if decodes else 0
            (launch,), (block,) = both[0].launches, (spec.constexprs["BLOCK_T"] for spec in both[0].kernels)
            first, end = (evaluate(arg.value, symbols) for arg in launch.args if arg.kind == "i32")
            assert max(0, evaluate(launch.grid[0], symbols)) == -(-(end - first) // block)
            rotated = end - first
            running = [one for one in both[1].launches if min(evaluate(dim, symbols) for dim in one.grid) > 0]
            decoding = [one for one in running if one.kernel.startswith("decode_attention")]
            expected = "decode_attention" if decodes <= (66 if keys <= 4096 else 8 if keys <= 16384 else 0) else more
            own = decodes > 0 and not (prompts and decodes >= 66)
            merges = ["decode_attention_merge"] * (expected == "decode_attention_even")
            assert [function.get(launch.kernel) for launch in decoding] == ([expected, *merges] if own else [None] * (decodes > 0))
            assert (first, rotated) == ((decodes if own else 0), symbols["T"] - (decodes if own else 0))


@pytest.mark.parametrize(("precision", "sequences", "size"), [("fp8", 1, "one"), ("bf16", 8, "few")])
def test_a_tile_tuned_for_few_keys_does_not_serve_many(precision: str, sequences: int, size: str) -> None:
    attention = next(one for one in ops_of(MODELS["llama-3.1-8b"], precision) if one.op == "paged_attention")
    names = [*OP_SPECS["paged_attention"].tensors][: len(attention.inputs)]
    table = TensorSpec((257, 512), "int32")
    inputs = [table if name == "block_table" else spec for name, spec in zip(names, attention.inputs, strict=True)]
    lowered = lower("paged_attention", inputs, attention.outputs, attention.attrs, "sm_90", tactic={f"decode_{size}_splits": 4})

    def splits(keys: int) -> int:
        symbols = {"T": sequences, "R": sequences, "D": sequences, "S": sequences, "C": 0, "L": rounded_keys(keys)}
        (launch,) = (one for one in lowered.launches if min(evaluate(dim, symbols) for dim in one.grid) > 0)
        return next(one for one in lowered.kernels if one.key == launch.kernel).constexprs["SPLITS"]

    assert [splits(keys) for keys in (200, 512, 513, 4096, 8192)] == [4, 4, 8, 8, 8]
