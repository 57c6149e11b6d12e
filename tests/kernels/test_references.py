"""The dialect's references against formulas written independently: torch.nn.functional, transformers, and loops over sequences."""

import pytest
import torch
from torch.nn import functional

import trtllm_kernels.references
from samples import QUANTIZABLE, Alone, BatchShape, Echo, fp8_sample, int8_cache_sample, sample
from trtllm_kernels.dialect.model_shape import ModelShape
from trtllm_kernels.dialect.ops import OP_SPECS
from trtllm_kernels.dialect.types import KEY_BLOCK
from trtllm_kernels.errors import KernelError
from trtllm_kernels.launch.torch_ops import as_list, execute
from trtllm_kernels.references.communication import communicate, connect
from trtllm_kernels.references.quantize import FP8

OPS = torch.ops.trtllm
ALL_OPS = """add add_layer_norm add_layer_norm_quantize_rows add_rms_norm add_rms_norm_quantize_rows all_reduce all_reduce_add
all_reduce_add_rms_norm arrange_columns attention embedding gate_up_silu gather_rows gelu gelu_quantize_rows layer_norm
layer_norm_quantize_rows linear linear_gelu linear_sample paged_attention prepare_step quantize quantize_rows receive rms_norm
rms_norm_quantize_rows rope rope_kv_write rope_kv_write_quantize send sharded_linear_sample silu_mul silu_mul_packed
silu_mul_packed_quantize_rows split"""
BATCH = BatchShape(query_lens=(1, 1, 5, 40), kv_lens=(1, 77, 5, 70), max_pages=3)
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def randn(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape).to(dtype)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_dialect_is_the_documented_table() -> None:
    assert sorted(trtllm_kernels.references.OPS) == ALL_OPS.split()
    assert trtllm_kernels.references.OPS["rope_kv_write"].mutates == ("kv_cache", "kv_scales")


@pytest.mark.parametrize("dtype", DTYPES)
def test_norms_round_a_double_precision_result_once(dtype: torch.dtype) -> None:
    x, w, b = randn(5, 96, dtype=dtype), randn(96, dtype=dtype), randn(96, dtype=dtype)
    expected = functional.rms_norm(x.double(), (96,), w.double(), 1e-5)
    torch.testing.assert_close(OPS.rms_norm(x, w, 1e-5), expected.to(dtype))
    grouped = functional.rms_norm(x.double().view(5, 3, 32), (32,), w[:32].double(), 1e-5).view(5, 96)
    torch.testing.assert_close(OPS.rms_norm(x, w[:32], 1e-5), grouped.to(dtype))
    torch.testing.assert_close(
        OPS.layer_norm(x, w, b, 1e-5), functional.layer_norm(x.double(), (96,), w.double(), b.double(), 1e-5).to(dtype)
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_fused_add_norms_are_bitwise_the_two_ops(dtype: torch.dtype) -> None:
    x, r, y, w, b = (randn(*s, dtype=dtype) for s in ((7, 64), (7, 64), (7, 64), (64,), (64,)))
    for addend, total in ((None, OPS.add(x, r)), (y, OPS.add(OPS.add(x, y), r))):
        for fused, normed in ((OPS.add_rms_norm(x, r, w, 1e-6, addend), OPS.rms_norm(total, w, 1e-6)),
                              (OPS.add_layer_norm(x, r, w, b, 1e-6, addend), OPS.layer_norm(total, w, b, 1e-6))):  # fmt: skip
            assert torch.equal(fused[0], normed)
            assert torch.equal(fused[1], total)


@pytest.mark.parametrize("dtype", DTYPES)
def test_activations(dtype: torch.dtype) -> None:
    gate_up = randn(3, 40, dtype=dtype) * 4
    gate, up = gate_up[:, :20], gate_up[:, 20:]
    expected = (gate.double() / (1 + torch.exp(-gate.double())) * up.double()).to(dtype)
    torch.testing.assert_close(OPS.silu_mul(gate.contiguous(), up.contiguous()), expected)
    torch.testing.assert_close(OPS.silu_mul_packed(gate_up), expected)
    x = gate_up.double()
    tanh_form = 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))
    torch.testing.assert_close(OPS.gelu(gate_up), tanh_form.to(dtype))


