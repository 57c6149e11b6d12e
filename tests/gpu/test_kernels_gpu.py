"""Every kernel on the GPU against the reference on the CPU, through the launches engines run. Results are poisoned with NaN beforehand."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from normed_samples import normed, normed_rows, product_of
from rotated_samples import rotated_sample

import trtllm_kernels.references
from samples import OUT_SCALE, BatchShape, code_steps, fp8_prompts_sample, fp8_sample, int8_cache_sample, row_errors, sample
from trtllm_kernels.compile.aot import compile_all
from trtllm_kernels.dialect.expr import evaluate
from trtllm_kernels.dialect.model_shape import ModelShape
from trtllm_kernels.dialect.specs import DTYPES, dtype_name, spec_of
from trtllm_kernels.dialect.types import NO_TOKEN, Arg, KernelSpec, Launch, Lowered, TensorSpec, rounded_keys
from trtllm_kernels.errors import KernelError
from trtllm_kernels.launch.driver import BoundProgram
from trtllm_kernels.launch.torch_ops import as_list, execute
from trtllm_kernels.lowering import lower
from trtllm_kernels.lowering.skinny_gemm import IN_TRITON, PADDED
from trtllm_kernels.references import OPS
from trtllm_kernels.references.philox import gumbel_noise
from trtllm_kernels.references.quantize import FP8, dequantized, finish
from trtllm_kernels.references.rope import columns_of_values
from trtllm_kernels.references.sampling import EMPTY

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]

MODELS = {
    "llama-8b": ModelShape(4096, 14336, 32, 8, 128, 128),
    "llama-2": ModelShape(1024, 2816, 8, 8, 128, 128),
    "gptj": ModelShape(1024, 4096, 4, 4, 256, 64, interleaved=True),
    "smollm2": ModelShape(576, 1536, 9, 3, 64, 64, page_size=64),
    "qwen2.5": ModelShape(3584, 2368, 28, 4, 128, 128),
    "qwen3": ModelShape(2560, 1216, 16, 8, 128, 128, qk_norm=True),
    "tiny": ModelShape(64, 96, 4, 2, 16, 16),
}
_LENGTHS = torch.Generator().manual_seed(7)


def _lengths(n: int, low: int, high: int) -> tuple[int, ...]:
    return tuple(torch.randint(low, high + 1, (n,), generator=_LENGTHS).tolist())


BATCHES = {
    "one": BatchShape((1,), (1,), 4),
    "page-boundaries": BatchShape((1,) * 6, (31, 32, 33, 63, 64, 65), 4),
    "decode-ragged": BatchShape((1,) * 67, _lengths(67, 1, 500), 16),
    "decode-long": BatchShape((1, 1, 1), (5000, 4097, 1), 160),
    "prefill": BatchShape((200, 1, 33, 128), (200, 1, 33, 128), 8),
    "chunked": BatchShape((129, 64, 7), (1000, 64, 135), 40),
    "mixed": BatchShape((1, 1, 1, 65, 1, 257), (70, 1, 300, 65, 90, 300), 12),
    "concurrent": BatchShape((*[1] * 270, 130, 65, 64), (*_lengths(270, 1, 90), 130, 90, 64), 5),
}
FEW_DECODE = ((5000, 1), _lengths(12, 1, 900), _lengths(60, 1, 500))
MANY_DECODE = ((5000, 32, 33, 1), _lengths(150, 1, 130))
"""Tokens in the cache of sequences that decode together. Drawn here, so that they do not depend on which tests a worker ran before."""
BATCHED = ("prepare_step", "rope", "rope_kv_write", "paged_attention", "attention")
OF_PROMPTS = "rope_kv_write_quantize"
ACTIVATED = ("gate_up_silu", "linear_gelu")
PRODUCTS = ("linear", *ACTIVATED)
OF_RANKS = tuple(name for name, op in OPS.items() if {"group", "pipe"} & {*op.tensors})
"""Ops that reach other ranks' memory: tested with that memory (`test_ranks_gpu.py`, `test_pipe_gpu.py`)."""
ROWS = tuple(name for name in OPS if name not in (*BATCHED, OF_PROMPTS, *PRODUCTS, *OF_RANKS, "linear_sample"))
ENDS_IN_SCALES = tuple(name for name in OPS if any(tensor.endswith("scale") for tensor in OPS[name].tensors))
INT8_CACHE = "bf16 with an int8 cache"


def combinations(ops: tuple[str, ...]) -> list[tuple[str, str]]:
    """(op, precision); fp8 only where something of the op is quantized."""
    precisions = ("fp32", "bf16", "fp16", "fp8", INT8_CACHE)
    having = {"fp8": ENDS_IN_SCALES, INT8_CACHE: tuple(op for op in OPS if "kv_scales" in OPS[op].tensors)}
    return [(op, precision) for op in ops for precision in precisions if op in having.get(precision, ops)]


def tolerance(op: str, precision: str) -> dict[str, float]:
    if precision == "fp32":
        return {"rtol": 2e-5, "atol": 1e-4 if op in PRODUCTS else 1e-5}
    if op in PRODUCTS:
        return {"rtol": 2e-2, "atol": 1e-2}
    return {"rtol": 2e-2, "atol": 4e-3} if "attention" in op else {"rtol": 1.6e-2, "atol": 1e-4}