def test_linear_split_and_gathers() -> None:
    x, w, b = randn(4, 8), randn(12, 8), randn(12)
    torch.testing.assert_close(OPS.linear(x, w), x @ w.T)
    torch.testing.assert_close(OPS.linear(x, w, b), x @ w.T + b)
    parts = OPS.split(x, [2, 5, 1])
    assert torch.equal(torch.cat(parts, 1), x)
    assert all(p.is_contiguous() for p in parts)
    whole = OPS.split(x, [8])[0]
    assert whole.data_ptr() != x.data_ptr()
    ids = torch.tensor([3, 0, 3], dtype=torch.int32)
    assert torch.equal(OPS.embedding(ids, w), torch.stack([w[3], w[0], w[3]]))
    assert torch.equal(OPS.gather_rows(w, ids), torch.stack([w[3], w[0], w[3]]))


def cos_sin_table(positions: int, rotary_dim: int, theta: float = 10000.0) -> torch.Tensor:
    inverse = theta ** -(torch.arange(0, rotary_dim, 2, dtype=torch.float64) / rotary_dim)
    angles = torch.arange(positions, dtype=torch.float64)[:, None] * inverse
    return torch.cat((angles.cos(), angles.sin()), -1).float()


def test_rope_half_split_is_transformers_llama() -> None:
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    table, positions = cos_sin_table(50, 16), torch.tensor([0, 7, 49, 7], dtype=torch.int32)
    q, k = randn(4, 3 * 16), randn(4, 2 * 16)
    cos, sin = (torch.cat((half, half), -1)[None] for half in table[positions].chunk(2, -1))
    expected_q, expected_k = apply_rotary_pos_emb(q.view(1, 4, 3, 16).transpose(1, 2), k.view(1, 4, 2, 16).transpose(1, 2), cos, sin)
    torch.testing.assert_close(OPS.rope(q, positions, table, 16, False), expected_q.transpose(1, 2).reshape(4, 48))
    torch.testing.assert_close(OPS.rope(k, positions, table, 16, False), expected_k.transpose(1, 2).reshape(4, 32))


def test_rope_interleaved_partial_is_transformers_gptj() -> None:
    from transformers.models.gptj.modeling_gptj import apply_rotary_pos_emb

    table, positions = cos_sin_table(50, 8), torch.tensor([0, 7, 49], dtype=torch.int32)
    x = randn(3, 2 * 32).view(1, 3, 2, 32)
    cos, sin = table[positions][None].chunk(2, -1)
    expected = torch.cat((apply_rotary_pos_emb(x[..., :8], sin, cos), x[..., 8:]), -1)
    torch.testing.assert_close(OPS.rope(x.reshape(3, 64), positions, table, 32, True), expected.reshape(3, 64))


def test_attention_is_sdpa_of_each_sequence() -> None:
    q, k, v = randn(9, 4 * 8), randn(9, 2 * 8), randn(9, 2 * 8)
    out = OPS.attention(q, k, v, torch.tensor([0, 4, 4, 9], dtype=torch.int32), 4, 2, 0.3)
    for begin, end in ((0, 4), (4, 9)):
        n = end - begin
        heads = [t[begin:end].view(n, -1, 8).transpose(0, 1).repeat_interleave(r, 0) for t, r in ((q, 1), (k, 2), (v, 2))]
        expected = functional.scaled_dot_product_attention(*heads, is_causal=True, scale=0.3)
        torch.testing.assert_close(out[begin:end], expected.transpose(0, 1).reshape(n, 32))