def check(op: str, precision: str, got: torch.Tensor, want: torch.Tensor, columns: int = 0) -> None:
    """Codes may lie one step apart where a rounding flips, and further where they stand for less than the op's error in bf16: of attention,
    probabilities rounded to 8 bits times values of up to 4; of a product, what tensor cores lose that keep 14 bits of a sum of fp8's, which
    grows with the `columns` summed (cuBLASLt and our kernels lose the same, to the last digit)."""
    lost = max(1e-2, 5e-6 * columns) if precision == "fp8" and op in PRODUCTS else 0.0
    if want.dtype == torch.int8:
        steps = (got.int() - want.int()).abs()
        assert int(steps.max()) <= 1, f"codes up to {int(steps.max())} steps apart"
        assert int(steps.sum()) <= 2 + steps.numel() * 0.01, f"{int(steps.sum())} of {steps.numel()} codes differ"
        return
    if want.dtype != FP8:
        allowed = tolerance(op, precision)
        torch.testing.assert_close(got, want, equal_nan=True, **(allowed | {"atol": max(allowed["atol"], lost)}))
        return
    steps = code_steps(got, want)
    apart = (got.float() - want.float()).abs() * OUT_SCALE > (2**-7 if op == "paged_attention" else lost)
    flipped = int((steps > 0).sum())
    assert not bool(((steps > 1) & apart).any()), f"codes up to {int(steps.max())} steps apart"
    most = 2 + steps.numel() * (0.15 if op in PRODUCTS else 0.1 if op == "paged_attention" else 0.02)
    assert flipped <= most, f"{flipped} of {steps.numel()} codes differ"


def draw(op: str, model: ModelShape, batch: BatchShape, precision: str) -> dict:
    if precision == INT8_CACHE:
        return int8_cache_sample(op, model, batch)
    return fp8_sample(op, model, batch) if precision == "fp8" else sample(op, model, batch, precision)


def on_gpu(named: dict) -> dict:
    return {k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in named.items()}


def poison(y: torch.Tensor) -> torch.Tensor:
    """NaN in every floating type, fp8 included; -1 in integers."""
    y.view(torch.uint8).fill_(0xFF)
    return y


def compare(op_name: str, model: str, batch: str, precision: str) -> None:
    op = OPS[op_name]
    named = draw(op_name, MODELS[model], BATCHES[batch], precision)
    device = on_gpu(named)
    expected = as_list(op.reference(**named)) + list(op.written_in(named).values())
    outputs = as_list(op.fake(*(device[a.name] for a in op.overload._schema.arguments)))
    for y in outputs:
        poison(y)
    execute(op, device, outputs)
    actual = outputs + list(op.written_in(device).values())
    for want, got in zip(expected, actual, strict=True):
        check(op_name, precision, got, want.cuda())


@pytest.mark.parametrize(("op", "precision"), combinations(ROWS))
def test_row_ops(op: str, precision: str) -> None:
    for model in ("llama-8b", "smollm2", "tiny"):
        for batch in ("one", "prefill"):
            compare(op, model, batch, precision)


@pytest.mark.parametrize("vocabulary", [300, 32000, 50400])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_the_last_product_samples_what_its_logits_say(precision: str, vocabulary: int) -> None:
    """By products of one token, of 2 to 64, and the library's. Drawn rows may swap what the noise makes nearly equal."""
    op, model = OPS["linear_sample"], ModelShape(hidden=1024, vocab=vocabulary)
    for rows in (1, 7, 33, 64, 65, 200):
        named = sample("linear_sample", model, BatchShape((rows,), (rows,)), precision)
        device = on_gpu(named)
        for _ in range(2):  # what the first leaves behind, the second finds
            outputs = as_list(op.fake(*(device[a.name] for a in op.overload._schema.arguments)))
            execute(op, device, [poison(y) for y in outputs])
        logits, tokens = (y.cpu() for y in outputs)
        # the reference rounds a product before its bias
        rounding = {"rtol": 2e-5, "atol": 1e-4} if precision == "fp32" else {"rtol": 2e-2, "atol": 6e-2}
        torch.testing.assert_close(logits, op.reference(**named)[0], **rounding)
        temperature = named["sampling_words"][:, :1].contiguous().view(torch.float32)
        seeds = (named["sampling_words"][:, 1].long() & 0xFFFFFFFF) | (named["sampling_words"][:, 2].long() << 32)
        noise = gumbel_noise(seeds, named["sampling_words"][:, 3].long(), vocabulary)
        z = torch.where(temperature > 0, logits.float() / temperature.clamp_min(1e-9) + noise, logits.float())
        chosen = z.gather(1, tokens.long()[:, None])[:, 0]
        greedy = temperature[:, 0] == 0
        assert torch.equal(tokens[greedy], z[greedy].argmax(1).int())
        assert ((z.amax(1) - chosen) < 1e-4).all()
        assert torch.equal(device["last_tokens"].cpu()[named["sample_slots"].long()], tokens)
        assert torch.equal(device["token_ring"].cpu()[2, :rows], tokens)
        assert (device["argmax_scratch"] == EMPTY).all()