def test_prepare_step_follows_its_definition() -> None:
    query_lens, kv_lens, slots = [1, 1, 3, 5], [9, 4, 3, 12], [2, 0, 3, 1]
    block_table = torch.randint(1, 40, (5, 4), dtype=torch.int32)
    last = torch.tensor([100, 101, 102, 103, 0], dtype=torch.int32)
    start = torch.tensor([0, 1, 2, 5, 10], dtype=torch.int32)
    context = torch.tensor([-1, -1, 11, 12, 13, 21, 22, 23, 24, 25, 77, -1], dtype=torch.int32)
    as_int = lambda values: torch.tensor(values, dtype=torch.int32)  # noqa: E731
    ids, positions, kv_slots = OPS.prepare_step(context, as_int(slots), start, as_int(kv_lens), last, block_table, 4)
    token = 0
    for r in range(4):
        for i in range(query_lens[r]):
            position = kv_lens[r] - query_lens[r] + i
            assert positions[token] == position
            assert ids[token] == (context[token] if context[token] >= 0 else last[slots[r]])
            assert kv_slots[token] == block_table[slots[r], position // 4] * 4 + position % 4
            token += 1
    for tensor in (ids, positions, kv_slots):
        assert tensor.dtype == torch.int32
        assert tensor[10:].tolist() == [0, 0]


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize(("interleaved", "rotary_dim"), [(False, 16), (True, 8)])
def test_rope_kv_write_is_norm_rope_and_scatter(qk_norm: bool, interleaved: bool, rotary_dim: int) -> None:
    tokens, heads, kv_heads, dim, page = 6, 4, 2, 16, 4
    qkv, table = randn(tokens, (heads + 2 * kv_heads) * dim), cos_sin_table(30, rotary_dim)
    positions = torch.tensor([5, 0, 1, 2, 3, 29], dtype=torch.int32)
    slots = torch.tensor([13, 4, 5, 6, 7, 8], dtype=torch.int32)
    norms = (randn(dim), randn(dim)) if qk_norm else (None, None)
    cache = randn(2, 5, 2, kv_heads, page, dim)
    before = cache.clone()
    rotated = OPS.rope_kv_write(qkv, positions, table, cache, slots, *norms, 1, heads, kv_heads, dim, interleaved, 1e-6)
    parts = OPS.split(qkv, [heads * dim, kv_heads * dim, kv_heads * dim])
    if qk_norm:
        parts = [OPS.rms_norm(parts[0], norms[0], 1e-6), OPS.rms_norm(parts[1], norms[1], 1e-6), parts[2]]
    queries, keys = (OPS.rope(part, positions, table, dim, interleaved) for part in parts[:2])
    torch.testing.assert_close(rotated, torch.cat((queries, keys, parts[2]), -1))
    for t, slot in enumerate(slots.tolist()):
        before[1, slot // page, 0, :, slot % page] = keys[t].view(kv_heads, dim)
        before[1, slot // page, 1, :, slot % page] = parts[2][t].view(kv_heads, dim)
    torch.testing.assert_close(cache, before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2)])
def test_paged_attention_is_attention_over_the_gathered_history(dtype: torch.dtype, heads: int, kv_heads: int) -> None:
    dim, page, scale = 16, 4, 0.25
    kv_lens, query_lens = [1, 4, 5, 13, 7, 6, 9], [1, 1, 1, 1, 7, 2, 1]
    history = [randn(n, 2, kv_heads, dim, dtype=dtype) for n in kv_lens]
    slots = torch.randperm(9)[: len(kv_lens)].int()
    table = torch.full((9, 4), 10**6, dtype=torch.int32)
    free = iter((torch.randperm(40) + 1).tolist())
    cache = torch.full((2, 41, 2, kv_heads, page, dim), torch.nan, dtype=dtype)
    for slot, kv in zip(slots.tolist(), history, strict=True):
        for start in range(0, len(kv), page):
            table[slot, start // page] = number = next(free)
            part = kv[start : start + page]
            cache[1, number, :, :, : len(part)] = part.permute(1, 2, 0, 3)
    starts = torch.tensor([0, *torch.tensor(query_lens).cumsum(0).tolist()], dtype=torch.int32)
    q = randn(int(starts[-1]), heads * dim, dtype=dtype)
    fresh = torch.cat([kv[-n:].flatten(1) for kv, n in zip(history, query_lens, strict=True)])
    lens = torch.tensor(kv_lens, dtype=torch.int32)
    out = OPS.paged_attention(torch.cat((q, fresh), -1), cache, table, slots, starts, lens, 1, heads, kv_heads, scale)
    for r, kv in enumerate(history):
        rows = slice(int(starts[r]), int(starts[r + 1]))
        keys, values = (kv[:, i].double().transpose(0, 1).repeat_interleave(heads // kv_heads, 0) for i in (0, 1))
        queries = q[rows].double().view(-1, heads, dim).transpose(0, 1)
        mask = torch.ones(query_lens[r], kv_lens[r]).tril(kv_lens[r] - query_lens[r]).bool()
        expected = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=scale)
        torch.testing.assert_close(out[rows], expected.transpose(0, 1).reshape(-1, heads * dim).to(dtype))


def test_fakes_agree_with_references() -> None:
    """torch's own checks: schema truth (mutation, aliasing) and fake against real shapes."""
    x, w, b = randn(4, 32), randn(32), randn(32)
    positions, table = torch.arange(4, dtype=torch.int32), cos_sin_table(8, 8)
    cache, block_table = randn(2, 5, 2, 1, 4, 8), torch.ones(3, 2, dtype=torch.int32)
    start, two = torch.tensor([0, 1, 4], dtype=torch.int32), torch.tensor([1, 2], dtype=torch.int32)
    lens, one = torch.tensor([3, 3], dtype=torch.int32), torch.ones(1)
    calls = {
        "embedding": (positions, w.view(8, 4)),
        "rms_norm": (x, w, 1e-5),
        "layer_norm": (x, w, b, 1e-5),
        "linear": (x, randn(6, 32), randn(6)),
        "split": (x, [16, 8, 8]),
        "rope": (x, positions, table, 8, False),
        "attention": (x, x, x, start, 4, 4, 1.0),
        "silu_mul": (x, x.clone()),
        "silu_mul_packed": (x,),
        "gelu": (x,),
        "add": (x, x.clone()),
        "gather_rows": (x, two),
        "add_rms_norm": (x, x.clone(), w, 1e-5),
        "add_layer_norm": (x, x.clone(), w, b, 1e-5, x.clone()),
        "prepare_step": (positions, two, start, lens, positions, block_table, 4),
        "rope_kv_write": (x, positions, table, cache, positions + 4, None, None, 1, 2, 1, 8, True, 1e-5),
        "rope_kv_write_quantize": (x, positions, table, cache, positions + 4, start, None, None, 1, 2, 1, 8, True, 1e-5, 144, one, one),
        "paged_attention": (x, cache, block_table, two, start, lens, 1, 2, 1, 1.0),
        "quantize": (x, one),
        "quantize_rows": (x, "int8"),
        "rms_norm_quantize_rows": (x, w, 1e-5),
        "layer_norm_quantize_rows": (x, w, b, 1e-5, "int8"),
        "add_rms_norm_quantize_rows": (x, x.clone(), w, 1e-5, None, "int8"),
        "add_layer_norm_quantize_rows": (x, x.clone(), w, b, 1e-5, x.clone()),
        "silu_mul_packed_quantize_rows": (x, "int8"),
        "gelu_quantize_rows": (x,),
        "gate_up_silu": (x, randn(6, 32)),
        "linear_sample": tuple(sample("linear_sample", ModelShape(), BATCH, "fp32").values()),
        "sharded_linear_sample": tuple(sample("sharded_linear_sample", ModelShape(), BATCH, "fp32").values()),
        "all_reduce": (x, communicate(Alone())),
        "all_reduce_add": (x, x.clone(), communicate(Alone())),
        "send": (x, connect(Echo(x))),
        "receive": (x, connect(Echo(x))),
        "all_reduce_add_rms_norm": (x, x.clone(), w, communicate(Alone()), 1e-5),
        "linear_gelu": (x, randn(6, 32), randn(6)),
        "arrange_columns": (x, torch.randperm(32).int(), torch.rand(32)),
    }
    assert calls.keys() == trtllm_kernels.references.OPS.keys()
    for name, arguments in calls.items():
        overload = trtllm_kernels.references.OPS[name].overload
        torch.library.opcheck(overload, arguments, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize(
    "name", sorted(name for name, op in trtllm_kernels.references.OPS.items() if any("scale" in t for t in op.tensors))
)
def test_fakes_agree_with_references_when_everything_is_quantized(name: str) -> None:
    op = trtllm_kernels.references.OPS[name]
    named = fp8_sample(name, ModelShape(), BATCH)
    fresh = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in named.items()}
    found, promised = as_list(op.reference(**fresh)), as_list(op.fake(**named))
    assert [(y.shape, y.dtype) for y in found] == [(y.shape, y.dtype) for y in promised]
    assert (found[0].dtype == FP8) == ("out_scale" in op.tensors or name == "quantize")


def fp8_grid(x: torch.Tensor) -> torch.Tensor:
    """x to the nearest E4M3 value, ties to even, by its definition: 3 bits of mantissa, least exponent -6, largest value 448."""
    step = 2.0 ** (torch.frexp(x.double())[1] - 1).clamp_min(-6) / 8
    return ((x.double() / step).round() * step).clamp(-448, 448).float()


def test_quantize_is_nearest_even_with_saturation() -> None:
    x = torch.cat((randn(4000) * 3, randn(4000) * 1e-4, torch.tensor([0.0, -0.0, 17.0, 1e6, -1e6, 448.0 * 0.25])))
    scale = torch.tensor([0.25])
    codes = OPS.quantize(x.view(2, -1), scale)
    assert codes.dtype == FP8
    assert torch.equal(codes.float().flatten(), fp8_grid(x / 0.25))


@pytest.mark.parametrize("name", [n for n in QUANTIZABLE if n not in ("paged_attention", "gate_up_silu", "linear_gelu")])
def test_out_scale_quantizes_the_unrounded_result(name: str) -> None:
    """Of fp32 arguments the wide result is the unrounded one."""
    named = sample(name, ModelShape(), BATCH, "fp32")
    op, scale = trtllm_kernels.references.OPS[name], torch.tensor([0.02])
    wide, codes = as_list(op.reference(**named)), as_list(op.reference(**{**named, "out_scale": scale}))
    assert torch.equal(codes[0].float(), fp8_grid(wide[0] / scale))
    assert all(torch.equal(a, b) for a, b in zip(codes[1:], wide[1:], strict=True))


def test_fp8_products_are_those_of_the_values_the_codes_stand_for() -> None:
    for name in ("linear", "gate_up_silu", "linear_gelu"):
        named = fp8_sample(name, ModelShape(), BATCH)
        x, w = (named[n].double() * named[f"{n}_scale"].double() for n in ("x", "weight"))
        product = x @ w.T + sum(named[n].double() for n in ("bias", "residual") if named.get(n) is not None)
        if name == "gate_up_silu":
            product = functional.silu(product[:, 0::2]) * product[:, 1::2]
        elif name == "linear_gelu":
            product = functional.gelu(product, approximate="tanh")
        wide = trtllm_kernels.references.OPS[name].reference(**{**named, **({"out_scale": None} if "out_scale" in named else {})})
        assert wide.dtype == torch.bfloat16
        torch.testing.assert_close(wide.double(), product, rtol=2**-8, atol=1e-5)
        if "out_scale" in named:
            codes = trtllm_kernels.references.OPS[name].reference(**named).float() * named["out_scale"]
            torch.testing.assert_close(codes.double(), product.clamp(-448 * 0.02, 448 * 0.02), rtol=2**-4, atol=0.02 * 2**-10)


def test_gate_up_silu_is_the_two_products_of_the_interleaved_rows() -> None:
    x, gate, up = randn(5, 32), randn(6, 32), randn(6, 32)
    weight = torch.stack((gate, up), 1).flatten(0, 1)
    torch.testing.assert_close(OPS.gate_up_silu(x, weight), OPS.silu_mul(x @ gate.T, x @ up.T))
    b = randn(12)
    torch.testing.assert_close(OPS.linear_gelu(x, weight, b), OPS.gelu(OPS.linear(x, weight, b)))


def test_an_fp8_cache_holds_the_wide_ones_keys_and_values_over_their_scales() -> None:
    named = sample("rope_kv_write", ModelShape(interleaved=True, rotary_dim=8), BATCH, "fp32", poison=False)
    write, k_scale, v_scale = trtllm_kernels.references.OPS["rope_kv_write"].reference, torch.tensor([0.01]), torch.tensor([0.02])
    narrow = named["kv_cache"].to(FP8)
    rotated = write(**{**named, "kv_cache": narrow, "k_scale": k_scale, "v_scale": v_scale})
    assert torch.equal(write(**named), rotated)
    pages, offsets = (named["kv_slots"] // 32).long(), (named["kv_slots"] % 32).long()
    for i, scale in enumerate((k_scale, v_scale)):
        wide, codes = (cache[1, pages, i, :, offsets] for cache in (named["kv_cache"], narrow))
        assert torch.equal(codes.float(), fp8_grid(wide / scale))


def test_codes_of_prompts_are_those_of_the_cache_and_of_queries_without_a_scale() -> None:
    named = fp8_sample("rope_kv_write_quantize", ModelShape(interleaved=True, rotary_dim=8), BATCH, "fp32", poison=False)
    plain = {name: named[name] for name in (*OP_SPECS["rope_kv_write"].tensors, *OP_SPECS["rope_kv_write"].attrs) if name in named}
    cache = named["kv_cache"].clone()
    rotated = trtllm_kernels.references.OPS["rope_kv_write"].reference(**{**plain, "kv_cache": cache})
    returned, queries, keys, values = trtllm_kernels.references.OPS["rope_kv_write_quantize"].reference(**named)
    assert torch.equal(returned, rotated)
    assert torch.equal(named["kv_cache"].view(torch.uint8), cache.view(torch.uint8))
    pages, offsets = (named["kv_slots"] // 32).long(), (named["kv_slots"] % 32).long()
    cached_keys, cached_values = (cache[1, pages, i, :, offsets].flatten(1).float() for i in (0, 1))
    assert torch.equal(queries.float(), fp8_grid(rotated[:, : queries.shape[1]]))
    assert torch.equal(keys[: BATCH.tokens].float(), cached_keys)
    columns = [0, 16, *range(32, 37), *range(48, 88)]  # of sequences of 1, 1, 5 and 40 tokens
    assert torch.equal(values[:, columns].float(), cached_values.T)
    assert (len(keys), values.shape[1]) == (BATCH.tokens + KEY_BLOCK, named["columns"])
    with pytest.raises(KernelError, match="columns is 100; it must be a multiple of 16, at least 111"):
        trtllm_kernels.references.OPS["rope_kv_write_quantize"].reference(**{**named, "columns": 100})


def test_attention_of_prompts_in_fp8_rounds_both_operands_of_both_products() -> None:
    """Against the formula, head by head in double precision, of a whole prompt and of one with a past; decoding stays as it is."""
    model, batch = ModelShape(), BatchShape(query_lens=(1, 30, 1, 40), kv_lens=(77, 30, 1, 70), max_pages=3)
    named = fp8_sample("paged_attention", model, batch) | {"out_scale": None}
    attend, d, group = trtllm_kernels.references.OPS["paged_attention"].reference, model.head_dim, model.heads // model.kv_heads
    shapes = ((batch.tokens, model.heads * d), (batch.tokens + KEY_BLOCK, model.kv_heads * d), (model.kv_heads * d, 256))
    codes = dict(zip(("queries", "keys", "values"), (16 * randn(*shape) for shape in shapes), strict=True))
    codes = {name: x.to(FP8) for name, x in codes.items()}
    wide, out = attend(**named), attend(**{**named, **codes})
    assert torch.equal(out[[0, 31]], wide[[0, 31]])
    page, slot = model.page_size, int(named["seq_slots"][3])
    cached = named["kv_cache"][1, named["block_table"][slot, :1].long()].double()  # the past of the last is in its first page
    for rows, columns, past in ((slice(1, 31), slice(16, 46), 0), (slice(32, 72), slice(80, 120), 30)):
        assert past <= page
        for head in range(model.heads):
            of_kv = slice(head // group * d, (head // group + 1) * d)
            q = codes["queries"][rows, head * d : (head + 1) * d].double()
            own = codes["keys"][rows, of_kv].double(), codes["values"][of_kv, columns].double().T
            k, v = (torch.cat((cached[0, i, head // group, :past], own[i])) for i in (0, 1))
            scores = q @ k.T * named["scale"] * named["k_scale"].double()
            scores = scores.masked_fill(torch.ones(len(q), len(k)).triu(1 + past).bool(), -torch.inf)
            p = (scores - scores.amax(1, keepdim=True)).exp()
            rounded = (256 * p).float().to(FP8).double()
            assert float((rounded / 256 - p).abs().max()) > 1e-3
            expected = rounded @ v * named["v_scale"].double() / rounded.sum(1, keepdim=True)
            torch.testing.assert_close(out[rows, head * d : (head + 1) * d].double(), expected, rtol=2**-7, atol=1e-3)


def test_an_int8_cache_holds_each_head_of_a_token_over_its_own_largest_value() -> None:
    named = sample("rope_kv_write", ModelShape(interleaved=True, rotary_dim=8), BATCH, "fp32", poison=False)
    write = trtllm_kernels.references.OPS["rope_kv_write"].reference
    codes, scales = torch.zeros(named["kv_cache"].shape, dtype=torch.int8), torch.zeros(named["kv_cache"].shape[:-1])
    rotated = write(**{**named, "kv_cache": codes, "kv_scales": scales})
    assert torch.equal(write(**named), rotated)
    pages, offsets = (named["kv_slots"] // 32).long(), (named["kv_slots"] % 32).long()
    wide = named["kv_cache"][1, pages, :, :, offsets].double()
    steps = wide.abs().amax(-1) / 127
    torch.testing.assert_close(scales[1, pages, :, :, offsets].double(), steps)
    assert int((codes[1, pages, :, :, offsets] - (wide / steps[..., None]).round()).abs().max()) == 0
    assert int(scales.count_nonzero()) == steps.numel()


def test_attention_over_an_int8_cache_is_attention_over_the_values_it_stands_for() -> None:
    named = int8_cache_sample("paged_attention", ModelShape(), BATCH)
    attend = trtllm_kernels.references.OPS["paged_attention"].reference
    wide = {"kv_cache": named["kv_cache"].float() * named["kv_scales"][..., None], "qkv": named["qkv"].float()}
    expected = attend(**{**named, **wide, "kv_scales": None})
    torch.testing.assert_close(attend(**{**named, "qkv": wide["qkv"]}), expected)


def test_attention_over_an_fp8_cache_is_attention_over_the_values_it_stands_for() -> None:
    named = fp8_sample("paged_attention", ModelShape(), BATCH)
    attend = trtllm_kernels.references.OPS["paged_attention"].reference
    scales = torch.cat((named["k_scale"], named["v_scale"])).view(1, 1, 2, 1, 1, 1)
    wide = {"kv_cache": (named["kv_cache"].float() * scales), "qkv": named["qkv"].float()}
    expected = attend(**{**named, **wide, "k_scale": None, "v_scale": None, "out_scale": None})
    out = attend(**{**named, "qkv": wide["qkv"], "out_scale": None})
    torch.testing.assert_close(out, expected)
    assert torch.equal(attend(**{**named, "qkv": wide["qkv"]}).float(), fp8_grid(out / named["out_scale"]))


@pytest.mark.parametrize("dtype", ["fp8", "int8"])
@pytest.mark.parametrize("name", sorted(name for name, op in trtllm_kernels.references.OPS.items() if op.spec.by_row))
def test_an_op_by_row_is_the_op_with_its_unrounded_result_quantized(name: str, dtype: str) -> None:
    """Of fp32 arguments the wide result is the unrounded one."""
    ops = trtllm_kernels.references.OPS
    named, by_row = sample(name, ModelShape(), BATCH, "fp32"), ops[ops[name].spec.by_row]
    first, *rest = as_list(ops[name].reference(**named))
    named.pop("out_scale")
    codes, scales, *others = by_row.reference(**named, dtype=dtype)
    expected = OPS.quantize_rows(first, dtype)
    assert torch.equal(codes.view(torch.uint8), expected[0].view(torch.uint8))
    assert torch.equal(scales, expected[1])
    assert all(torch.equal(a, b) for a, b in zip(others, rest, strict=True))


def test_int8_rows_are_rounded_half_to_even_and_products_of_them_are_exact() -> None:
    x = torch.tensor([[0.5, 1.5, -2.5, 127.0], [0.0, 0.0, 0.0, 0.0], [-1.0, 0.25, 0.3, 0.9]])
    codes, scales = OPS.quantize_rows(x, "int8")
    assert codes.tolist() == [[0, 2, -2, 127], [0, 0, 0, 0], [-127, 32, 38, 114]]
    assert scales.flatten().tolist() == pytest.approx([1.0, 1e-12, 1 / 127])
    x, weight = torch.randint(-127, 128, (3, 20_000), dtype=torch.int8), torch.randint(-127, 128, (4, 20_000), dtype=torch.int8)
    x_scale, weight_scale, bias = torch.rand(3, 1), torch.rand(4, 1), randn(4, dtype=torch.bfloat16)
    sums = torch.tensor([[sum(a * b for a, b in zip(row, column, strict=True)) for column in weight.tolist()] for row in x.tolist()])
    expected = (sums.float() * (x_scale * weight_scale.T) + bias.float()).bfloat16()
    assert torch.equal(OPS.linear(x, weight, bias, x_scale, weight_scale), expected)


def test_what_is_sent_is_the_argument_and_what_is_received_the_rows_of_the_stage_before() -> None:
    x, rows = randn(3, 8, dtype=torch.bfloat16), randn(3, 8, dtype=torch.bfloat16)
    link = Echo(rows)
    pipe = connect(link)
    assert torch.equal(OPS.send(x, pipe), x)
    assert torch.equal(link.sent[0], x)
    assert torch.equal(OPS.receive(torch.full_like(x, torch.nan), pipe), rows)


def test_a_reduction_with_a_residual_rounds_the_sum_first() -> None:
    x, residual = randn(3, 8, dtype=torch.bfloat16), randn(3, 8, dtype=torch.bfloat16)

    class Thrice(Alone):
        size = 3

        def all_gather(self, x: torch.Tensor) -> list[torch.Tensor]:
            return [x, x, x]

    expected = (x.float() * 3).bfloat16() + residual
    assert torch.equal(OPS.all_reduce_add(x, residual, communicate(Thrice())), expected)


@pytest.mark.parametrize("name", ["all_reduce", "send", "receive", "sharded_linear_sample"])
def test_kernels_are_not_launched_with_ranks_of_a_cpu(name: str) -> None:
    """They would write at address 0."""
    op = trtllm_kernels.references.OPS[name]
    named = sample(name, ModelShape(), BATCH, "bf16")
    with pytest.raises(KernelError, match=f"op {name}: its (group|pipe) holds no addresses of GPU memory"):
        execute(op, named, [])