@pytest.mark.parametrize("value", [torch.nan, -torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("rows", [2, 33, 200])
def test_a_row_without_a_finite_best_has_no_token(rows: int, value: float) -> None:
    op, model = OPS["linear_sample"], ModelShape(hidden=1024, vocab=32000)
    named = sample("linear_sample", model, BatchShape((rows,), (rows,)), "bf16")
    named["x"][1] = value
    device = on_gpu(named)
    outputs = as_list(op.fake(*(device[a.name] for a in op.overload._schema.arguments)))
    execute(op, device, [poison(y) for y in outputs])
    tokens, ring = outputs[1].cpu(), device["token_ring"].cpu()[2, :rows]
    others = torch.arange(rows) != 1
    assert (int(tokens[1]), int(ring[1])) == (0, NO_TOKEN)
    assert torch.equal(ring[others], tokens[others])
    assert (tokens[others] >= 0).all()
    assert (device["argmax_scratch"] == EMPTY).all()


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("op", "precision"), combinations(("rope", "rope_kv_write", "paged_attention")))
def test_attention_ops(op: str, model: str, precision: str) -> None:
    for batch in BATCHES:
        compare(op, model, batch, precision)


@pytest.mark.parametrize(
    ("model", "precision"), [*(("llama-8b", precision) for precision in ("bf16", "fp16", "fp8", "int8")), ("gptj", "fp8")]
)
def test_decode_attention_rotates_and_writes_as_the_op_before_would(model: str, precision: str) -> None:
    """Again and again with the same bits: its copies are under way while it computes. Of 12 sequences, and of 60, in tiles of their own; by
    the persistent kernels of 150, of which their warps have several."""
    if torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("decode attention rotates on sm_90")
    persistent = ({"decode_cuda_to": 0, "decode_short": short} for short in (0, 8192))
    for lengths, tactic in (*((one, {}) for one in FEW_DECODE), *((one, tactic) for tactic in persistent for one in MANY_DECODE)):
        case = rotated_sample(MODELS[model], lengths, precision, tactic)
        device = on_gpu(case.named)
        symbols = {**dict.fromkeys("TRDS", len(lengths)), "C": 0, "L": rounded_keys(max(lengths))}
        running = tuple(one for one in case.attention.launches if min(evaluate(dim, symbols) for dim in one.grid) > 0)
        cubins = compile_all([spec for spec in case.attention.kernels if spec.key in {one.kernel for one in running}], arch())
        workspaces = case.attention.workspaces.items()
        device |= {name: torch.full(spec.shape, torch.nan, device="cuda") for name, spec in workspaces if name.endswith(":pieces")}
        results = [poison(torch.empty_like(case.expected, device="cuda")) for _ in range(50)]
        for result in results:
            program = BoundProgram([replace(case.attention, launches=running)], {**device, "out0": result}.__getitem__, cubins)
            program.set_symbols(**symbols)
            program.run()
        check("paged_attention", precision, results[0].cpu(), case.expected)
        case.check_written(device)
        assert all(torch.equal(result.view(torch.uint8), results[0].view(torch.uint8)) for result in results)


@pytest.mark.skipif(not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] != 9, reason="of Hopper")
@pytest.mark.parametrize(("op", "rows", "columns"), [("linear", 4096, 4096), ("linear", 6144, 2064), ("gate_up_silu", 4096, 4096)])
@pytest.mark.parametrize("dtype", ["fp8", "bf16"])
def test_a_product_takes_the_norm_of_its_rows(op: str, rows: int, columns: int, dtype: str) -> None:
    """What the product makes of the norm's result, as tensor cores sum it; the same bits again and again, with what the norm leaves
    spoiled. In the largest step both ops run."""
    product = product_of(op, dtype, rows, columns)
    for tokens in (1, 3, 8):
        case = normed(op, product, normed_rows(tokens, columns, dtype), {"norms_to": 7})
        device = on_gpu(case.named)
        (expected,) = launched([case.alone], tokens, device, case.expected)
        poison(device["x"])
        found = launched([case.norm, case.product], tokens, device, case.expected, times=20)
        error = (found[0].float() - expected.float()).norm() / expected.float().norm()
        assert error < (2e-2 if expected.dtype == FP8 else 4e-3)
        assert all(torch.equal(result.view(torch.uint8), found[0].view(torch.uint8)) for result in found)


def launched(parts: list[Lowered], tokens: int, device: dict, like: torch.Tensor, times: int = 1) -> list[torch.Tensor]:
    """Results, so many times anew, of ops of a decode step."""
    symbols = {"T": tokens, "R": 1, "D": 1, "S": 1, "C": 0}
    running = [one for part in parts for one in part.launches if min(evaluate(dim, symbols) for dim in one.grid) > 0]
    keys = {launch.kernel for launch in running}
    cubins = compile_all([spec for part in parts for spec in part.kernels if spec.key in keys], arch())
    results = [poison(torch.empty_like(like, device="cuda")) for _ in range(times)]
    for result in results:
        program = BoundProgram([Lowered(tuple(running))], {**device, "out0": result}.__getitem__, cubins)
        program.set_symbols(**symbols)
        program.run()
    return results


OF_CACHE_WRITES = MODELS | {"still": replace(MODELS["llama-8b"], rotary_dim=0)}


@pytest.mark.parametrize("tactic", [{"block_h": 2, "warps": 4}, {"block_h": 8, "warps": 2}, {"block_h": 32, "warps": 1}], ids=str)
@pytest.mark.parametrize("precision", ["bf16", "fp8"])
@pytest.mark.parametrize("model", ["gptj", "qwen3", "tiny", "still"])
def test_rotation_in_place_is_the_functional_one(model: str, precision: str, tactic: dict[str, int]) -> None:
    """Also of tiles so small that several threads hold each element. Two kernels may contract a*b - c*d differently: a last bit, rarely."""
    op = OPS["rope_kv_write"]
    named = on_gpu(draw(op.name, OF_CACHE_WRITES[model], BATCHES["mixed"], precision))
    twin = {**named, "qkv": named["qkv"].clone(), "kv_cache": named["kv_cache"].clone()}
    expected = op.overload(**named)
    specs = [None if named[name] is None else TensorSpec(tuple(named[name].shape), dtype_name(named[name].dtype)) for name in op.tensors]
    attrs = {name: named[name] for name in op.attrs}
    lowered = lower(op.name, specs, [specs[0]], attrs, arch(), tactic=tactic, in_place=True)
    program = BoundProgram([lowered], {**twin, "out0": twin["qkv"]}.__getitem__, compile_all(lowered.kernels, arch()))
    program.set_symbols(T=0, R=0, D=0, S=0, C=0)
    program.run()
    for got, want in ((twin["qkv"], expected), (twin["kv_cache"], named["kv_cache"])):
        same = (got == want) | (got.isnan() & want.isnan()) if got.dtype != FP8 else got.view(torch.uint8) == want.view(torch.uint8)
        assert float((~same).float().mean()) < 1e-3
        assert got.dtype != FP8 or int(code_steps(got, want).max()) <= 1
        torch.testing.assert_close(got.float(), want.float(), rtol=0.13 if got.dtype == FP8 else 2.0**-7, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("tactic", [{}, {"context_block_t": 64, "context_block_h": 1, "context_warps": 8}], ids=str)
@pytest.mark.parametrize("model", ["llama-8b", "smollm2", "qwen3", "still"])
def test_codes_of_prompts(model: str, tactic: dict[str, int]) -> None:
    """In place, beside decoding sequences, whose rows alone are rotated."""
    if torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("prompts are attended to in fp8 on sm_90")
    op, batch = OPS[OF_PROMPTS], BATCHES["mixed"]
    named = draw(op.name, OF_CACHE_WRITES[model], batch, "fp8")
    device = on_gpu(named)
    plain = device["qkv"].clone()
    expected = as_list(op.reference(**named))
    outputs = [device["qkv"], *(poison(torch.empty_like(y, device="cuda")) for y in expected[1:])]
    specs = [None if named[name] is None else spec_of(named[name]) for name in op.tensors]
    results = [spec_of(y) for y in outputs]
    lowered = lower(op.name, specs, results, {name: named[name] for name in op.attrs}, arch(), tactic=tactic, in_place=True)
    memory = {**device, **{f"out{index}": y for index, y in enumerate(outputs)}}
    program = BoundProgram([lowered], memory.__getitem__, compile_all(lowered.kernels, arch()))
    program.set_symbols(T=batch.tokens, R=0, D=3, S=0, C=0)
    program.run()
    check("rope_kv_write", "bf16", outputs[0][:3], expected[0][:3].cuda())
    assert torch.equal(outputs[0][3:], plain[3:])
    rows, columns = slice(3, batch.tokens), columns_of_values(named["query_start"])[3:]
    for got, want in (
        (outputs[1][rows], expected[1][rows]),
        (outputs[2][rows], expected[2][rows]),
        (outputs[3][:, columns], expected[3][:, columns]),
    ):
        check(op.name, "fp8", got, want.cuda())
    check(op.name, "fp8", device["kv_cache"], named["kv_cache"].cuda())


@pytest.mark.parametrize("model", ["llama-8b", "smollm2"])
@pytest.mark.parametrize("batch", ["prefill", "mixed", "concurrent"])
def test_attention_of_prompts_in_fp8(model: str, batch: str) -> None:
    """The kernel rounds probabilities relative to the largest score so far, the reference to the largest of all."""
    if torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("prompts are attended to in fp8 on sm_90")
    op, shape = OPS["paged_attention"], MODELS[model]
    named = fp8_prompts_sample(shape, BATCHES[batch])
    want = op.reference(**named)
    assert want.isfinite().all()
    (got,) = outputs = [poison(torch.empty_like(want, device="cuda"))]
    execute(op, on_gpu(named), outputs)
    assert float(row_errors(got.cpu(), want, shape.heads).max()) < 0.06
    assert float((got.cpu().float() - want.float()).norm() / want.float().norm()) < 0.02


TOKENS = (1, 2, 8, 9, 16, 17, 32, 33, 64, 65, 96, 97, 128, 129, 191, 192, 1000)
"""On both sides of every change of routine: one token, few (in tiles of 8, 16, 32, 64, 96, 128), more, and from 192 the fused kernels."""


def skinny_tiles(sizes: tuple[int, ...] = PADDED, **values: int) -> dict[str, int]:
    return {f"skinny{padded}_{name}": value for padded in sizes for name, value in values.items()}


FEW = {
    "library": {"skinny_to": 0},
    "few": {},
    "few-whole": skinny_tiles(blocks=2, parts=1),
    "few-parts": skinny_tiles(blocks=2, parts=2, height=48),
    "few-alone": skinny_tiles(blocks=1, parts=1, height=112),
    "triton-whole": skinny_tiles(IN_TRITON, blocks=0, splits=1),
    "triton-divided": skinny_tiles(IN_TRITON, blocks=0, splits=4),
}
"""Tactics of products of 2 to 128 tokens."""


WIDTHS = {"fused": ModelShape(1024, 1536), "two-tiles": ModelShape(4096, 512), "long": ModelShape(5120, 512)}


def product_program(op: str, model: ModelShape, precision: str, tactic: dict[str, int]) -> tuple[dict[str, torch.Tensor], BoundProgram]:
    """As an engine has it: buffers of the largest step, sizes known only at the step."""
    named = draw(op, model, BatchShape((max(TOKENS),), (max(TOKENS),)), precision)
    tensors = {name: value.cuda() for name, value in named.items() if isinstance(value, torch.Tensor)}
    arguments = OPS[op].overload._schema.arguments
    tensors["out0"] = as_list(OPS[op].fake(*(tensors.get(a.name) for a in arguments)))[0]
    rows = {name: ("T", tensors[name].shape[1]) for name in ("x", "residual", "out0") if name in tensors}
    specs = {name: TensorSpec(rows.get(name, tuple(value.shape)), dtype_name(value.dtype)) for name, value in tensors.items()}
    lowered = lower(op, [specs.get(name) for name in OPS[op].tensors], [specs["out0"]], {}, arch(), tactic=tactic)
    for name, spec in lowered.workspaces.items():
        shape = [evaluate(dim, {"T": max(TOKENS)}) for dim in spec.shape]
        tensors[name] = poison(torch.empty(shape, dtype=DTYPES[spec.dtype], device="cuda"))
    return tensors, BoundProgram([lowered], tensors.__getitem__, compile_all(lowered.kernels, arch()))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16", "fp8"])
@pytest.mark.parametrize("model", ["fused", "smollm2", "two-tiles", "long"])
@pytest.mark.parametrize("op", PRODUCTS)
@pytest.mark.parametrize("few", FEW)
def test_products(few: str, op: str, model: str, precision: str) -> None:
    """Rows of one, two and more tiles of the one-token kernel. smollm2's widths fit neither that nor the fused one, nor whole tiles of few
    tokens: else all is cuBLASLt's."""
    tensors, program = product_program(op, {**MODELS, **WIDTHS}[model], precision, FEW[few])
    x, w, bias = (tensors.get(name) for name in ("x", "weight", "bias"))
    exact = dequantized(x, tensors.get("x_scale")) @ dequantized(w, tensors.get("weight_scale")).T
    exact = exact if bias is None else exact + bias.float()
    exact = exact + tensors["residual"].float() if "residual" in tensors else exact
    if op == "gate_up_silu":
        exact = torch.nn.functional.silu(exact[:, 0::2]) * exact[:, 1::2]
    elif op == "linear_gelu":
        exact = torch.nn.functional.gelu(exact, approximate="tanh")
    wide = torch.bfloat16 if precision == "fp8" else x.dtype
    expected = finish(exact, wide, tensors.get("out_scale"))
    for tokens in TOKENS:
        poison(tensors["out0"])
        program.set_symbols(T=tokens, R=1, D=0, S=1, C=0)
        program.run()
        check(op, precision, tensors["out0"][:tokens], expected[:tokens], x.shape[1])


@pytest.mark.parametrize("tokens", [8, 16, 64, 96, 128])
@pytest.mark.parametrize(("blocks", "parts", "height"), [(1, 1, 64), (1, 2, 80), (2, 1, 112), (2, 2, 64)])
def test_products_of_few_tokens_give_the_same_bits_again_and_again(blocks: int, parts: int, height: int, tokens: int) -> None:
    """Blocks that load ahead while the kernel before them runs, and add each other's sums: a race would show in hundreds of runs."""
    if torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("products of few tokens are apart on sm_90")
    tensors, _ = product_program("linear", ModelShape(4096, 4096), "fp8", {})
    specs = {name: TensorSpec(tuple(value.shape), dtype_name(value.dtype)) for name, value in tensors.items()}
    inputs = [specs.get(name) for name in OPS["linear"].tensors]
    inputs[0], out = replace(inputs[0], shape=("T", 4096)), replace(specs["out0"], shape=("T", specs["out0"].shape[1]))
    residual = OPS["linear"].tensors.index("residual")
    inputs[residual] = out if inputs[residual] is not None else None
    lowered = lower("linear", inputs, [out], {}, arch(), tactic=skinny_tiles(blocks=blocks, parts=parts, height=height))
    program = BoundProgram([lowered] * 8, tensors.__getitem__, compile_all(lowered.kernels, arch()))
    program.set_symbols(T=tokens, R=1, D=0, S=1, C=0)
    program.run()
    first, others = tensors["out0"][:tokens].clone(), torch.zeros((), device="cuda")
    for _ in range(300):
        poison(tensors["out0"])
        program.run()
        others += (tensors["out0"][:tokens] != first).any()
    assert int(others) == 0


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("model", ["llama-8b", "smollm2"])
def test_prepare_step(model: str, batch: str) -> None:
    compare("prepare_step", model, batch, "bf16")


@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_torch_ops_on_cuda_tensors_run_the_kernels(precision: str) -> None:
    for name in (name for name in OPS if name not in (*OF_RANKS, OF_PROMPTS, "linear_sample")):
        named = draw(name, MODELS["smollm2"], BATCHES["mixed"], precision)
        device = on_gpu(named)
        actual = as_list(OPS[name].overload(*(device[a.name] for a in OPS[name].overload._schema.arguments)))
        for want, got in zip(as_list(OPS[name].reference(**named)), actual, strict=True):
            check(name, precision, got.cpu(), want)


def arch() -> str:
    major, minor = torch.cuda.get_device_capability()
    return f"sm_{major}{minor}"


def symbolic_program(tensors: dict[str, torch.Tensor]) -> BoundProgram:
    """add_rms_norm then linear with bias over up to 64 tokens, then gather of S rows: sizes known only at the step."""
    h, n = 256, 512
    specs = {
        "x": TensorSpec(("T", h), "bf16"),
        "w": TensorSpec((h,), "bf16"),
        "y": TensorSpec(("T", n), "bf16"),
        "rows": TensorSpec(("S",), "int32"),
        "out": TensorSpec(("S", n), "bf16"),
    }
    matrix, bias = TensorSpec((n, h), "bf16"), TensorSpec((n,), "bf16")
    x, w = specs["x"], specs["w"]
    lowered = [
        lower("add_rms_norm", [x, x, w], [x, x], {"eps": 1e-5}, arch(), input_names=["x", "r", "w"], output_names=["normed", "total"]),
        lower("linear", [x, matrix, bias], [specs["y"]], {}, arch(), input_names=["normed", "matrix", "bias"], output_names=["y"]),
        lower("gather_rows", [specs["y"], specs["rows"]], [specs["out"]], {}, arch(), input_names=["y", "rows"], output_names=["out"]),
    ]
    shapes = {"x": (64, h), "r": (64, h), "w": (h,), "normed": (64, h), "total": (64, h), "matrix": (n, h), "bias": (n,), "y": (64, n)}
    for name, shape in {**shapes, "out": (64, n)}.items():
        tensors[name] = torch.randn(shape, device="cuda").bfloat16()
    tensors["rows"] = torch.zeros(64, dtype=torch.int32, device="cuda")
    return BoundProgram(lowered, tensors.__getitem__, compile_all((k for one in lowered for k in one.kernels), arch()))


def check_program(tensors: dict[str, torch.Tensor], tokens: int, rows: list[int]) -> None:
    total = (tensors["x"].float() + tensors["r"].float()).bfloat16()
    normed = torch.nn.functional.rms_norm(total.float(), (256,), tensors["w"].float(), 1e-5).bfloat16()
    y = torch.nn.functional.linear(normed.float(), tensors["matrix"].float(), tensors["bias"].float())
    torch.testing.assert_close(tensors["out"][: len(rows)].float(), y[rows], rtol=2e-2, atol=0.15)
    assert tensors["total"][tokens:].isnan().all()
    assert tensors["y"][tokens:].isnan().all()
    assert tensors["out"][len(rows) :].isnan().all()


def test_program_follows_its_symbols_and_touches_no_row_beyond() -> None:
    tensors: dict[str, torch.Tensor] = {}
    program = symbolic_program(tensors)
    with pytest.raises(KernelError, match="set_symbols"):
        program.run()
    for tokens, rows in ((1, [0]), (64, [63, 0, 5]), (17, [16]), (64, list(range(64)))):
        for name in ("normed", "total", "y", "out"):
            tensors[name].fill_(torch.nan)
        tensors["rows"][: len(rows)] = torch.tensor(rows, dtype=torch.int32, device="cuda")
        program.set_symbols(T=tokens, R=1, D=0, S=len(rows), C=0)
        program.run()
        check_program(tensors, tokens, rows)
    program.set_symbols(T=0, R=0, D=0, S=0, C=0)
    program.run()


def test_captured_graph_replays_with_new_contents() -> None:
    tensors: dict[str, torch.Tensor] = {}
    program = symbolic_program(tensors)
    program.set_symbols(T=32, R=1, D=0, S=2, C=0)
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        program.run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        program.run()
    program.set_symbols(T=5, R=1, D=0, S=1, C=0)
    for name in ("normed", "total", "y", "out"):
        tensors[name].fill_(torch.nan)
    tensors["x"].normal_()
    tensors["rows"][:2] = torch.tensor([31, 7], dtype=torch.int32, device="cuda")
    graph.replay()
    torch.cuda.synchronize()
    check_program(tensors, 32, [31, 7])


NOISE = {"bf16": 4e-3, "fp16": 6e-4}
"""What rounding may move attention of a whole batch by, in its norm: a single element of millions says less of it than `check` takes."""


def compare_attention(
    model: ModelShape, batch: BatchShape, precision: str, tactics: Sequence[dict[str, int]], spare: int = 0
) -> tuple[Lowered, ...]:
    """Lowered for any batch by each of the tactics, and run on this one. Behind its last token lie `spare` rows that hold NaN, in the
    result too, and stay."""
    symbolic = {"qkv": ("T",), "seq_slots": ("R",), "query_start": ("R + 1",), "kv_lens": ("R",)}
    named = draw("paged_attention", model, batch, precision)
    device = on_gpu(named)
    specs = {
        name: TensorSpec((*symbolic[name], *value.shape[1:]) if name in symbolic else tuple(value.shape), dtype_name(value.dtype))
        for name, value in named.items()
        if isinstance(value, torch.Tensor)
    }
    attrs = {k: v for k, v in named.items() if k in OPS["paged_attention"].attrs}
    expected = OPS["paged_attention"].reference(**named)
    out = TensorSpec(("T", expected.shape[1]), dtype_name(expected.dtype))
    tensors = [specs.get(name) for name in OPS["paged_attention"].tensors]
    decodes = next((i for i, q in enumerate(batch.query_lens) if q != 1), len(batch.query_lens))
    continued = sum(kv > query for query, kv in zip(batch.query_lens[decodes:], batch.kv_lens[decodes:], strict=True))
    symbols = {"T": batch.tokens, "R": len(batch.kv_lens), "D": decodes, "S": len(batch.kv_lens), "C": continued}
    symbols["L"] = rounded_keys(max(batch.kv_lens[:decodes], default=0))
    rows, qkv = len(expected), device["qkv"]
    device["qkv"] = torch.cat((qkv, poison(torch.empty(spare, qkv.shape[1], dtype=qkv.dtype, device="cuda"))))
    want = expected.cuda()
    made = tuple(lower("paged_attention", tensors, [out], attrs, arch(), tactic=tactic) for tactic in tactics)
    for lowered in made:
        memory = {**device, "out0": poison(torch.empty(rows + spare, expected.shape[1], dtype=expected.dtype, device="cuda"))}
        for name, spec in lowered.workspaces.items():
            shape = [max(1, evaluate(dim, symbols)) for dim in spec.shape]
            memory[name] = poison(torch.empty(shape, dtype=DTYPES[spec.dtype], device="cuda"))
        program = BoundProgram([lowered], memory.__getitem__, compile_all(lowered.kernels, arch()))
        program.set_symbols(**symbols)
        program.run()
        got = memory["out0"][:rows]
        if precision in NOISE:
            apart = (got.float() - want.float()).abs()
            assert bool((apart < 2**-7 + 2e-2 * want.float().abs()).all()), f"{float(apart.max())} apart"
            assert float(apart.norm() / want.float().norm()) < NOISE[precision]
        else:
            check("paged_attention", precision, got, want)
        assert bool((memory["out0"][rows:].view(torch.uint8) == 0xFF).all())
    return made


@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_one_attention_program_serves_every_batch(precision: str) -> None:
    """Symbols decide between split and unsplit decode and the context grids; one binding at the profile's size serves them all."""
    for batch in BATCHES.values():
        compare_attention(MODELS["qwen3"], batch, precision, [{}])


GROUPS = {
    "each-128": ModelShape(heads=3, kv_heads=3, head_dim=128, page_size=16),
    "four-128": ModelShape(heads=8, kv_heads=2, head_dim=128),
    "eight-128": ModelShape(heads=8, kv_heads=1, head_dim=128, page_size=128),
    "three-64": ModelShape(heads=9, kv_heads=3, head_dim=64, page_size=64),
}
PASTS = (1, 64, 63, 500, 128, 127, 126, 57, 2000)
EDGES = (1, 63, 64, 65, 127, 128, 129, 200, 1000)
PROMPTS = {
    "edges": BatchShape(EDGES[::-1], EDGES[::-1], 32),
    "many": BatchShape(tuple(range(2, 72)), tuple(range(2, 72)), 4),
    "long": BatchShape((3000,), (3000,), 94),
    "mixed": BatchShape((1, 1, 1, 200, 7, 129, 65, 1000), (70, 1, 300, 200, 90, 129, 165, 1000), 34),
    "continued": BatchShape((5, 130), (6, 300), 12),
    "chunks": BatchShape((1, *EDGES, 2, 128, 127), (9, *map(sum, zip(EDGES, PASTS, strict=True)), 131, 256, 1151), 94),
    "many chunks": BatchShape(tuple(range(2, 72)), tuple(7 * n for n in range(2, 72)), 16),
}


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp8"])
def test_prompts_by_triton_and_in_cuda(precision: str, group: str) -> None:
    """Lengths about the tiles' edges, more sequences than a warp has lanes, more tiles than blocks, and sequences that are not theirs."""
    if torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("whole prompts are apart on sm_90")
    model = GROUPS[group]
    for batch in PROMPTS.values():
        batch = replace(batch, max_pages=batch.max_pages * 32 // min(32, model.page_size))
        tactics = [{"uncached_prefill_cuda": cuda, "context_cuda": cuda} for cuda in (0, 1)]
        for cuda, lowered in enumerate(compare_attention(model, batch, precision, tactics, spare=70)):
            assert sum(spec.is_cuda and not spec.function.startswith("decode_attention") for spec in lowered.kernels) == 2 * cuda


@pytest.mark.parametrize(("past", "cached"), [(0, "bf16"), (130, "bf16"), (130, "fp8")])
def test_prompts_in_cuda_give_the_same_bits_again_and_again(past: int, cached: str) -> None:
    """Blocks wait for nothing but their own loads: a race would show in hundreds of runs that follow each other without a pause."""
    if torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("whole prompts are apart on sm_90")
    lens = torch.tensor([0, 300, 301, 1500, 1629], dtype=torch.int32, device="cuda")
    kv_lens = lens.diff() + past
    tensors = {"qkv": torch.randn(1629, 12 * 128, device="cuda").bfloat16(), "query_start": lens, "kv_lens": kv_lens}
    table = torch.randperm(4 * 52, dtype=torch.int32).view(4, 52).cuda()
    tensors |= {"block_table": table, "seq_slots": torch.arange(4, dtype=torch.int32).cuda()}
    tensors["kv_cache"] = torch.randn(1, 4 * 52, 2, 2, 32, 128, device="cuda").to(DTYPES[cached])
    if cached == "fp8":
        tensors |= {name: torch.tensor([0.5], device="cuda") for name in ("k_scale", "v_scale")}
    named = OPS["paged_attention"].tensors
    inputs = [TensorSpec(tuple(tensors[n].shape), dtype_name(tensors[n].dtype)) if n in tensors else None for n in named]
    out = TensorSpec((1629, 8 * 128), "bf16")
    attrs = {"layer": 0, "num_heads": 8, "num_kv_heads": 2, "scale": 0.1}
    lowered = lower("paged_attention", inputs, [out], attrs, arch(), tactic={"concurrent_tokens": 0})
    results = torch.empty(300, 1629, 8 * 128, dtype=torch.bfloat16, device="cuda")
    wanted = {
        spec.key
        for spec in lowered.kernels
        if spec.is_cuda and spec.function == ("context_attention" if past else "uncached_prefill_attention")
    }
    (launch,) = (launch for launch in lowered.launches if launch.kernel in wanted)
    runs = [
        Lowered((replace(launch, args=tuple(replace(a, value=f"o{i}") if a.value == "out0" else a for a in launch.args)),))
        for i in range(300)
    ]
    tensors |= {f"o{i}": result for i, result in enumerate(results)}
    program = BoundProgram(runs, tensors.__getitem__, compile_all([spec for spec in lowered.kernels if spec.is_cuda], arch()))
    program.set_symbols(T=1629, R=4, D=0, S=4, C=4 if past else 0)
    program.run()
    assert bool((results == results[0]).all())
    assert bool(results[0].isfinite().all())


def test_tma_descriptors_made_on_the_host() -> None:
    if torch.cuda.get_device_capability()[0] < 9:
        pytest.skip("TMA needs sm_90")
    sys.path.insert(0, str(Path(__file__).parent))
    descriptor = "tensordesc<bf16[{},{}]>".format
    spec = KernelSpec(
        "tma_kernel",
        "tma_matmul",
        {"A": descriptor(64, 64), "B": descriptor(128, 64), "C": descriptor(64, 128), "k_size": "i32"},
        {"BM": 64, "BN": 128, "BK": 64},
    )
    m, n, k = 192, 256, 320
    a, b = torch.randn(m, k, device="cuda").bfloat16(), torch.randn(n, k, device="cuda").bfloat16()
    tensors = {"a": a, "b": b, "c": torch.full((m, n), torch.nan, device="cuda", dtype=torch.bfloat16)}
    args = (Arg("tma", "a", (64, 64)), Arg("tma", "b", (128, 64)), Arg("tma", "c", (64, 128)), Arg("i32", k))
    lowered = Lowered((Launch(spec.key, (m // 64, n // 128, 1), args),), (spec,))
    program = BoundProgram([lowered], tensors.__getitem__, compile_all([spec], arch()))
    program.set_symbols(T=0, R=0, D=0, S=0, C=0)
    program.run()
    torch.testing.assert_close(tensors["c"].float(), a.float() @ b.float().T, rtol=2e-2, atol=0.1)


def test_refusals() -> None:
    lowered = lower("gelu", [TensorSpec(("T", 64), "bf16")], [TensorSpec(("T", 64), "bf16")], {}, arch())
    cubins = compile_all(lowered.kernels, arch())
    y = torch.zeros(8, 64, dtype=torch.bfloat16, device="cuda")
    with pytest.raises(KernelError, match="was not compiled"):
        BoundProgram([lowered], lambda _: y, {})
    misaligned = torch.zeros(8 * 64 + 1, dtype=torch.bfloat16, device="cuda")[1:].view(8, 64)
    with pytest.raises(KernelError, match="divisible by 16"):
        BoundProgram([lowered], lambda _: misaligned, cubins)
    with pytest.raises(KernelError, match="contiguous tensor in CUDA or pinned memory"):
        BoundProgram([lowered], lambda _: torch.zeros(8, 64), cubins)
    with pytest.raises(KernelError, match="unknown library routine"):
        BoundProgram([Lowered((Launch(library="fft"),))], lambda _: y, cubins)
    assert trtllm_kernels.references is not None
